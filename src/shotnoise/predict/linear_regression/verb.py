"""`predict.regression`: exact mean, variance and loss of SGD on a linear regression, for all batch sizes at once."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results, schedules
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression import epochs, fourth
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares, fractions, least_squares
from shotnoise.predict.linear_regression.quantities import Combination, Quantities
from shotnoise.predict.linear_regression.recursion import moments
from shotnoise.predict.linear_regression.subspace import Reduced, reduce
from shotnoise.sampling import CyclicEpochs, Online, ReshuffledEpochs, Sampling, WithoutReplacement

LARGEST = 1e150  # variances beyond it are reported as an overflow: their squares would no longer be numbers
LEAST_RUNS = 100
FRESH = "exact moments of linear regression with fresh batches"


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
    combination: ArrayLike | None = None,
    intercept: bool = False,
    l2: float = 0.0,
    weights: ArrayLike | None = None,
    momentum: float = 0.0,
    loss_variance: bool = False,
    runs: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """What SGD from w0 does on (1/n) sum_i s_i 1/2 ||W x_i - y_i||^2 + (l2/2) ||W||^2, exactly, at steps 0 .. steps.

    X: (n, p). y: (n,) or (n, k). w0: (p,) or (k, p); with intercept=True one more entry for it, the last.
    learning_rate: a number, one value per update, or a function of t. momentum: PyTorch's, m <- mu m + g, w <- w - a m.
    sampling: WithoutReplacement() (default) or WithReplacement(), a fresh batch at every step; or epochs (see below).
    projection: B (q, p) for the variance of B g instead of g (applied to each row of the gradient).
    combination: A_i, (n, q, p), for E||sum_i A_i grad L_i(w_t)||^2 with grad L_i = s_i r_i x_i + l2 w (each row).
    weights: s (n,), default 1; a batch gradient is (1/b) sum s_i g_i.
    loss_variance: also var L(w_t), from fourth moments: about 6 n (k p)^4 operations per step and batch size (twice the
    p under momentum). Refused where that is more than 5e12 in all.

    Returns, by (batch_size, step), with kappa beside batch_size: `gradient_variance` E||B g_t||^2 - ||E B g_t||^2
    given w0, `full_gradient_variance` the same of the full gradient at w_t, `loss` E L(w_t), `gradient_norm_sq`
    E||grad L(w_t)||^2, `weights_variance` tr cov(w_t), `combined_gradient_norm_sq` and `loss_variance` where asked
    for; by step, `gradient_variance_leading`, the coefficient of kappa in the gradient variance (its law for large
    batches, kappa = 1/b with replacement, (n - b) / (b (n - 1)) without); and `mean_weights` (step, parameter), the
    same for all batch sizes. In units of the squared gradient (the loss, the weights). Exact up to rounding: no
    assumption but fresh batches. Where the moments overflow, `overflow_step` says from which step on the values are
    infinite. Costs O(steps n p^2) per batch size; with n < p O(steps n^3).

    Epochs (ReshuffledEpochs, CyclicEpochs over the draw of its order): exact by the moments for every set of used
    samples, or by all orders, which is affordable up to some 15 to 20 samples; else give runs=R for estimates from R
    random orders, which come with standard errors. `mean_weights` then depends on the batch size too, and
    there is no leading coefficient.

    Raises InputError or DataError for data, weights, rates or batches that do not fit.
    Source: variance paper sec. 3.1 and B.1, with Lemma 2 corrected (its printed factor and a sign are wrong).

    >>> r = regression([[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], [1.0], 0.25, batch_sizes=[1, 2, 3], steps=1)
    >>> r["gradient_variance"].values[:, 1].tolist()  # 13/6, 23/48, 0
    [2.1666666666666665, 0.47916666666666663, 0.0]
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    problem = least_squares(X, y, intercept=intercept, weights=weights, l2=l2)
    _warn_of_mistakes(problem, intercept)
    start = starting_weights(w0, problem)
    rates = schedules.values(learning_rate, steps)
    check_momentum(momentum)
    check_sampling(sampling, batch_sizes, problem.n)
    matrix = _projection(projection, problem.p)
    combined = None if combination is None else Combination.of(problem, combination)
    reduced = reduce(problem, start, rates, momentum)
    quantities = Quantities.of(reduced, matrix, combined)
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
            found, theory = _epochs(
                problem, start, quantities, sampling, batch_sizes, rates, momentum, runs, seed, matrix, loss_variance
            )
        elif runs is not None:
            raise InputError(f"runs={runs}: with {sampling!r} the answer is exact; runs are for epochs")
        else:
            found, theory = _fresh(quantities, sampling, batch_sizes, rates, momentum), FRESH
            if loss_variance:
                found["loss_variance"] = _loss_variance(reduced, sampling, batch_sizes, rates, momentum)
    attributes = {
        "theory": theory,
        "sampling": str(sampling),
        "n_samples": problem.n,
        "parameters": start.size,
        "l2": problem.l2,
        "momentum": float(momentum),
        "projection": "none" if matrix is None else f"{matrix.shape[0]} x {matrix.shape[1]}",
    }
    kappas = np.array([sampling.variance_factor(b, problem.n) for b in batch_sizes])
    return _dataset(found, batch_sizes, kappas, rates, attributes)


def _warn_of_mistakes(problem: LeastSquares, intercept: bool) -> None:
    """What computes well but can hardly be meant."""
    features = problem.x[:, : problem.p - intercept]
    if problem.n < 3:
        return
    for j, column in enumerate(features.T):
        if np.ptp(column) and (problem.y == column[:, None]).all(0).any():
            warnings.warn(f"column {j} of X is the target itself; leave it out of the features", stacklevel=3)
        if intercept and not np.ptp(column):
            warnings.warn(
                f"column {j} of X is constant, and intercept=True adds another: the loss then has a flat direction. "
                "The prediction holds, the weights along it keep their start; drop the column",
                stacklevel=3,
            )


def _fresh(
    quantities: Quantities, sampling: Sampling, batch_sizes: Sequence[int], rates: Array, momentum: float
) -> dict[str, Array]:
    reduced = quantities.reduced
    kappas = np.array([sampling.variance_factor(b, reduced.problem.n) for b in batch_sizes])
    along = moments(reduced.problem, reduced.coordinates, rates, kappas, momentum)
    found = _stacked(quantities.at(t, here) for t, here in enumerate(along))
    mean = found.pop("mean_weights")
    leading = found["gradient_variance"][:, -1]
    split = {name: values[:, :-1].T for name, values in found.items()}
    return split | {"gradient_variance_leading": leading, "mean_weights": mean}


def _epochs(
    problem: LeastSquares,
    start: Array,
    quantities: Quantities,
    sampling: epochs.Epochs,
    batch_sizes: Sequence[int],
    rates: Array,
    momentum: float,
    runs: int | None,
    seed: int,
    projection: Array | None,
    loss_variance: bool,
) -> tuple[dict[str, Array], str]:
    if runs is None and loss_variance:
        raise InputError(
            f"loss_variance=True has no exact answer here for {sampling!r}; give runs=10_000 to estimate it"
        )
    if runs is not None and runs < LEAST_RUNS:
        raise InputError(f"runs={runs}: at least {LEAST_RUNS}, for standard errors that mean something")
    per_size = []
    for b in batch_sizes:
        if runs is None:
            inner = quantities.reduced.problem
            epochs.check_cost(inner, sampling, b, len(rates), momentum)
            along = epochs.exact(inner, sampling, quantities.reduced.coordinates, rates, b, momentum)
            per_size.append(_stacked(quantities.at(t, here) for t, here in enumerate(along)))
        else:
            combined = quantities.combination
            per_size.append(_stacked(epochs.estimated(problem, sampling, start, rates, b, momentum, runs=runs,
            seed=seed,
                                                      projection=projection, combination=combined)))  # fmt: skip
    found = {name: np.stack([own[name][:, 0] for own in per_size]) for name in per_size[0]}
    if runs is None:
        return found, "exact moments of linear regression in epochs, over all used sets or all orders"
    if not loss_variance:
        del found["loss_variance"], found["loss_variance_stderr"]
    return found, f"estimated from {runs} random orders, seed {seed}"


def _loss_variance(
    reduced: Reduced, sampling: Sampling, batch_sizes: Sequence[int], rates: Array, momentum: float
) -> Array:
    problem = reduced.problem
    fourth.check_cost(problem, len(batch_sizes), len(rates), momentum)
    chances = [fourth.factors(sampling, b, problem.n) for b in batch_sizes]
    return np.array(list(fourth.loss_variances(problem, reduced.coordinates, rates, chances, momentum))).T


def _stacked(rows: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """Dictionaries of one step each, laid along a new first axis."""
    collected: dict[str, list[Array]] = {}
    for row in rows:
        for name, values in row.items():
            collected.setdefault(name, []).append(values)
    return {name: np.array(values) for name, values in collected.items()}


def _dataset(
    found: dict[str, Array], batch_sizes: Sequence[int], kappas: Array, rates: Array, attributes: dict[str, Any]
) -> xr.Dataset:
    mean = found.pop("mean_weights")
    coordinates: dict[str, Any] = {
        "batch_size": np.asarray(batch_sizes, np.int64),
        "kappa": ("batch_size", kappas),
        "step": np.arange(len(rates) + 1),
        "parameter": np.arange(mean.shape[-1]),
    }
    overflow = _overflow(found)
    beyond = (overflow >= 0)[:, None] & (coordinates["step"] >= overflow[:, None])
    variables: dict[str, Any] = {}
    for name, values in found.items():
        by_batch = values.ndim == 2
        variables[name] = (("batch_size", "step"), np.where(beyond, np.inf, values)) if by_batch else ("step", values)
    variables["mean_weights"] = (("batch_size", "step", "parameter")[-mean.ndim :], mean)
    if (overflow >= 0).any():
        variables["overflow_step"] = ("batch_size", overflow)
    return results.dataset(variables, coordinates, attributes)


def _overflow(found: dict[str, Array]) -> Array:
    """The first step at which each batch size is beyond numbers, -1 for never."""
    by_batch = [values for values in found.values() if values.ndim == 2]
    lost = ~np.isfinite(np.array(by_batch)).all(0) | ~(found["weights_variance"] < LARGEST)
    return np.where(lost.any(1), lost.argmax(1), -1)


def starting_weights(w0: ArrayLike, problem: LeastSquares, *, exact: bool = False) -> Array:
    """w0 as (k, p), checked."""
    start = fractions(w0) if exact else np.asarray(w0, np.float64)
    outputs = problem.y.shape[1]
    if start.shape not in {(outputs, problem.p), (problem.p,) if outputs == 1 else None}:
        raise InputError(
            f"w0: {problem.p} weights for each of {outputs} outputs are needed, ({outputs}, {problem.p}); got an array "
            f"{start.shape} (with intercept=True the last entry is the intercept)"
        )
    if not np.isfinite(start.astype(float)).all():
        raise InputError("w0 is not finite")
    return start.reshape(outputs, problem.p)


def check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum}: at least 0 and below 1")


def check_sampling(sampling: Sampling, batch_sizes: Sequence[int], n: int) -> None:
    if isinstance(sampling, Online):
        raise InputError("Online() needs a population; a data set is sampled with or without replacement")
    sampling.check_all(batch_sizes, n)


def _projection(projection: ArrayLike | None, p: int) -> Array | None:
    if projection is None:
        return None
    matrix: Any = np.atleast_2d(np.asarray(projection, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != p or not np.isfinite(matrix).all():
        raise InputError(f"projection: a finite matrix (q, {p}) is needed; got {matrix.shape}")
    return matrix
