"""Linear regression in epochs, where successive batches depend on each other and the closed recursions fail.

A new order per epoch: given the set U of samples used in the epoch, the next batch is a uniform subset of the others.
The first two moments of z = (w, [m,] 1), for each U, close: exact, at the cost of all subsets. One order for ever: all
orders are trained. Either is out of reach beyond some twenty samples; there runs of random orders estimate the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares
from shotnoise.predict.linear_regression.quantities import Combination
from shotnoise.predict.linear_regression.recursion import Moments
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs

OPERATIONS = 2e11
NUMBERS = 2**27  # held at a time
Epochs = ReshuffledEpochs | CyclicEpochs


def check_cost(problem: LeastSquares, sampling: Epochs, b: int, steps: int, momentum: float) -> None:
    """Raise InputError where the exact answer would take too long, or too much memory."""
    n, k = problem.n, problem.y.shape[1]
    per_epoch, q = n // b, problem.p * (2 if momentum else 1) + 1
    if isinstance(sampling, CyclicEpochs):
        orders = float(np.prod([float(comb(n - j * b, b)) for j in range(per_epoch)]))
        what, operations, numbers = (
            f"{orders:.2g} orders",
            4 * orders * steps * k * problem.p * b,
            orders * b * problem.p,
        )
    else:
        states = [float(comb(n, j * b)) for j in range(per_epoch + 1)]
        moves = sum(s * comb(n - j * b, b) for j, s in enumerate(states[:-1]))
        what, operations = f"{max(states):.2g} sets of used samples", 4 * moves * steps / per_epoch * k * q**3
        numbers = 3 * max(states) * k * q**2 + 2.0 * comb(n, b) * k * q**2
    if operations > OPERATIONS or numbers > NUMBERS:
        raise InputError(
            f"{sampling!r} with n={n} and batch_size={b} has {what}: exact moments would take about {operations:.1g} "
            f"operations and {8 * numbers / 2**30:.1g} GiB (the limits are {OPERATIONS:.0g} and "
            f"{8 * NUMBERS / 2**30:.0f} GiB). Give runs=10_000 to estimate them from so many random orders, with "
            "standard errors, or draw fresh batches (WithoutReplacement)"
        )


def exact(
    problem: LeastSquares, sampling: Epochs, w0: Array, rates: Array, b: int, momentum: float
) -> Iterator[Moments]:
    """The moments at steps 0, 1, ..., len(rates) for one batch size, all arrays with a leading axis of one."""
    if isinstance(sampling, ReshuffledEpochs):
        return _over_subsets(problem, w0, rates, b, momentum)
    return _over_orders(problem, w0, rates, b, momentum)


def _over_orders(problem: LeastSquares, w0: Array, rates: Array, b: int, momentum: float) -> Iterator[Moments]:
    orders = _orders(problem.n, b)
    for weights, gradients in trajectories(
        problem, w0, rates, lambda t: orders[:, t % orders.shape[1]], momentum, len(orders)
    ):
        yield Moments(weights.mean(0)[None], _covariance(weights)[None], _covariance(gradients)[None])


def _orders(n: int, b: int) -> Array:
    """All ways to cut n samples into n // b batches one after the other, (orders, n // b, b)."""
    batches = np.array(list(combinations(range(n), b)))
    members = _members(batches, n)
    chosen, used = np.zeros((1, 0), np.int64), np.zeros((1, n), bool)
    for _ in range(n // b):
        rows, following = np.nonzero(~(used.astype(np.float32) @ members.T.astype(np.float32)).astype(bool))
        chosen = np.column_stack([chosen[rows], following])
        used = used[rows] | members[following]
    return batches[chosen]


def _covariance(values: Array) -> Array:
    """Of each row, over all runs (divisor their number): values (R, k, p), (k, p, p)."""
    centred = values - values.mean(0)
    return np.einsum("rkp,rkq->kpq", centred, centred) / len(values)


def trajectories(
    problem: LeastSquares, w0: Array, rates: Array, batch: Callable[[int], Array], momentum: float, runs: int
) -> Iterator[tuple[Array, Array]]:
    """At steps 0 .. len(rates) the weights of all runs and the gradients on batch(t) (runs, b), both (runs, k, p)."""
    weights, velocity = np.tile(w0, (runs, 1, 1)), np.zeros((runs, *w0.shape))
    for t in range(len(rates) + 1):
        drawn = batch(t)
        x, y, s = problem.x[drawn], problem.y[drawn], problem.s[drawn]
        residuals = (weights @ x.swapaxes(1, 2) - y.swapaxes(1, 2)) * s[:, None]
        gradients = residuals @ x / drawn.shape[1] + problem.l2 * weights
        yield weights, gradients
        if t < len(rates):
            velocity = momentum * velocity + gradients
            weights = weights - rates[t] * velocity


def _over_subsets(problem: LeastSquares, w0: Array, rates: Array, b: int, momentum: float) -> Iterator[Moments]:
    n, per_epoch = problem.n, problem.n // b
    maps = _Maps.of(problem, w0.shape, momentum)
    batches = _members(np.array(list(combinations(range(n), b))), n)
    levels = [_members(np.array(list(combinations(range(n), j * b)), np.int64), n) for j in range(per_epoch)]
    z = np.concatenate([w0, np.zeros((len(w0), maps.size - 1 - problem.p)), np.ones((len(w0), 1))], axis=1)
    second = (z[:, :, None] * z[:, None, :])[None]  # E z z^T on each used set, (sets, k, q, q)
    for t in range(len(rates) + 1):
        level = t % per_epoch
        used = levels[level]
        yield maps.moments(problem, second, ~used, b)
        if t == len(rates):
            return
        steps = maps.steps(problem, batches / b, rates[t])
        last = level + 1 == per_epoch
        following = levels[0] if last else levels[level + 1]
        place = {sample_set.tobytes(): row for row, sample_set in enumerate(following)}
        moved = np.zeros((len(following), *second.shape[1:]))
        for own, mask in zip(second, used, strict=True):
            free = np.flatnonzero(~(batches & mask).any(1))
            step = steps[free]
            sent = step @ own @ step.swapaxes(-1, -2) / len(free)
            if last:  # the epoch ends, and all samples are free again
                moved[0] += sent.sum(0)
            else:
                moved[[place[sample_set.tobytes()] for sample_set in batches[free] | mask]] += sent
        second = moved


@dataclass(frozen=True)
class _Maps:
    """r_i = v_i z: v (k, n, q), q numbers to z = (w, [m,] 1)."""

    v: Array
    momentum: float
    size: int

    @classmethod
    def of(cls, problem: LeastSquares, shape: tuple[int, ...], momentum: float) -> "_Maps":
        (k, p), n = shape, problem.n
        size = p * (2 if momentum else 1) + 1
        v = np.zeros((k, n, size))
        v[:, :, :p], v[:, :, -1] = problem.x, -problem.y.T
        return cls(v, momentum, size)

    def gradients(self, problem: LeastSquares, weighting: Array) -> Array:
        """sum_i weighting_i s_i r_i x_i as a matrix on z: weighting (m, n), (m, k, p, q)."""
        rows = (weighting * problem.s)[:, :, None] * problem.x  # (m, n, p)
        return np.einsum("mnp,knq->mkpq", rows, self.v, optimize=True)

    def steps(self, problem: LeastSquares, weighting: Array, rate: float) -> Array:
        """The update on z with each batch, (m, k, q, q)."""
        p, mu = problem.p, self.momentum
        gradient = self.gradients(problem, weighting)
        gradient[..., :p] += problem.l2 * np.eye(p)
        found = np.zeros((*gradient.shape[:2], self.size, self.size))
        velocity = gradient
        if mu:
            velocity[..., p : 2 * p] += mu * np.eye(p)
            found[..., p : 2 * p, :] = velocity
        found[..., :p, :] = -rate * velocity
        found[..., :p, :p] += np.eye(p)
        found[..., -1, -1] = 1.0
        return found

    def moments(self, problem: LeastSquares, second: Array, free: Array, b: int) -> Moments:
        """From E z z^T on every used set, whose last entry is its probability; free (sets, n): who is left."""
        p, left = problem.p, int(free[0].sum())
        total = second.sum(0)
        mean = total[:, :p, -1]
        covariance = total[:, :p, :p] - mean[:, :, None] * mean[:, None, :]
        gradient = self.gradients(problem, free / left)
        kappa = (left - b) / (b * (left - 1)) if left > 1 else 0.0
        scatter = np.einsum("knq,mkqr,knr->mkn", self.v, second, self.v, optimize=True)
        scatter = np.einsum("mkn,mn,n->kn", scatter, free / left, problem.s**2)
        spread = np.einsum("kn,np,nr->kpr", scatter, problem.x, problem.x, optimize=True)
        spread = spread - np.einsum("mkpq,mkqr,mksr->kps", gradient, second, gradient, optimize=True)
        gradient[..., :p] += problem.l2 * np.eye(p)
        expected = np.einsum("mkpq,mkq->kp", gradient, second[..., -1])
        squared = np.einsum("mkpq,mkqr,mksr->kps", gradient, second, gradient, optimize=True)
        around = squared + kappa * spread - expected[:, :, None] * expected[:, None, :]
        return Moments(mean[None], covariance[None], around[None])


def _members(sets: Array, n: int) -> Array:
    """Which samples are in each set: (m, size) of indices to (m, n) booleans."""
    found = np.zeros((len(sets), n), bool)
    np.put_along_axis(found, sets.reshape(len(sets), -1), True, axis=1)
    return found


def estimated(
    problem: LeastSquares,
    sampling: Epochs,
    w0: Array,
    rates: Array,
    b: int,
    momentum: float,
    *,
    runs: int,
    seed: int,
    projection: Array | None,
    combination: Combination | None,
) -> Iterator[dict[str, Array]]:
    """The quantities at every step from independent runs, each with its standard error; arrays (1,)."""
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence((seed, b)).spawn(runs)]
    draws = sampling.draws(b, problem.n, streams)
    back = np.eye(problem.p) if projection is None else projection.T
    for weights, gradients in trajectories(problem, w0, rates, lambda t: draws(1)[:, 0], momentum, runs):
        full = problem.gradient(weights)
        found = _mean("loss", problem.loss(weights)) | _mean("gradient_norm_sq", (full**2).sum((1, 2)))
        if combination is not None:
            combined = weights @ combination.matrix.T - combination.shift
            found |= _mean("combined_gradient_norm_sq", (combined**2).sum((1, 2)))
        found |= _variance("gradient_variance", gradients @ back) | _variance("full_gradient_variance", full @ back)
        found |= _variance("weights_variance", weights) | {"mean_weights": weights.mean(0).reshape(1, -1)}
        yield found | _variance("loss_variance", problem.loss(weights)[:, None])


def _mean(name: str, values: Array) -> dict[str, Array]:
    error = values.std(ddof=1) / np.sqrt(len(values))
    return {name: np.array([values.mean()]), f"{name}_stderr": np.array([error])}


def _variance(name: str, vectors: Array) -> dict[str, Array]:
    """Total variance over the runs (divisor R - 1) and its standard error."""
    runs = len(vectors)
    squares = ((vectors - vectors.mean(0)) ** 2).reshape(runs, -1).sum(1)
    error = squares.std(ddof=1) / np.sqrt(runs)
    return {name: np.array([squares.sum() / (runs - 1)]), f"{name}_stderr": np.array([error])}
