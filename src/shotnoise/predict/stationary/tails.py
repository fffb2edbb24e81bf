"""How heavy the tail of the stationary law is: P(|w| > r) falls as r^-beta, and moments exist below the order beta.

One dimension, Gaussian features of variance a: w' = (1 - t) w + noise, t = lambda s ~ Gamma(S/2, rate theta = S / (2 a
lambda)), and beta is the positive root of E|1 - t|^beta = 1 (Kesten, Goldie), whatever the label noise, as long as that
is not zero and has a moment of that order. E ln|1 - t| < 0 is needed, and enough, for a stationary law. Quadrature in
logs: t = 1 / (1 + e^-z) below one and t = 1 + e^z above it, both by the trapezoidal rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_sampling
from shotnoise.predict.stationary.arguments import Array, Grid, numbers
from shotnoise.sampling import Sampling, WithoutReplacement, WithReplacement

NODES = 4001  # on either side of t = 1, more for large batches
MOST_BATCHES = 200_000  # of a data set that are gone through


def tail_index(
    feature_variance: float, learning_rate: float | Sequence[float], batch_size: int | Sequence[int]
) -> xr.Dataset:
    """The tail index of the stationary law of one weight, exact, with the paper's and the continuous-time formula.

    Gaussian features of variance a, fresh samples, label noise of any size but zero, momentum 0. Returns over
    learning_rate and batch_size: `tail_index` beta; `tail_index_paper`, 2 S / (a lambda) - S; `tail_index_continuous`,
    2 S / (a lambda) + 1; `highest_moment`, the largest whole order of a moment that exists; `lyapunov_exponent`, E ln|1
    - t|; `status`, "diverges" where that is not negative: there is no stationary law and the index is NaN. A law may
    exist without a variance (beta <= 2), beyond the `critical_learning_rate`.

    The paper's formula is exact at beta = 2, the limit of the variance, and only there: within 10 % near it (and
    for S = 1 at almost any rate), 10-60 % too large, too light a tail, for beta much above 2, 20 % to all of it too
    small below 1, and negative for a lambda > 2 where a law may still exist. The continuous-time one is right
    nowhere: even for lambda to 0 the tail is made of large deviations, beta -> 1.7956 S / (a lambda).
    Source: Proposition 7, eq. 90-97 of Ziyin et al. (2022); Kesten (1973), Goldie (1991). Error of the root about
    1e-10.

    >>> r = tail_index(1.0, 0.5, 4)
    >>> [round(float(r[name]), 6) for name in ("tail_index", "tail_index_paper", "tail_index_continuous")]
    [9.978384, 12.0, 17.0]
    """
    a = numbers("feature_variance", feature_variance)
    if a.ndim or not a > 0:
        raise InputError(
            f"feature_variance={feature_variance}: one positive number; see `tail_index_matrix` for several"
        )
    grid = Grid.of(learning_rate, batch_size, 1)
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: a number or a sequence; see `tail_index_matrix` for matrices")
    strength = float(a) * grid.rates.multiples[:, None]
    sizes = grid.sizes[None, :].astype(np.float64)
    shape = (strength.size, sizes.size)
    index, exponent = np.empty(shape), np.empty(shape)
    for place in np.ndindex(shape):
        growth = _Growth.of(float(strength[place[0], 0]), float(sizes[0, place[1]]))
        index[place], exponent[place] = growth.root(), growth.exponent
    found = {
        "tail_index": grid.variable(index),
        "tail_index_paper": grid.variable(2 * sizes / strength - sizes),
        "tail_index_continuous": grid.variable(2 * sizes / strength + 1),
        "highest_moment": grid.variable(highest_moment(index)),
        "lyapunov_exponent": grid.variable(exponent),
        "status": grid.variable(np.where(exponent < 0, STATIONARY, DIVERGES)),
    }
    return results.dataset(found, grid.coordinates, {"theory": "exact tail index of an affine recursion (Kesten)"})


def tail_index_data(
    x: ArrayLike,
    learning_rate: float | Sequence[float],
    batch_size: int | Sequence[int],
    *,
    sampling: Sampling | None = None,
) -> xr.Dataset:
    """The tail index of one weight trained on these samples, exact, by going through all batches.

    x (n,): the one feature; fresh batches, sampling default WithoutReplacement(). Returns what `tail_index` returns,
    the formulas of the population left out. Infinite where no batch makes |1 - lambda s| exceed 1: then the law is
    bounded and has no tail, as at any small enough rate; at a given rate heavy tails need a batch that is large enough.
    Up to 200,000 different batches; beyond that an InputError says so.

    >>> tail_index_data([0.5, 1.0, 2.0], [0.2, 0.6], 1)["tail_index"].values.round(3).tolist()
    [inf, 2.343]
    """
    given = numbers("x", x)
    if given.ndim != 1 or not given.any():
        raise InputError(f"x: one feature, (n,), not all zero; got an array {given.shape}")
    sampling = WithoutReplacement() if sampling is None else sampling
    grid = Grid.of(learning_rate, batch_size, 1)
    if grid.rates.kind == "matrix" or not isinstance(sampling, (WithReplacement, WithoutReplacement)):
        raise InputError("learning_rate: a number or a sequence; sampling: WithReplacement() or WithoutReplacement()")
    check_sampling(sampling, [int(S) for S in grid.sizes], len(given))
    shape = (len(grid.rates.multiples), len(grid.sizes))
    index, exponent = np.empty(shape), np.empty(shape)
    for j, S in enumerate(grid.sizes):
        squares, log_weights = _batches(given**2, int(S), sampling)
        for i, c in enumerate(grid.rates.multiples):
            with np.errstate(divide="ignore"):  # a batch may take the weight to its place at once
                growth = _Growth(log_weights, np.log(np.abs(1 - c * squares)))
            exponent[i, j] = growth.exponent
            index[i, j] = growth.root() if (growth.log_growth > 0).any() else np.inf
    found = {
        "tail_index": grid.variable(index),
        "highest_moment": grid.variable(highest_moment(index)),
        "lyapunov_exponent": grid.variable(exponent),
        "status": grid.variable(np.where(exponent < 0, STATIONARY, DIVERGES)),
    }
    attributes = {
        "theory": "exact tail index of an affine recursion (Kesten), all batches",
        "sampling": str(sampling),
        "n_samples": len(given),
    }
    return results.dataset(found, grid.coordinates, attributes)


def _batches(squares: Array, S: int, sampling: Sampling) -> tuple[Array, Array]:
    """The mean square of every batch and the logarithm of its probability; batches with the same samples are one."""
    n, repeated = len(squares), isinstance(sampling, WithReplacement)
    count = math.comb(n + S - 1, S) if repeated else math.comb(n, S)
    if count > MOST_BATCHES:
        raise InputError(
            f"{count} different batches of {S} from {n} samples: at most {MOST_BATCHES} are gone through; take fewer "
            "samples, or `tail_index` for Gaussian features"
        )
    sets = np.array(list((combinations_with_replacement if repeated else combinations)(range(n), S)))
    means = squares[sets].mean(1)
    if not repeated:
        return means, np.full(count, -np.log(count))
    times = np.array([np.bincount(row, minlength=n) for row in sets])
    weights: Array = gammaln(S + 1) - gammaln(times + 1.0).sum(1) - S * np.log(n)
    return means, weights


def highest_moment(index: Array) -> Array:
    """The largest whole number below the index, a rounding error above a whole number counting as that number."""
    return np.ceil(index - 1e-9) - 1


@dataclass(frozen=True)
class _Growth:
    """ln E|1 - t|^beta for one dimension, from nodes that do for every beta."""

    log_weights: Array
    log_growth: Array  # ln|1 - t|

    @classmethod
    def of(cls, strength: float, S: float) -> "_Growth":
        k, theta = S / 2, S / (2 * strength)
        count = NODES * int(np.ceil(np.sqrt(max(k, S / strength) / 100)))
        z, dz = np.linspace(-max(80, 50 / k), 80, count, retstep=True)
        log_t, log_rest = -np.logaddexp(0, -z), -np.logaddexp(0, z)  # ln t and ln(1 - t)
        below = k * log_t + log_rest - theta * np.exp(log_t) + np.log(dz)
        e, de = np.linspace(-80, np.log(2000 / theta + 2000), count, retstep=True)
        log_t = np.logaddexp(0, e)
        above = e + (k - 1) * log_t - theta * np.exp(log_t) + np.log(de)
        weights = np.concatenate([below, above])
        return cls(weights - logsumexp(weights), np.concatenate([log_rest, e]))

    @property
    def exponent(self) -> float:
        """E ln|1 - t|."""
        return float(np.exp(self.log_weights) @ self.log_growth)

    def root(self) -> float:
        """beta > 0; NaN if there is none. ln M / beta rises from the exponent, as ln M is convex and vanishes at 0."""
        if self.exponent >= 0:
            return float("nan")

        def slope(beta: float) -> float:
            return float(logsumexp(self.log_weights + beta * self.log_growth)) / beta

        high = 1.0
        while slope(high) < 0:
            high *= 2
        low = high / 2
        while slope(low) > 0:
            low /= 2
        return float(brentq(slope, low, high, xtol=1e-13, rtol=1e-13))
