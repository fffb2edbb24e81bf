"""How heavy the tail of the stationary law is: P(|w| > r) falls as r^-beta, and moments exist below the order beta.

One dimension, Gaussian features of variance a: w' = (1 - t) w + noise, t = lambda s ~ Gamma(S/2, rate theta = S / (2 a
lambda)), and beta is the positive root of E|1 - t|^beta = 1 (Kesten, Goldie), whatever the label noise, as long as that
is not zero and has a moment of that order. E ln|1 - t| < 0 is needed, and enough, for a stationary law. Quadrature in
logs: t = 1 / (1 + e^-z) below one and t = 1 + e^z above it, both by the trapezoidal rule.

Several dimensions: the root of lim_n (E||F_n .. F_1 v||^beta)^(1/n) = 1, F the matrix that moves (w, m), here by a
population of vectors that is weighted with its growth ||F v||^beta and resampled.
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
from shotnoise.predict.linear_regression.verb import check_momentum, check_sampling
from shotnoise.predict.stationary.arguments import Array, Grid, covariance, numbers
from shotnoise.sampling import Sampling, WithoutReplacement, WithReplacement

NODES = 4001  # on either side of t = 1, more for large batches
MOST_BATCHES = 200_000  # of a data set that are gone through
LARGEST = 64.0  # order of moments beyond which the estimate by a population of vectors means nothing


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
        "highest_moment": grid.variable(_highest_moment(index)),
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
        "highest_moment": grid.variable(_highest_moment(index)),
        "lyapunov_exponent": grid.variable(exponent),
        "status": grid.variable(np.where(exponent < 0, STATIONARY, DIVERGES)),
    }
    attributes = {
        "theory": "exact tail index of an affine recursion (Kesten), all batches",
        "sampling": str(sampling),
        "n_samples": len(given),
    }
    return results.dataset(found, grid.coordinates, attributes)


def tail_index_matrix(
    feature_covariance: ArrayLike,
    learning_rate: float | ArrayLike,
    batch_size: int,
    momentum: float = 0.0,
    *,
    replicates: int = 8,
    particles: int = 1000,
    steps: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """The tail index in several dimensions, by Monte Carlo with standard error; Gaussian features, no penalty.

    learning_rate: a number or a symmetric positive definite matrix. Each of `replicates` independent populations of
    `particles` vectors, moved, weighted and resampled `steps` times after a tenth of that, gives a root; returned are
    their mean and its standard error: `tail_index`, `tail_index_stderr`, and `lyapunov_exponent` with its own, besides
    `highest_moment` and `status`. A finite population errs besides, upwards, as the largest growth is too rare to be
    met: with three isotropic features, S = 4 and 1500 particles by 0.5 % at beta = 2.8, 0.8 % at 4.3, 5 % at 6.6, with
    300 by 1 %, 4 %, 16 %: double them and see. Above 64 an InputError says that this is no way to find it. Even orders
    are exactly known without: beta = 2 at the critical rate of `gaussian`.

    >>> r = tail_index_matrix([1.0, 1.0], 0.8, 2, particles=200, steps=100)
    >>> abs(float(r["tail_index"]) - 2) < 0.3  # 0.8 = 2 S / (S + p + 1), where the variance ceases to exist
    True
    """
    check_momentum(momentum)
    K = covariance("feature_covariance", feature_covariance)
    grid = Grid.of(learning_rate, batch_size, len(K))
    if grid.rates.kind == "sweep" or not grid.one_size:
        raise InputError("learning_rate and batch_size: one each; call again for others")
    if min(replicates, particles, steps) < 2:
        raise InputError(f"replicates={replicates}, particles={particles}, steps={steps}: at least 2 of each")
    rates = float(grid.rates.multiples[0]) * grid.rates.matrix
    values, vectors = np.linalg.eigh(K)
    population = _Population(
        (vectors * np.sqrt(np.maximum(values, 0))).T, rates, int(grid.sizes[0]), momentum, particles, steps
    )
    seeds = np.random.SeedSequence(seed).spawn(replicates)
    exponents = np.array([population.exponent(child, 0.0) for child in seeds])
    error = exponents.std(ddof=1) / np.sqrt(replicates)
    stable = bool(exponents.mean() < 0)
    roots = np.array([population.root(child, exponents.mean()) for child in seeds]) if stable else np.full(2, np.nan)
    index = float(roots.mean())
    found = {
        "tail_index": index,
        "tail_index_stderr": roots.std(ddof=1) / np.sqrt(replicates),
        "lyapunov_exponent": exponents.mean(),
        "lyapunov_exponent_stderr": error,
        "highest_moment": float(_highest_moment(np.array(index))),
        "status": STATIONARY if stable else DIVERGES,
    }
    attributes = {
        "theory": "tail index from the growth of moments, Monte Carlo",
        "replicates": replicates,
        "particles": particles,
        "steps": steps,
        "seed": seed,
        "momentum": float(momentum),
        "parameters": len(K),
    }
    variables = {name: ((), value) for name, value in found.items()}
    return results.dataset(variables, grid.coordinates, attributes)


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


def _highest_moment(index: Array) -> Array:
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


@dataclass(frozen=True)
class _Population:
    """Vectors (w, m) that a common law of matrices moves, weighted with their growth and resampled."""

    root_features: Array  # rows: x = z @ root_features
    rates: Array
    batch_size: int
    momentum: float
    particles: int
    steps: int

    def exponent(self, seed: np.random.SeedSequence, beta: float) -> float:
        """(1/n) ln E||F_n .. F_1 v||^beta; for beta = 0 its slope there, the Lyapunov exponent."""
        rng, p = np.random.default_rng(seed), len(self.rates)
        w, m = rng.normal(size=(2, self.particles, p))
        if not self.momentum:
            m[:] = 0
        total, skipped = 0.0, self.steps // 10
        for step in range(skipped + self.steps):
            x = rng.normal(size=(self.particles, self.batch_size, p)) @ self.root_features
            gradient = np.einsum("ns,nsp->np", np.einsum("nsp,np->ns", x, w), x) / self.batch_size
            shift = rng.random()
            m = self.momentum * m + gradient
            w = w - m @ self.rates
            state = np.concatenate([w, m], axis=1) if self.momentum else w
            growth = np.log(np.linalg.norm(state, axis=1))
            w, m = w / np.exp(growth)[:, None], m / np.exp(growth)[:, None]
            weights = np.exp(beta * (growth - growth.max()))
            if step >= skipped:
                total += beta * growth.max() + np.log(weights.mean()) if beta else growth.mean()
            if beta:
                places = (np.arange(self.particles) + shift) / self.particles * weights.sum()
                chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), self.particles - 1)
                w, m = w[chosen], m[chosen]
        return float(total / self.steps)

    def root(self, seed: np.random.SeedSequence, exponent: float) -> float:
        """Where the growth of moments vanishes; the same random numbers for every beta."""

        def slope(beta: float) -> float:
            return self.exponent(seed, beta) / beta

        high = 1.0
        while slope(high) < 0:
            high *= 2
            if high > LARGEST:
                raise InputError(
                    f"the tail index is above {LARGEST:g}: too light a tail for this estimate (all moments that matter "
                    "exist); nearer the critical learning rate it can be had"
                )
        low = high / 2
        while slope(low) > 0:
            low /= 2
            if low < 1e-3:
                raise InputError(
                    f"the tail index is below 0.001, the Lyapunov exponent {exponent:.2g}: a stationary law hardly "
                    "exists here; take a smaller learning rate"
                )
        return float(brentq(slope, low, high, xtol=1e-3 * low))
