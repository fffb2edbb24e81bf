"""Results as `measure` and `observed` store them, built by hand from layers whose signal and noise are
chosen.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from shotnoise.compare import Agreement, Row

N = 1797
BATCH_SIZES = [1, 8, 64, 512]
LAYERS = ["0", "2", "4"]
ATTRS = {
    "sampling": "WithoutReplacement()",
    "loss_name": "cross_entropy",
    "l2": 0.0,
    "n_samples": N,
    "samples_used": N,
    "dtype": "float64",
    "device": "cpu",
    "seed": 0,
    "confidence": 0.95,
    "shotnoise_version": "0.1.0",
    "torch_version": "2.13.0",
    "numpy_version": "2.0.0",
    "python_version": "3.11.7",
    "model_fingerprint": "a1b2c3",
    "data_fingerprint": "d4e5f6",
    "created": "2026-01-02T03:04:05+00:00",
    "model": "Sequential",
    "parameters": 6570,
}


def make_result(
    batch_sizes=BATCH_SIZES,
    layers=LAYERS,
    *,
    signal=None,
    noise=None,
    stderr=False,
    open_ended=False,
    unresolvable=False,
    modes=0,
    seed=0,
    **attrs,
):
    """One step of a result; `signal` and `noise` are per layer, estimates are a few per cent uncertain."""
    rng = np.random.default_rng(seed)
    g = 10 ** rng.uniform(-4, -2, len(layers)) if signal is None else np.array(signal, dtype=float)
    s = 10 ** rng.uniform(-0.5, 1.5, len(layers)) if noise is None else np.array(noise, dtype=float)
    b = np.array(batch_sizes)
    factor = (N - b) / (b * (N - 1))
    variance, total = s.sum() * factor, g.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale, layer_scale = s.sum() / total, s / g
        to_noise = g[:, None] / (s[:, None] * factor)
        share = variance / (variance + total)
    low, high = (0.7 * scale, 1.6 * scale) if stderr else (scale, scale)
    status = "estimated" if stderr else "exact"
    if open_ended or unresolvable:
        high = np.inf
    if unresolvable:
        status, scale = "not resolvable with this budget", np.inf
    variables = {
        "loss": 0.4321,
        "gradient_norm_sq": total,
        "second_moment_trace": s.sum() + total,
        "noise_trace": s.sum(),
        "conditional_gradient_variance": ("batch_size", variance),
        "noise_share": ("batch_size", share),
        "noise_scale": scale,
        "noise_scale_low": low,
        "noise_scale_high": high,
        "noise_scale_status": status,
        "layer_gradient_norm_sq": ("layer", g),
        "layer_second_moment_trace": ("layer", s + g),
        "layer_noise_trace": ("layer", s),
        "layer_noise_scale": ("layer", layer_scale),
        "layer_conditional_gradient_variance": (("layer", "batch_size"), s[:, None] * factor),
        "layer_signal_to_noise": (("layer", "batch_size"), to_noise),
    }
    if stderr:
        for name in ("loss", "gradient_norm_sq", "noise_trace"):
            variables[f"{name}_stderr"] = 0.1 * variables[name]
        variables["conditional_gradient_variance_stderr"] = ("batch_size", 0.05 * variance)
        variables["noise_share_stderr"] = ("batch_size", 0.1 * share * (1 - share))
    if modes:
        variables["noise_eigenvalues"] = ("mode", s.sum() / 2 ** np.arange(1, modes + 1))
        variables["noise_eigenvalue_residuals"] = ("mode", np.full(modes, 1e-3 * s.sum() / 2**modes))
    coords = {
        "batch_size": b,
        "layer": list(layers),
        "layer_parameters": ("layer", 100 * np.arange(1, len(layers) + 1)),
        "layer_path": ("layer", ["Linear"] * len(layers)),
    }
    used = {"samples_used": 640} if stderr or unresolvable else {}
    return xr.Dataset(variables, coords, {**ATTRS, **used, **attrs})


def make_series(steps=(0, 10, 100, 1000), grow=4.0, **choices):
    """The same along training: the noise scale grows `grow`-fold from each step to the next."""
    g = np.array([0.5, 0.3, 0.2])
    parts = [
        make_result(signal=g / grow**k, noise=[2.0, 1.0, 9.0], **choices).expand_dims(step=[t])
        for k, t in enumerate(steps)
    ]
    return xr.concat(parts, dim="step", data_vars="all", coords="minimal", compat="override", join="exact")


def make_observed(result, relative=0.07, seed=1, factor=1.0):
    """Observations at the same batch sizes and steps, scattered by one standard error about `factor` x the
    result.
    """
    variance = result["conditional_gradient_variance"]
    scatter = np.random.default_rng(seed).normal(0, relative, variance.shape)
    return xr.Dataset(
        {
            "conditional_gradient_variance": factor * variance * (1 + scatter),
            "conditional_gradient_variance_stderr": factor * relative * variance,
        },
        attrs={"draws": 400, "seed": seed, "sampling": result.attrs["sampling"]},
    ).drop_vars([name for name in ("layer", "layer_parameters", "layer_path") if name in variance.coords])


def make_agreement(result, observed, threshold=3.9):
    """A verdict as `compare` gives it."""
    a, b = result["conditional_gradient_variance"], observed["conditional_gradient_variance"]
    spread = observed["conditional_gradient_variance_stderr"]
    rows = []
    for where in np.ndindex(a.shape):
        keys = dict(zip(a.dims, where, strict=True))
        rows.append(
            Row(
                variable="conditional_gradient_variance",
                where={dim: a[dim].values[k].item() for dim, k in keys.items()},
                a=float(a[keys]),
                a_stderr=0.0,
                b=float(b[keys]),
                b_stderr=float(spread[keys]),
                z=float((b[keys] - a[keys]) / spread[keys]) if float(spread[keys]) else 0.0,
            )
        )
    worst = max(abs(row.z) for row in rows)
    return Agreement(tuple(rows), alarm=1e-3, p_value=0.4 if worst < threshold else 1e-9, threshold=threshold)


@pytest.fixture
def build():
    """The makers of hand-made results: build.result(...), build.series(...), build.observed(...), ..."""
    return SimpleNamespace(
        result=make_result, series=make_series, observed=make_observed, agreement=make_agreement, samples=N
    )


@pytest.fixture
def result():
    return make_result()


@pytest.fixture
def series():
    return make_series()


@pytest.fixture
def half_resolved():
    """Four steps, estimated, the last of which cannot be resolved."""
    early = make_series(steps=(0, 10, 100), stderr=True)
    late = make_result(signal=[1e-3] * 3, noise=[2, 1, 9], stderr=True, unresolvable=True)
    return xr.concat(
        [early, late.expand_dims(step=[1000])],
        dim="step",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="exact",
    )
