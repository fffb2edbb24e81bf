"""Estimates over runs, each with a standard error: within a block of runs, and pooled over blocks.

Within a block of R independent runs: mean, unbiased variance, and its standard error by the jackknife. For vectors,
variance means its trace E||v||^2 - ||E v||^2. Leaving out run r changes only sum u, u_r = ||v_r - mean||^2, so that
the jackknife needs no second pass:

    variance = sum u / (R - 1),     se^2 = R / ((R - 1) (R - 2)^2) sum (u_r - mean u)^2

Blocks are pooled with weights R - 1. What lies between the means of the blocks is not used for variances of vectors
(that would take p numbers per step and block); with blocks of R runs this costs a share 1/R of the precision.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
ROWS_OF = 2**16  # numbers
TOP_SHARE = 100  # one run in so many: how much of a variance do they carry?


def trace_variance(vectors: Tensor, alive: Tensor) -> dict[str, Tensor]:
    """Variance (trace) of R vectors (R, P), its standard error, and the share that the largest 1 % of runs carry."""
    vectors = vectors if bool(alive.all()) else vectors[alive]
    count = len(vectors)
    mean = vectors.mean(0)
    u = _distances(vectors, mean).square()
    longest = float(torch.linalg.vector_norm(mean)) + math.sqrt(float(u.max())) if count else 0.0  # no run is longer
    if count and float(u.max()) <= 16 * torch.finfo(vectors.dtype).eps ** 2 * longest**2:
        u = torch.zeros_like(u)  # all runs are alike, and what is left is rounding
    top = u.topk(-(-count // TOP_SHARE)).values.sum() / u.sum()
    return {**_from_squares(u), "top_share": top}


def _distances(vectors: Tensor, centre: Tensor) -> Tensor:
    """||v_r - centre|| in double precision, (R,): a few rows at a time, which stay in the cache."""
    rows = max(1, ROWS_OF // max(1, vectors.shape[1]))
    room, parts = vectors.new_empty(min(rows, len(vectors)), vectors.shape[1]), []
    for some in vectors.split(rows):
        apart = torch.sub(some, centre, out=room[: len(some)])
        parts.append(torch.linalg.vector_norm(apart, dim=1, dtype=torch.float64))
    return torch.cat(parts)


def _from_squares(u: Tensor) -> dict[str, Tensor]:
    """From squared deviations u (R, ...)."""
    count = len(u)
    undefined = torch.full(u.shape[1:], torch.nan, dtype=torch.float64)
    if count < 2:
        return {"": undefined, "stderr": undefined}
    variance = u.sum(0) / (count - 1)
    if count < 3:
        return {"": variance, "stderr": undefined}
    spread = (u - u.mean(0)).square().sum(0)
    return {"": variance, "stderr": (count / (count - 1) * spread).sqrt() / (count - 2)}


def moments(values: Tensor, quantiles: int) -> dict[str, Tensor]:
    """Of values (R, ...), those that are not finite left out: count, mean, variance with its error, quantile sketch.

    The sketch is the values at `quantiles` evenly spaced ranks (k + 1/2) / quantiles: its rank error is at most half
    of 1 / quantiles.
    """
    rows = values.double().reshape(len(values), math.prod(values.shape[1:]))
    finite = rows.isfinite()
    count = finite.sum(0).double()
    filled = torch.where(finite, rows, 0)
    mean = filled.sum(0) / count
    u = torch.where(finite, (filled - mean).square(), 0)
    variance = torch.where(count > 1, u.sum(0) / (count - 1), torch.nan)
    spread = torch.where(finite, (u - u.sum(0) / count).square(), 0).sum(0)
    stderr = torch.where(count > 2, (count / (count - 1) * spread).sqrt() / (count - 2), torch.nan)
    ranks = (torch.arange(quantiles, dtype=torch.float64, device=rows.device) + 0.5) / quantiles
    known = torch.where(finite, rows, torch.nan)
    sketch = (
        torch.nanquantile(known, ranks, dim=0) if len(rows) else known.new_full((quantiles, known.shape[1]), torch.nan)
    )
    shape = values.shape[1:]
    found = {"count": count, "mean": mean, "variance": variance, "variance_stderr": stderr}
    return {k: v.reshape(shape) for k, v in found.items()} | {"sketch": sketch.reshape(quantiles, *shape)}


def pooled_variance(variance: Array, stderr: Array, count: Array) -> tuple[Array, Array]:
    """Over blocks (last axis): variances (..., blocks) with their errors and numbers of runs.

    A block of two runs has a variance but no error; it is left out unless there are only such.
    """
    usable = np.isfinite(stderr) | (np.isfinite(variance) & ~np.isfinite(stderr).any(-1, keepdims=True))
    weight = np.where(usable, np.maximum(count - 1, 0), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = weight / weight.sum(-1, keepdims=True)
        value = np.where(weight > 0, weight * variance, 0).sum(-1)
        error = np.sqrt(np.where(weight > 0, (weight * stderr) ** 2, 0).sum(-1))
    known = np.isfinite(weight).all(-1) & (weight.sum(-1) > 0)
    return np.where(known, value, np.nan), np.where(known, error, np.nan)


def pooled_moments(count: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Over blocks (last axis): number of values, mean and unbiased variance of all together, exactly."""
    total = count.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(count > 0, count * mean, 0).sum(-1) / total
        within = np.where(count > 1, (count - 1) * variance, 0).sum(-1)
        between = np.where(count > 0, count * (mean - centre[..., None]) ** 2, 0).sum(-1)
        return total, centre, np.where(total > 1, (within + between) / (total - 1), np.nan)


def pooled_quantiles(sketch: Array, count: Array, quantiles: Array) -> Array:
    """Quantiles (..., quantile) from sketches (..., blocks, points); count (..., blocks): values in each block."""
    weight = np.where(np.isfinite(sketch), (count / sketch.shape[-1])[..., None], 0)
    values, weight = (a.reshape(*a.shape[:-2], -1) for a in (sketch, weight))
    order = np.argsort(values, axis=-1)  # what is not finite comes last
    values, weight = np.take_along_axis(values, order, -1), np.take_along_axis(weight, order, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks = (weight.cumsum(-1) - weight / 2) / weight.sum(-1, keepdims=True)
    found = np.full((*values.shape[:-1], len(quantiles)), np.nan)
    for where in np.ndindex(values.shape[:-1]):
        seen = weight[where] > 0
        if seen.any():
            found[where] = np.interp(quantiles, ranks[where][seen], values[where][seen])
    return found
