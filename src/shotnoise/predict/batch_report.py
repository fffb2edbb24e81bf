"""What a larger batch buys along a training, read off a prediction for several batch sizes."""

import numpy as np
import xarray as xr
from scipy.optimize import linprog

from shotnoise import results
from shotnoise.errors import InputError

QUANTITIES = (
    "gradient_variance",
    "full_gradient_variance",
    "loss",
    "gradient_norm_sq",
    "weights_variance",
    "loss_variance",
)
ROUNDING = 1e-9  # relative increase that counts as none


def batch_size_report(prediction: xr.Dataset, tolerance: float = 0.1) -> xr.Dataset:
    """Is each quantity decreasing in b at every step, what does doubling b bring, and where does the 1/b law end?

    prediction: what `regression` returned for two batch sizes or more. tolerance: how far the variance may be from
    the law.

    Returns, by quantity: `is_decreasing`, over the given batch sizes and all steps, `largest_increase`, the largest
    relative increase from a batch size to the next (0 if none), and `doubling_ratio` (quantity, batch_size, step),
    the value at 2b over that at b (NaN where 2b is not given). By (batch_size, step): `law_ratio`, gradient_variance
    over kappa times its leading coefficient, 1 in the limit of large batches (kappa is (n - b) / (b (n - 1)) without
    replacement, 1/b with: without replacement the pure 1/b law has that factor besides); `law_holds_from` (step), the
    smallest given batch size from which on it stays within the tolerance (NaN: none).
    By batch_size: `noise_floor` M >= 0 and `noise_slope` M_V >= 0, the line that lies above the variance at fixed
    weights, E var(g_t | w_t) <= M + M_V E||grad L(w_t)||^2, at all steps, with the least mean slack: the constants
    that analyses of SGD assume (Bottou, Curtis and Nocedal, 2018, eq. 4.9).

    Raises InputError for a prediction with fewer than two batch sizes.

    >>> from shotnoise import predict
    >>> r = predict.regression([[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], [1.0], 0.25, batch_sizes=[1, 2], steps=5)
    >>> report = batch_size_report(r)
    >>> variance = report.sel(quantity="gradient_variance", batch_size=1)
    >>> bool(report["is_decreasing"].all()), float(variance["doubling_ratio"][0])
    (True, 0.25)
    """
    if (
        "batch_size" not in prediction.dims
        or prediction.sizes["batch_size"] < 2
        or "gradient_variance" not in prediction
    ):
        raise InputError("a report on the batch size needs a prediction for at least two batch sizes")
    if not tolerance > 0:
        raise InputError(f"tolerance={tolerance}: a positive number, such as 0.1")
    prediction = prediction.sortby("batch_size")
    sizes = prediction["batch_size"].values
    names = [name for name in QUANTITIES if name in prediction]
    values = np.array([prediction[name].transpose("batch_size", "step").values for name in names])
    increase = _increase(values)
    found: dict[str, tuple[tuple[str, ...], object]] = {
        "is_decreasing": (("quantity",), increase <= ROUNDING),
        "largest_increase": (("quantity",), np.where(increase <= ROUNDING, 0.0, increase)),
        "doubling_ratio": (("quantity", "batch_size", "step"), _doubling(values, sizes)),
    }
    if "gradient_variance_leading" in prediction:
        law = prediction["kappa"].values[:, None] * prediction["gradient_variance_leading"].values
        ratio = _ratio(values[names.index("gradient_variance")], law)
        found["law_ratio"] = (("batch_size", "step"), ratio)
        found["law_holds_from"] = (("step",), _holds_from(ratio, sizes, tolerance))
    if prediction.attrs.get("projection", "none") == "none":
        noise = prediction["gradient_variance"] - prediction["full_gradient_variance"]
        lines = np.array([
            _line(signal, own) for signal, own in zip(
                prediction["gradient_norm_sq"].values, noise.values, strict=True)
        ])  # fmt: skip
        found["noise_floor"], found["noise_slope"] = (("batch_size",), lines[:, 0]), (("batch_size",), lines[:, 1])
    coordinates = {"batch_size": sizes, "step": prediction["step"].values, "quantity": np.array(names, dtype=str)}
    kept = {name: prediction.attrs[name] for name in ("theory", "sampling", "n_samples") if name in prediction.attrs}
    return results.dataset(found, coordinates, kept | {"tolerance": tolerance})


def _increase(values: np.ndarray) -> np.ndarray:
    """Per quantity of (Q, B, T), the largest rise from a batch size to the next, relative to the step's largest."""
    finite = np.where(np.isfinite(values), values, np.nan)  # what has overflowed has no size to compare
    scale = np.fmax.reduce(np.abs(finite), axis=1, keepdims=True)
    rise = np.diff(finite, axis=1) / np.where(scale > 0, scale, 1.0)
    return np.nan_to_num(rise, nan=0.0).max((1, 2))


def _doubling(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    found = np.full(values.shape, np.nan)
    place = {int(b): row for row, b in enumerate(sizes)}
    for b, row in place.items():
        if 2 * b in place:
            found[:, row] = _ratio(values[:, place[2 * b]], values[:, row])
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where both vanish (a batch of all the data) or nothing is finite."""
    usable = (below > 0) & np.isfinite(below) & np.isfinite(above)
    return np.where(usable, above / np.where(usable, below, 1.0), np.nan)


def _holds_from(ratio: np.ndarray, sizes: np.ndarray, tolerance: float) -> np.ndarray:
    good = np.isnan(ratio) | (np.abs(ratio - 1) <= tolerance)
    lasting = np.flip(np.logical_and.accumulate(np.flip(good, 0), 0), 0)
    lasting &= ~np.isnan(ratio)
    return np.where(lasting.any(0), sizes[lasting.argmax(0)], np.nan)


def _line(signal: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """M, M_V >= 0 with M + M_V signal >= noise everywhere and the least mean distance."""
    finite = np.isfinite(signal) & np.isfinite(noise)
    x, v = signal[finite], np.maximum(noise[finite], 0.0)
    if not len(x) or not v.max(initial=0.0) > 0:
        return 0.0, 0.0
    width, height = max(float(x.max()), np.finfo(float).tiny), float(v.max())
    solved = linprog(
        [1.0, float((x / width).mean())], A_ub=-np.column_stack([np.ones(len(x)), x / width]), b_ub=-v / height,
        bounds=[(0, None)] * 2, method="highs",
    )  # fmt: skip
    floor, slope = np.asarray(solved.x)
    return float(floor * height), float(slope * height / width)
