"""What stands under a figure, and what is read aloud in its place to those who cannot see it."""

from typing import NamedTuple

import xarray as xr

from shotnoise.show import stored
from shotnoise.show.words import listing, number, percent


class Caption(NamedTuple):
    title: str
    caption: str
    alt: str


def caption(name: str, result: xr.Dataset, observed: xr.Dataset | None = None) -> Caption:
    """Title, caption and alternative text of the figure that `figures` calls `name`."""
    describe = {
        "conditional_variance": _conditional_variance,
        "noise_share": _noise_share,
        "noise_scale": _noise_scale,
        "layers": _layers,
        "spectrum": _spectrum,
    }[name]
    return describe(result, observed)


def _conditional_variance(result: xr.Dataset, observed: xr.Dataset | None) -> Caption:
    text = (
        "Variance of the minibatch gradient at fixed weights against the batch size. Dashed: squared norm "
        "of the full gradient; left of where the two cross, noise is the larger part of a step."
    )
    if f"{stored.VARIANCE}_stderr" in result:
        text += f" Shaded: {_intervals(result)}."
    if observed is not None:
        text += (
            f" Circles: variance over {_draws(observed)}real minibatches drawn at the same weights, with "
            f"{_intervals(result)}; below, the same divided by the measured value."
        )
    return Caption("Variance against batch size", text + _zero(result), _curves(result, stored.VARIANCE, "variance"))


def _noise_share(result: xr.Dataset, _: xr.Dataset | None) -> Caption:
    text = (
        "Share of the expected squared length of a gradient step that is noise. At 50 % the noise is as "
        "long as the full gradient."
    )
    return Caption("How much of a step is noise", text, _curves(result, "noise_share", "share of noise"))


def _noise_scale(result: xr.Dataset, _: xr.Dataset | None) -> Caption:
    text = "Gradient noise scale: so many independent samples make a step that is half noise."
    parts = stored.slices(result)
    scales = [number(stored.value(here, "noise_scale"), 2) for _, here in parts]
    if len(parts) == 1:
        return Caption("Noise scale", text, f"Noise scale with its interval: {scales[0]} samples.")
    ends = f"{scales[0]} samples at step {parts[0][0]:,}, {scales[-1]} at step {parts[-1][0]:,}"
    return Caption("Noise scale along training", text, f"Noise scale against the step: {ends}.")


def _layers(result: xr.Dataset, _: xr.Dataset | None) -> Caption:
    text = (
        "Layers in the network's order. Left: noise scale of each layer's own gradient. Right: its "
        "signal-to-noise ratio, squared norm of the full gradient over the variance of the minibatch "
        "gradient; right of the dotted line the signal is larger."
    )
    count = result.sizes["layer"]
    return Caption(
        "Layer by layer",
        text,
        f"Noise scale and signal-to-noise ratio of {count} layers, as tabulated below.",
    )


def _spectrum(result: xr.Dataset, _: xr.Dataset | None) -> Caption:
    here = stored.slices(result)[-1][1]
    eigenvalues = stored.values(here, "noise_eigenvalues")
    text = "Largest eigenvalues of the covariance of per-sample gradients: variance along the noisiest axes."
    if "noise_eigenvalue_residuals" in result:
        text += " Bars, mostly smaller than the marks: residuals, which bound the numerical error."
    if "noise_effective_rank" in here:
        text += f" Effective rank {number(stored.value(here, 'noise_effective_rank'), 3)}."
    ends = f"from {number(eigenvalues[0], 3)} down to {number(eigenvalues[-1], 3)}"
    return Caption("Spectrum of the noise", text, f"{len(eigenvalues)} eigenvalues on a logarithmic scale, {ends}.")


def _curves(result: xr.Dataset, name: str, what: str) -> str:
    """The ends of every curve in words."""
    words = percent if name == "noise_share" else lambda x: number(x, 3)
    first, last = (f"{b:,}" for b in (stored.batch_sizes(result)[0], stored.batch_sizes(result)[-1]))
    parts = stored.slices(result)
    parts = parts if len(parts) < 4 else [parts[0], parts[-1]]
    ends = []
    for step, here in parts:
        curve = stored.values(here, name)
        ends.append(
            f"{'' if step is None else f'at step {step:,} '}{words(curve[0])} at batch size {first} and "
            f"{words(curve[-1])} at batch size {last}"
        )
    return f"Line plot of the {what} against batch size: {listing(ends)}."


def _zero(result: xr.Dataset) -> str:
    if not (result[stored.VARIANCE] == 0).any():
        return ""
    return " A variance of exactly 0 (the batch is the whole data set) has no place on a logarithmic axis."


def _intervals(result: xr.Dataset) -> str:
    return f"{percent(stored.confidence(result))} intervals"


def _draws(observed: xr.Dataset) -> str:
    return f"{int(observed.attrs['draws']):,} " if "draws" in observed.attrs else ""
