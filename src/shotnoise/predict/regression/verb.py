"""`predict.regression`: exact mean, variance and loss of SGD on a linear regression, for all batch sizes at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results, schedules
from shotnoise.errors import InputError
from shotnoise.predict.regression.least_squares import Array, LeastSquares, least_squares
from shotnoise.predict.regression.recursion import Moments, moments
from shotnoise.predict.regression.subspace import Reduced, reduce
from shotnoise.sampling import CyclicEpochs, Online, ReshuffledEpochs, Sampling, WithoutReplacement

LARGEST = 1e150  # moments beyond it are reported as an overflow: their squares would no longer be numbers


def regression(
    X: ArrayLike,
    y: ArrayLike,
    w0: ArrayLike,
    learning_rate: schedules.LearningRate,
    batch_sizes: Sequence[int],
    steps: int,
    *,
    sampling: Sampling | None = None,
    projection: ArrayLike | None = None,
    intercept: bool = False,
    l2: float = 0.0,
    weights: ArrayLike | None = None,
    momentum: float = 0.0,
) -> xr.Dataset:
    """What SGD from w0 does on (1/n) sum_i s_i 1/2 ||W x_i - y_i||^2 + (l2/2) ||W||^2, exactly, at steps 0 .. steps.

    X: (n, p). y: (n,) or (n, k). w0: (p,) or (k, p); with intercept=True one more entry for it, the last.
    learning_rate: a number, one value per update, or a function of t. momentum: PyTorch's, m <- mu m + g, w <- w - a m.
    sampling: WithReplacement() or WithoutReplacement() (default): a fresh batch at every step.
    projection: B (q, p) for the variance of B g instead of g (applied to each row of the gradient).
    weights: s (n,), default 1; a batch gradient is (1/b) sum s_i g_i.

    Returns, by (batch_size, step): `gradient_variance` E||B g_t||^2 - ||E B g_t||^2 given w0, `full_gradient_variance`
    the same of the full gradient at w_t, `loss` E L(w_t), `gradient_norm_sq` E||grad L(w_t)||^2, `weights_variance`
    tr cov(w_t); and `mean_weights` (step, parameter), which do not depend on the batch size. In units of the squared
    gradient (the loss, the weights). Everything is exact up to rounding: no assumption but fresh batches.
    Where the second moments overflow, `overflow_step` says from which step on the values are infinite.
    Costs O(steps n p^2) per batch size; with n < p O(steps n^3).

    Raises InputError or DataError for data, weights, rates or batches that do not fit.
    Source: variance paper sec. 3.1 and B.1, with Lemma 2 corrected (its printed factor and a sign are wrong).

    >>> r = regression([[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], [1.0], 0.25, batch_sizes=[1, 2, 3], steps=1)
    >>> r["gradient_variance"].values[:, 1].tolist()  # 13/6, 23/48, 0
    [2.1666666666666665, 0.47916666666666663, 0.0]
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    problem = least_squares(X, y, intercept=intercept, weights=weights, l2=l2)
    start = _start(w0, problem)
    rates = schedules.values(learning_rate, steps)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum}: at least 0 and below 1")
    kappas = _variance_factors(sampling, batch_sizes, problem.n)
    matrix = _projection(projection, problem.p)
    reduced = reduce(problem, start, rates, momentum)
    with np.errstate(over="ignore", invalid="ignore"):
        found, overflow = _along(reduced, rates, kappas, momentum, matrix)
    coordinates = {
        "batch_size": np.asarray(batch_sizes, np.int64),
        "step": np.arange(steps + 1),
        "parameter": np.arange(start.size),
    }
    attributes = {
        "theory": "exact moments of linear regression with fresh batches",
        "sampling": str(sampling),
        "n_samples": problem.n,
        "parameters": start.size,
        "l2": problem.l2,
        "momentum": float(momentum),
        "projection": "none" if matrix is None else f"{matrix.shape[0]} x {matrix.shape[1]}",
    }
    by_batch = ("batch_size", "step")
    variables: dict[str, Any] = {name: (by_batch, values) for name, values in found.items() if name != "mean_weights"}
    variables["mean_weights"] = (("step", "parameter"), found["mean_weights"])
    if (overflow >= 0).any():
        variables["overflow_step"] = ("batch_size", overflow)
    return results.describe(xr.Dataset(variables, coordinates, attributes))


def _along(
    reduced: Reduced, rates: Array, kappas: Array, momentum: float, projection: Array | None
) -> tuple[dict[str, Array], Array]:
    """The variables by (batch size, step), and the step at which each batch size overflowed (-1: never)."""
    count = len(rates) + 1
    found = {
        name: np.full((len(kappas), count), np.inf)
        for name in ("gradient_variance", "full_gradient_variance", "loss", "gradient_norm_sq", "weights_variance")
    }
    found["mean_weights"] = np.full((count, reduced.start.size), np.nan)
    overflow = np.full(len(kappas), -1)
    for t, at in enumerate(moments(reduced.problem, reduced.coordinates, rates, kappas, momentum)):
        size = np.abs(at.covariance).max((1, 2, 3)) + np.abs(at.mean).max()
        fits = np.isfinite(size) & (size < LARGEST)
        overflow[(overflow < 0) & ~fits] = t
        here = _at(reduced, at, t, kappas, projection)
        for name, values in here.items():
            if name == "mean_weights":
                found[name][t] = values
            else:
                found[name][overflow < 0, t] = values[overflow < 0]
        if (overflow >= 0).all():
            break
    return found, overflow


def _at(reduced: Reduced, at: Moments, t: int, kappas: Array, projection: Array | None) -> dict[str, Array]:
    problem, hessian = reduced.problem, reduced.problem.hessian
    basis = np.eye(problem.p) if reduced.basis is None else reduced.basis
    map_ = basis.T if projection is None else basis.T @ projection.T  # from coordinates, (p', q)
    if reduced.basis is not None and projection is None:
        map_ = np.eye(problem.p)  # lengths are those of the coordinates
    moved = hessian @ at.covariance @ hessian
    full = np.einsum("pq,bkpr,rq->b", map_, moved, map_)
    noise = np.einsum("pq,bkpr,rq->b", map_, at.noise, map_)
    gradient = problem.gradient(at.mean)
    rest = reduced.rest[t]
    return {
        "gradient_variance": kappas * noise + full,
        "full_gradient_variance": full,
        "loss": problem.loss(at.mean) + 0.5 * problem.l2 * (rest**2).sum()
        + 0.5 * np.einsum("pr,bkpr->b", hessian, at.covariance),
        "gradient_norm_sq": (gradient**2).sum() + (problem.l2 * rest**2 * problem.l2).sum()
        + np.einsum("bkpp->b", moved),
        "weights_variance": np.einsum("bkpp->b", at.covariance),
        "mean_weights": (at.mean @ basis.T + rest).reshape(-1),
    }  # fmt: skip


def _start(w0: ArrayLike, problem: LeastSquares) -> Array:
    start = np.asarray(w0, np.float64)
    outputs = problem.y.shape[1]
    if start.shape not in {(outputs, problem.p), (problem.p,) if outputs == 1 else None}:
        raise InputError(
            f"w0: {problem.p} weights for each of {outputs} outputs are needed, ({outputs}, {problem.p}); got an array "
            f"{start.shape} (with intercept=True the last entry is the intercept)"
        )
    if not np.isfinite(start).all():
        raise InputError("w0 is not finite")
    return start.reshape(outputs, problem.p)


def _variance_factors(sampling: Sampling, batch_sizes: Sequence[int], n: int) -> Array:
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(
            f"{sampling!r}: successive batches are not independent, so these recursions do not hold; use simulate, or "
            "WithoutReplacement() for fresh batches"
        )
    if isinstance(sampling, Online):
        raise InputError("Online() needs a population; a data set is sampled with or without replacement")
    sampling.check_all(batch_sizes, n)
    return np.array([sampling.variance_factor(b, n) for b in batch_sizes])


def _projection(projection: ArrayLike | None, p: int) -> Array | None:
    if projection is None:
        return None
    matrix: Any = np.atleast_2d(np.asarray(projection, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != p or not np.isfinite(matrix).all():
        raise InputError(f"projection: a finite matrix (q, {p}) is needed; got {matrix.shape}")
    return matrix
