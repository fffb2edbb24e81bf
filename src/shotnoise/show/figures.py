"""Figures of a stored result. Nothing is computed here: a mark is a stored number, or two of them in ratio.

Each function takes what `measure` returned (and `observed`, what `measure.observed` returned, where the two
belong together) and gives a Matplotlib figure that pyplot does not know of, ready for `save`.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from shotnoise.errors import InputError
from shotnoise.show import stored
from shotnoise.show.axes import BATCH_LABEL, Look, batch_axis, legend, looks, note, positive
from shotnoise.show.layers import layers
from shotnoise.show.scale import noise_scale
from shotnoise.show.stored import VARIANCE
from shotnoise.show.style import BLACK, GREY, VERMILLION, house_style, new_figure
from shotnoise.show.words import listing, percent

VARIANCE_LABEL = "variance of the minibatch gradient\n$\\mathrm{var}(g^b\\,|\\,w_t)$"
MOST_LABELLED = 8  # steps named in a legend; the others are drawn and lie between


def figures(result: xr.Dataset, observed: xr.Dataset | None = None) -> dict[str, Figure]:
    """The figures that make sense for this result, by name, in the order in which one reads them."""
    stored.check(result, observed)
    drawn = {
        "conditional_variance": conditional_variance(result, observed),
        "noise_share": noise_share(result),
    }
    exact = all(stored.status(here) == "exact" for _, here in stored.slices(result))
    if result.sizes.get("step", 1) > 1 or not exact:
        drawn["noise_scale"] = noise_scale(result)
    if "layer_noise_scale" in result and positive(stored.values(result, "layer_noise_scale")).any():
        drawn["layers"] = layers(result)
    if "noise_eigenvalues" in result:
        drawn["spectrum"] = spectrum(result)
    return drawn


@house_style()
def conditional_variance(result: xr.Dataset, observed: xr.Dataset | None = None) -> Figure:
    """Variance of the minibatch gradient against batch size, measured and observed, one colour per step.

    The dashed line is the squared norm of the full gradient: where the variance crosses it, signal equals
    noise. With `observed`, a lower panel shows observed / measured, since error bars of a few per cent vanish
    over decades. A variance of exactly 0 (the batch is the whole data set) has no place on the axis; a note
    says so.
    """
    stored.check(result, observed)
    figure = new_figure(3.4 if observed is None else 4.9)
    upper, lower = _panels(figure, observed is not None)
    parts = stored.slices(result)
    for k, ((step, here), look) in enumerate(zip(parts, looks(len(parts)), strict=True)):
        _measured(upper, here, step, look)
        if (found := stored.observed_at(observed, step)) is not None:
            own = look if len(parts) > 1 else Look(VERMILLION, look.marker)
            _observed(upper, found, step, own, stored.half_widths(result))
            if lower is not None:
                _ratio(lower, here, found, own, aside=k - (len(parts) - 1) / 2)
    upper.set_yscale("log")
    upper.set_ylabel(VARIANCE_LABEL)
    note(upper, _left_out(result))
    sizes = stored.batch_sizes(result) + ([] if observed is None else stored.batch_sizes(observed))
    for axes in filter(None, (upper, lower)):
        batch_axis(axes, sizes)
    (lower or upper).set_xlabel(BATCH_LABEL)
    _variance_legend(figure, result, observed)
    return figure


@house_style()
def noise_share(result: xr.Dataset) -> Figure:
    """The share of a gradient step's expected squared length that is noise, against batch size."""
    stored.check(result)
    figure = new_figure(3.0)
    axes = figure.subplots()
    parts = stored.slices(result)
    for (step, here), look in zip(parts, looks(len(parts)), strict=True):
        share, error = stored.values(here, "noise_share"), stored.stderr(here, "noise_share")
        axes.plot(here["batch_size"], share, color=look.colour, marker=look.marker, gid=_gid("share", step))
        if error is not None:
            reach = stored.half_widths(result) * error
            axes.fill_between(here["batch_size"], share - reach, share + reach, color=look.colour, alpha=0.2, lw=0)
    axes.axhline(0.5, color=GREY, ls=":", lw=1.2)
    axes.text(0.01, 0.51, "signal equals noise", transform=axes.transAxes, color=GREY, fontsize=9)
    axes.set_ylim(-0.03, 1.03)
    beyond = (result["noise_share"] > 1) | (result["noise_share"] < 0)
    if beyond.any():
        note(axes, "not drawn: shares beyond 0 to 100 %, where the gradient is not resolved")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel("noise in $\\mathbb{E}\\,\\|g^b\\|^2$, the expected\nsquared length of a step")
    batch_axis(axes, stored.batch_sizes(result))
    axes.set_xlabel(BATCH_LABEL)
    handles, labels = _step_entries(result)
    if handles:
        legend(figure, handles, labels)
    return figure


@house_style()
def spectrum(result: xr.Dataset) -> Figure:
    """Eigenvalues of the covariance of per-sample gradients by rank; error bars are their residuals."""
    if "noise_eigenvalues" not in result:
        raise InputError("the result holds no noise_eigenvalues; ask measure for the spectrum of the noise first.")
    figure = new_figure(3.2)
    axes = figure.subplots()
    parts = stored.slices(result)
    for (step, here), look in zip(parts, looks(len(parts)), strict=True):
        eigenvalues = stored.values(here, "noise_eigenvalues")
        drawn = positive(eigenvalues)
        rank = np.arange(1, len(eigenvalues) + 1)
        marks = {"color": look.colour, "marker": look.marker, "markersize": 3.5, "lw": 0.8}
        axes.plot(rank[drawn], eigenvalues[drawn], gid=_gid("eigenvalues", step), **marks)
        if "noise_eigenvalue_residuals" in here:
            residuals = stored.values(here, "noise_eigenvalue_residuals")
            axes.errorbar(rank[drawn], eigenvalues[drawn], residuals[drawn], fmt="none", ecolor=look.colour)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel("eigenvalue of the gradient\nnoise covariance $\\Sigma$")
    lost = int(np.sum(~positive(stored.values(result, "noise_eigenvalues"))))
    note(axes, f"not drawn: {lost} eigenvalue{'s' * (lost > 1)} of 0 (within rounding)" if lost else "")
    handles, labels = _step_entries(result)
    if handles:
        legend(figure, handles, labels)
    return figure


def _panels(figure: Figure, two: bool) -> tuple[Axes, Axes | None]:
    if not two:
        return figure.subplots(), None
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    lower.axhline(1.0, color=GREY, lw=1.0)
    lower.set_ylabel("observed /\nmeasured")
    return upper, lower


def _measured(axes: Axes, here: xr.Dataset, step: int | None, look: Look) -> None:
    size, variance = stored.values(here, "batch_size"), stored.values(here, VARIANCE)
    drawn = positive(variance)
    axes.plot(size[drawn], variance[drawn], color=look.colour, marker=look.marker, gid=_gid("measured", step))
    if (error := stored.stderr(here, VARIANCE)) is not None:
        reach = stored.half_widths(here) * error
        band = drawn & (variance > reach)
        low, high = (variance - reach)[band], (variance + reach)[band]
        axes.fill_between(size[band], low, high, color=look.colour, alpha=0.2, lw=0)
    if (signal := stored.value(here, "gradient_norm_sq")) > 0:
        axes.axhline(signal, color=look.colour, ls="--", lw=1.0, gid=_gid("signal", step))


def _observed(axes: Axes, found: xr.Dataset, step: int | None, look: Look, half_widths: float) -> None:
    variance = stored.values(found, VARIANCE)
    drawn = positive(variance)
    reach = half_widths * stored.values(found, f"{VARIANCE}_stderr")
    bars = axes.errorbar(
        stored.values(found, "batch_size")[drawn],
        variance[drawn],
        reach[drawn],
        fmt="o",
        ms=8,
        mfc="none",
        color=look.colour,
    )
    bars.lines[0].set_gid(_gid("observed", step))


def _ratio(axes: Axes, here: xr.Dataset, found: xr.Dataset, look: Look, aside: float) -> None:
    """Observed / measured at the sizes they share, moved `aside` so that steps do not hide each other."""
    both, mine, theirs = np.intersect1d(here["batch_size"], found["batch_size"], return_indices=True)
    measured, seen = stored.values(here, VARIANCE)[mine], stored.values(found, VARIANCE)[theirs]
    reach = (stored.half_widths(here) * stored.values(found, f"{VARIANCE}_stderr"))[theirs]
    drawn = positive(measured)
    ratio, bars = seen[drawn] / measured[drawn], reach[drawn] / measured[drawn]
    places = both[drawn] * 1.08**aside
    lines = axes.errorbar(places, ratio, bars, fmt=look.marker, ms=4.5, mfc="white", color=look.colour).lines
    lines[0].set_gid("ratio")


def _left_out(result: xr.Dataset) -> str:
    zero = {b for _, here in stored.slices(result) for b in here["batch_size"].values[here[VARIANCE].values == 0]}
    sizes = [f"{b:,}" for b in sorted(zero)]
    return f"not drawn: the variance is exactly 0 at $b$ = {listing(sizes)}" if sizes else ""


def _variance_legend(figure: Figure, result: xr.Dataset, observed: xr.Dataset | None) -> None:
    handles, labels = _step_entries(result)
    first = looks(1)[0].colour if not handles else BLACK
    handles.append(Line2D([], [], color=first, marker="o"))
    labels.append("measured")
    if observed is not None:
        own = VERMILLION if len(handles) == 1 else BLACK
        handles.append(Line2D([], [], color=own, marker="o", ms=8, mfc="none", ls=""))
        labels.append(f"observed,\n{percent(stored.confidence(result))} intervals")
    handles.append(Line2D([], [], color=first, ls="--", lw=1.0))
    labels.append("$\\|\\nabla L(w_t)\\|^2$:\nsignal = noise")
    legend(figure, handles, labels)


def _step_entries(result: xr.Dataset) -> tuple[list[Line2D], list[str]]:
    """Legend entries for the steps: all of them, or some spread evenly if there are too many to read."""
    parts = stored.slices(result)
    if len(parts) == 1:
        return [], []
    named = np.unique(np.linspace(0, len(parts) - 1, min(len(parts), MOST_LABELLED)).round().astype(int))
    every = looks(len(parts))
    return (
        [Line2D([], [], color=every[k].colour, marker=every[k].marker) for k in named],
        [f"step {parts[k][0]:,}" for k in named],
    )


def _gid(what: str, step: int | None) -> str:
    return what if step is None else f"{what} step {step}"
