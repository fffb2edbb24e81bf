"""From the records of pieces to a labelled result: estimates pooled over blocks, summaries, paired differences.

Runs that have diverged are left out of an estimate from their divergence on, and counted in `runs_excluded`. The other
convention, diverged="include", counts them in: what then includes a diverged run is infinite.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.simulate.plan import ALIVE, DIVERGED, NEVER, SKETCH
from shotnoise.simulate.statistics import moments, pooled_moments, pooled_quantiles, pooled_variance

BLOCK = "block_"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COORDINATE_ARRAYS = (DIVERGED,)


def assemble(pieces: xr.Dataset, quantiles: Sequence[float] = QUANTILES) -> xr.Dataset:
    """Values by run as they are, and everything that was kept by block pooled, each estimate with its `_stderr`."""
    found: dict[str, Any] = {str(n): v for n, v in pieces.data_vars.items() if not str(n).startswith(BLOCK)}
    found["runs_excluded"] = _excluded(pieces)
    coordinates: dict[str, Any] = {str(n): c for n, c in pieces.coords.items() if n not in ("block", "sketch")}
    for name in _block_statistics(pieces):
        found |= _pooled_statistic(pieces, name)
    for name in _summarised(pieces):
        found |= _pooled_summary(pieces, name, quantiles)
        coordinates["quantile"] = ("quantile", np.array(quantiles))
    return results.describe(xr.Dataset(found, coordinates, pieces.attrs))


def summary(runs: xr.Dataset, quantiles: Sequence[float] = QUANTILES, *, diverged: str = "exclude") -> xr.Dataset:
    """Mean, variance and quantiles over the runs of everything that has a value per run.

    For a variable x: `x` (the mean), `x_stderr`, `x_variance` (divisor R - 1), `x_variance_stderr` (jackknife) and
    `x_quantile`. Estimates that the result already has are kept. diverged: "exclude" leaves a run out from its
    divergence on (`runs_excluded` counts them by step), "include" makes infinite whatever includes a diverged run.
    Raises InputError for another word or quantiles out of range.
    """
    if diverged not in ("exclude", "include"):
        raise InputError(f'diverged={diverged!r}: "exclude" or "include"')
    if not all(0 <= q <= 1 for q in quantiles):
        raise InputError(f"quantiles={list(quantiles)}: numbers between 0 and 1")
    found: dict[str, Any] = {}
    for name, variable in runs.data_vars.items():
        if name == DIVERGED:
            continue
        found |= _summary_of(runs, str(name), quantiles) if "run" in variable.dims else {str(name): variable}
    coordinates = {str(n): c for n, c in runs.coords.items() if n != "run"} | {"quantile": np.array(quantiles)}
    whole = xr.Dataset(found, coordinates, {**runs.attrs, "diverged": diverged})
    if diverged == "include":
        whole = _infinite_where_diverged(whole, runs)
    return results.describe(whole)


def paired(runs: xr.Dataset, name: str, dim: str) -> xr.Dataset:
    """Differences of one variable between the values along `dim` and the first of them, run by run.

    For runs with common random numbers: `<name>_difference` is the mean over runs of x(value) - x(first), and its
    `_stderr` that of the mean of the paired differences. Pairs of which one has diverged are left out.
    Raises InputError for runs that do not share random numbers, or a variable that is not there by run.
    """
    if not runs.attrs.get("common_random_numbers"):
        raise InputError(
            "paired differences need runs that share their random numbers: simulate(..., common_random_numbers=True)"
        )
    if name not in runs or "run" not in runs[name].dims or dim not in runs[name].dims:
        raise InputError(
            f"{name!r} has no values by run along {dim!r}; there are {', '.join(map(str, runs.data_vars))}"
        )
    values = _alive_values(runs, name)
    difference = (values - values.isel({dim: 0})).isel({dim: slice(1, None)})
    count = difference.count("run")
    stderr = difference.std("run", ddof=1) / np.sqrt(count)
    found = {f"{name}_difference": difference.mean("run"), f"{name}_difference_stderr": stderr, "pairs": count}
    first = runs[dim].values[0]
    return results.describe(xr.Dataset(found, attrs={**runs.attrs, "difference_from": f"{dim}={first}"}))


def _excluded(pieces: xr.Dataset) -> xr.DataArray:
    """Runs diverged at or before each step."""
    when = pieces[DIVERGED].transpose(..., "run")
    steps, values = pieces["step"].values, when.values
    counts = np.stack([((values > NEVER) & (values <= t)).sum(-1) for t in steps], -1)
    return xr.DataArray(counts, dims=(*when.dims[:-1], "step"))


def _block_statistics(pieces: xr.Dataset) -> Iterator[str]:
    for name in map(str, pieces.data_vars):
        if name.startswith(BLOCK) and name.endswith("_top_share"):
            yield name.removeprefix(BLOCK).removesuffix("_top_share")


def _summarised(pieces: xr.Dataset) -> Iterator[str]:
    for name in map(str, pieces.data_vars):
        if name.startswith(BLOCK) and name.endswith("_sketch"):
            yield name.removeprefix(BLOCK).removesuffix("_sketch")


def _pooled_statistic(pieces: xr.Dataset, name: str) -> dict[str, Any]:
    parts = {part: _blocks_last(pieces[f"{BLOCK}{name}{part}"]) for part in ("", "_stderr", "_top_share")}
    dims = tuple(d for d in pieces[BLOCK + name].dims if d != "block")
    alive = pieces[ALIVE].broadcast_like(pieces[BLOCK + name]).transpose(*dims, "block")
    count = np.maximum(_blocks_last(alive), 0)
    value, stderr = pooled_variance(parts[""], parts["_stderr"], count)
    with np.errstate(invalid="ignore", divide="ignore"):
        carried = np.where(np.isfinite(parts[""]), (count - 1) * parts[""], 0)
        share = np.where(carried > 0, carried * parts["_top_share"], 0).sum(-1) / carried.sum(-1)
    return {name: (dims, value), f"{name}_stderr": (dims, stderr), f"{name}_top_share": (dims, share)}


def _pooled_summary(pieces: xr.Dataset, name: str, quantiles: Sequence[float]) -> dict[str, Any]:
    parts = {part: _blocks_last(pieces[f"{BLOCK}{name}_{part}"]) for part in SKETCH if part != "sketch"}
    dims = tuple(d for d in pieces[f"{BLOCK}{name}_mean"].dims if d != "block")
    count = np.where(np.isfinite(parts["count"]), parts["count"], 0)
    total, mean, variance = pooled_moments(count, parts["mean"], parts["variance"])
    _, variance_stderr = pooled_variance(parts["variance"], parts["variance_stderr"], count)
    sketch = pieces[f"{BLOCK}{name}_sketch"].transpose(*dims, "block", "sketch").values
    return _named(
        name, dims, total, mean, variance, variance_stderr, pooled_quantiles(sketch, count, np.array(quantiles))
    )


def _summary_of(runs: xr.Dataset, name: str, quantiles: Sequence[float]) -> dict[str, Any]:
    variable = runs[name]
    dims = tuple(d for d in variable.dims if d != "run")
    values = torch.from_numpy(np.ascontiguousarray(_alive_values(runs, name).transpose("run", ...).values))
    part = {k: v.numpy() for k, v in moments(values, 1).items()}
    finite = np.where(np.isfinite(values.numpy()), values.numpy(), np.nan)
    nowhere = np.isnan(finite).all(0)  # NumPy warns of a quantile of nothing
    at = np.nanquantile(np.where(nowhere, 0.0, finite), quantiles, axis=0)
    at = np.moveaxis(np.where(nowhere, np.nan, at), 0, -1)
    return _named(name, dims, part["count"], part["mean"], part["variance"], part["variance_stderr"], at)


def _named(
    name: str, dims: tuple[Any, ...], count: Any, mean: Any, variance: Any, variance_stderr: Any, quantiles: Any
) -> dict[str, Any]:
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = np.sqrt(variance / count)
    return {
        name: (dims, mean),
        f"{name}_stderr": (dims, stderr),
        f"{name}_variance": (dims, variance),
        f"{name}_variance_stderr": (dims, variance_stderr),
        f"{name}_quantile": ((*dims, "quantile"), quantiles),
    }


def _alive_values(runs: xr.Dataset, name: str) -> xr.DataArray:
    """The values of a variable by run in float64, NaN from the run's divergence on and where they are not finite."""
    values = runs[name].astype(np.float64)
    values = values.where(np.isfinite(values))
    step = _step_dimension(runs[name])
    if step is None or DIVERGED not in runs:
        return values
    return values.where(~_diverged_by(runs, step)).transpose(*runs[name].dims)


def _step_dimension(variable: xr.DataArray) -> str | None:
    """`step`, or the axis of a recorder that has steps of its own."""
    return next((str(d) for d in variable.dims if d == "step" or str(d).endswith("_step")), None)


def _diverged_by(runs: xr.Dataset, step: str) -> xr.DataArray:
    when = runs[DIVERGED]
    return (when > NEVER) & (when <= runs[step])


def _infinite_where_diverged(whole: xr.Dataset, runs: xr.Dataset) -> xr.Dataset:
    changed = {}
    for name, variable in whole.data_vars.items():
        step = _step_dimension(variable)
        if step is not None and variable.dtype.kind == "f":
            lost = _diverged_by(runs, step).any("run")
            changed[name] = variable.where(~lost, np.inf).transpose(*variable.dims)
    return whole.assign(changed)


def _blocks_last(array: xr.DataArray) -> NDArray[Any]:
    """Contiguous, so that sums over blocks are rounded alike wherever the array comes from."""
    return np.ascontiguousarray(array.transpose(..., "block").values, np.float64)
