"""The gradient noise scale B = Tr Sigma / ||grad L||^2, in samples, with a confidence interval.

At batch size B, the noise of the minibatch gradient is as long as the gradient itself. Estimated by T/A (see
`estimate`; a ratio of unbiased estimates, itself not unbiased), it is hard to bound: A may be indistinguishable
from 0, and then every large B is possible. How the interval is found: see `interval`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from shotnoise.measure.estimate import Array, Estimates, Products
from shotnoise.measure.interval import evidence, interval
from shotnoise.results import ESTIMATED, UNRESOLVED


@dataclass(frozen=True)
class NoiseScale:
    """T/A by column with its interval, all (columns,); `high` is inf where the samples cannot bound it."""

    value: Array
    low: Array
    high: Array
    stderr: Array

    @property
    def status(self) -> NDArray[np.str_]:
        return np.where(np.isfinite(self.high), ESTIMATED, UNRESOLVED)


def noise_scale(products: Products, estimates: Estimates, confidence: float) -> NoiseScale:
    """The noise scale of every column with its interval at this confidence.

    The value is inf where A <= 0: the gradient is not distinguishable from zero.
    """
    _, t, a = estimates.values
    covariance = estimates.covariance
    value = ratio(t, a)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = covariance[1, 1] - 2 * value * covariance[1, 2] + value**2 * covariance[2, 2]
        stderr = np.sqrt(np.maximum(0, variance)) / np.abs(a)
    limits = np.array([_limits(products, estimates, c, confidence) for c in range(len(t))])
    low, high = limits.reshape(-1, 2).T
    return NoiseScale(value, low, high, np.where(np.isfinite(high), stderr, np.inf))


def ratio(trace: Array, gradient_norm_sq: Array) -> Array:
    """trace / ||grad L||^2: inf where the gradient is zero (or estimated as less), NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gradient_norm_sq > 0, trace / gradient_norm_sq, np.where(trace > 0, np.inf, np.nan))


def _limits(products: Products, estimates: Estimates, column: int, confidence: float) -> tuple[float, float]:
    _, t, a = estimates.values[:, column]
    if products.unseen <= 0 or t <= 0:
        exact = float(ratio(np.asarray(t), np.asarray(a)))
        return exact, exact
    return interval(evidence(products, estimates, column), confidence)


def samples_to_resolve(products: Products, estimates: Estimates, confidence: float) -> Array:
    """About how many samples would tell the gradient from zero, by column.

    Takes ||grad L||^2 at its estimate, or at its upper limit where the estimate is not positive, and its variance as
    falling like 1/m - 1/n: a rough guide, more than m and at most n, and in the second case a lower bound.
    """
    m, rest = products.samples, products.rest
    a, stderr = estimates.values[2], estimates.stderr[2]
    error = -float(special.ndtri((1 - confidence) / 2)) * stderr
    plausible = np.where(a > 0, a, np.maximum(a + error, stderr))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (plausible / error) ** 2  # of the present variance of A, what may be left
        needed = np.ceil(1 / (rest + (1 / m - rest) * share))
    return np.minimum(np.maximum(needed, m + 1), products.population or np.inf)
