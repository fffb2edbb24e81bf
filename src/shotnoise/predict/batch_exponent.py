"""How a variance falls with the batch size: the exponent e of b^-e, fitted and between neighbours."""

import numpy as np
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError


def batch_exponent(result: xr.Dataset, variable: str = "gradient_variance") -> xr.Dataset:
    """The exponent e in variance ~ b^-e, by least squares over all batch sizes and between each and the next.

    result: any result with `variable` by batch_size (two sizes or more) and perhaps step, predicted or a summary of
    simulated runs; standard errors, where it has them, weigh the fit and carry over: errors of different batch sizes
    count as independent, logarithms as normal (relative errors well below 1). Values that are not positive are NaN.

    Returns `batch_exponent` (step) over all sizes, and `local_exponent` (batch_size, step) at the geometric mean of
    neighbours, as the coordinate `between`; both with `_stderr` where `variable` has it. A 1/b law has 1 everywhere.
    Where the local exponents differ by more than their errors there is no one exponent, and the fit only a summary.

    >>> r = xr.Dataset({"gradient_variance": ("batch_size", [8.0, 4.0, 1.0])}, {"batch_size": [1, 2, 8]})
    >>> found = batch_exponent(r)
    >>> round(float(found["batch_exponent"]), 12), found["local_exponent"].values.round(12).tolist()
    (1.0, [1.0, 1.0])
    """
    if variable not in result or "batch_size" not in result[variable].dims or result.sizes["batch_size"] < 2:
        raise InputError(
            f"an exponent needs {variable} at two batch sizes or more; the result has {dict(result.sizes)}"
        )
    ordered = result.sortby("batch_size")
    axes = tuple(str(d) for d in result[variable].dims if d != "batch_size")
    if axes not in ((), ("step",)):
        raise InputError(f"{variable} has the axes {axes}; select one entry of all but batch_size and step")
    sizes, dims = ordered["batch_size"].values, ("batch_size", *axes)
    values = ordered[variable].transpose(*dims).values.astype(np.float64).reshape(len(sizes), -1)
    logs = np.log(np.where(values > 0, values, np.nan))
    error = f"{variable}_stderr"
    relative = np.ones_like(values)
    if error in ordered:
        relative = ordered[error].transpose(*dims).values.reshape(len(sizes), -1) / values
    weights = np.where(np.isfinite(logs) & (relative > 0), relative, np.inf) ** -2.0
    x = np.log(sizes.astype(np.float64))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):  # where fewer than two values are left: NaN
        centred = x - (weights * x).sum(0) / weights.sum(0)
        spread = (weights * centred**2).sum(0)
        fitted = -(weights * centred * np.nan_to_num(logs)).sum(0) / spread
    step = np.diff(x, axis=0)
    shape = ordered[variable].transpose(*dims).shape[1:]
    variables = {
        "batch_exponent": (axes, fitted.reshape(shape)),
        "local_exponent": (dims, (-np.diff(logs, axis=0) / step).reshape(-1, *shape)),
    }
    if error in ordered:
        pairs = np.hypot(relative[:-1], relative[1:]) / step
        variables["batch_exponent_stderr"] = (axes, (spread**-0.5).reshape(shape))
        variables["local_exponent_stderr"] = (dims, pairs.reshape(-1, *shape))
    coordinates = {"batch_size": sizes[:-1], "between": ("batch_size", np.sqrt(sizes[:-1] * sizes[1:]))}
    coordinates |= {"step": ordered["step"].values} if axes else {}
    return results.dataset(variables, coordinates, {"variable": variable})
