"""The gradient noise scale B = Tr Sigma / ||grad L||^2, in samples, with a confidence interval.

At batch size B, the noise of the minibatch gradient is as long as the gradient itself. Estimated by T/A (see
`estimate`; a ratio of unbiased estimates, itself not unbiased), it is hard to bound: A may be indistinguishable
from 0, and then every large B is possible. The interval is the set of all B that a test does not reject. For a
given B, i.e. ||grad L||^2 = T/B, the observed ||g||^2 has

    mean   T/B + f T/m
    variance   4 f lambda (T/B)/m + 2 f^2 Tr Sigma^2 / m^2        f = 1 - m/n

lambda being the noise along the gradient's direction, and a distribution close to a gamma distribution with these two
moments: skewed where few directions carry the noise, normal where the gradient stands out. The error of T enters
through its jackknife variance and its correlation with A. Where the gradient cannot be seen, lambda is taken as
Tr Sigma^3 / Tr Sigma^2, a mean eigenvalue of Sigma weighted towards the largest.

Assumes at least some 30 samples, and that their mean is nearly Gaussian. The coverage measured for 95 % intervals
is in docs/evidence.md: 92 to 98 % where the gradient stands out or lies along leading noise directions; more, so too
wide, where it hides in quiet ones or cannot be seen; down to 89 % at 32 samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from shotnoise.measure.estimate import Array, Estimates, Products
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
    limits = np.array([_interval(products, estimates, c, confidence) for c in range(len(t))])
    low, high = limits.reshape(-1, 2).T
    return NoiseScale(value, low, high, np.where(np.isfinite(high), stderr, np.inf))


def ratio(trace: Array, gradient_norm_sq: Array) -> Array:
    """trace / ||grad L||^2: inf where the gradient is zero (or estimated as less), NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gradient_norm_sq > 0, trace / gradient_norm_sq, np.where(trace > 0, np.inf, np.nan))


def _interval(products: Products, estimates: Estimates, column: int, confidence: float) -> tuple[float, float]:
    _, t, a = estimates.values[:, column]
    if products.unseen <= 0 or t <= 0:
        exact = float(ratio(np.asarray(t), np.asarray(a)))
        return exact, exact
    probability = _null_distribution(products, estimates, column)
    tail = (1 - confidence) / 2
    top = max(abs(a) / t, 1 / products.samples)
    while probability(top) > tail:
        top *= 4
    # probability falls as 1/B grows; at 1/B = 0 it tells whether a vanishing gradient is still possible
    at_zero = probability(0.0)
    largest = optimize.brentq(lambda x: probability(x) - tail, 0, top) if at_zero > tail else 0.0
    smallest = optimize.brentq(lambda x: probability(x) - (1 - tail), 0, top) if at_zero > 1 - tail else 0.0
    return (1 / largest if largest else np.inf), (1 / smallest if smallest else np.inf)


def _null_distribution(products: Products, estimates: Estimates, column: int) -> Callable[[float], float]:
    """x -> probability of a ||g||^2 below the observed one, were ||grad L||^2 = x T."""
    m, f = products.samples, products.unseen
    _, t, a = estimates.values[:, column]
    variance_t = estimates.covariance[1, 1, column]
    variance_a = estimates.covariance[2, 2, column]
    spread = np.sqrt(variance_t * variance_a)
    correlation = estimates.covariance[1, 2, column] / spread if spread > 0 else 0.0
    observed = a + f * t / m
    square = float(products.trace_squared[column]) or t**2  # nothing known: the most that it can be
    along = _noise_along_gradient(products, estimates, column, square)

    def probability(x: float) -> float:
        mean = t * (x + f / m)
        variance = 4 * f * along * x * t / m + 2 * (f / m) ** 2 * square
        total = variance - 2 * x * correlation * np.sqrt(variance * variance_t) + x**2 * variance_t  # of A - x T
        if total <= 0:
            return float(observed > mean)
        shape = mean**2 / total
        return float(special.gammainc(shape, max(0.0, shape + np.sqrt(shape / total) * (observed - mean))))

    return probability


def _noise_along_gradient(products: Products, estimates: Estimates, column: int, square: float) -> float:
    """lambda: what A's variance says of it where the gradient stands out, else the weighted mean eigenvalue."""
    m, f = products.samples, products.unseen
    _, t, a = estimates.values[:, column]
    largest = np.sqrt(square)
    typical = float(np.clip(products.trace_cubed[column] / square, square / t, largest))
    if a <= 0:
        return typical
    without_gradient = 2 * (f / m) ** 2 * square  # the variance of A, were the gradient zero
    seen = np.clip((estimates.covariance[2, 2, column] - without_gradient) * m / (4 * f * a), 0, largest)
    trust = a**2 / (a**2 + 4 * without_gradient)
    return float(trust * seen + (1 - trust) * typical)


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
