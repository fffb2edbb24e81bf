"""From the gradients of m sampled data points to unbiased moments of all of them, with standard errors.

With g_i the per-sample gradients (penalty included), g their mean and S^2 = sum_i ||g_i - g||^2 / (m - 1),

    Tr Sigma      is estimated by  T = S^2 (n - 1)/n                divisor n, as everywhere
    ||grad L||^2  is estimated by  A = ||g||^2 - S^2 (1/m - 1/n)    the noise of the mean taken off; may be negative

both without bias, for m distinct samples out of n; from an unlimited population n is infinite. Standard errors are
those of the delete-one jackknife, times sqrt(1 - m/n); for A without the second helping of 2 Tr Sigma^2/m^2 that the
jackknife adds to its variance. All of it follows from ||g_i||^2 and g_i . g (and inner products of pairs for
Tr Sigma^2); no gradient is stored. T and A at n = infinity: McCandlish et al., "An empirical model of large-batch
training", 2018, appendix A.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError

Array = NDArray[np.float64]
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Products:
    """What is kept of m per-sample gradients, by column (a layer, or all layers together).

    norms, along_mean: ||g_i||^2 and g_i . g, (m, columns). trace_squared, trace_cubed: unbiased estimates of Tr Sigma^2
    and Tr Sigma^3, (columns,). population: n, None if unlimited.
    """

    norms: Array
    along_mean: Array
    trace_squared: Array
    trace_cubed: Array
    population: int | None

    @property
    def samples(self) -> int:
        return len(self.norms)

    @property
    def rest(self) -> float:
        """1/n"""
        return 0.0 if self.population is None else 1 / self.population

    @property
    def unseen(self) -> float:
        """1 - m/n"""
        return 1.0 if self.population is None else (self.population - self.samples) / self.population


@dataclass(frozen=True)
class Estimates:
    """The second moment, T and A, in this order: values (3, columns) and their covariance (3, 3, columns)."""

    values: Array
    covariance: Array

    @property
    def stderr(self) -> Array:
        """(3, columns)"""
        return np.sqrt(np.einsum("kkc->kc", self.covariance))


def estimate(products: Products) -> Estimates:
    """Second moment, T and A with their covariance. Raises InputError for fewer than 8 samples.

    >>> g = np.random.default_rng(0).normal(1.0, 2.0, size=(1000, 50))     # Tr Sigma = 200, ||grad L||^2 = 50
    >>> norms, along_mean = (g**2).sum(1, keepdims=True), (g @ g.mean(0))[:, None]
    >>> found = estimate(Products(norms, along_mean, np.array([800.0]), np.array([3200.0]), population=None))
    >>> found.values.round(1).ravel().tolist(), found.stderr.round(1).ravel().tolist()
    ([250.7, 200.5, 50.2], [1.5, 1.3, 0.9])
    """
    m = products.samples
    if m < FEWEST_SAMPLES:
        raise InputError(f"{m} samples are too few for standard errors; use at least {FEWEST_SAMPLES}")
    norm_sum, square = products.norms.sum(0), products.along_mean.mean(0)
    whole = _statistics(norm_sum, square, m, products.rest)
    squares_without = (m**2 * square - 2 * m * products.along_mean + products.norms) / (m - 1) ** 2
    without = _statistics(norm_sum - products.norms, squares_without, m - 1, products.rest)  # (3, m, columns)
    spread = without - without.mean(1, keepdims=True)
    covariance = max(0.0, products.unseen) * (m - 1) / m * np.einsum("kic,jic->kjc", spread, spread)
    # The jackknife counts twice the part of A's variance that is quadratic in the noise, and which is always there.
    quadratic = 2 * (products.unseen / m) ** 2 * products.trace_squared
    covariance[2, 2] = np.maximum(covariance[2, 2] - quadratic, quadratic)
    return Estimates(whole, covariance)


def sample_variance(norm_sum: Any, square: Any, m: int) -> Any:
    """S^2 from sum_i ||g_i||^2 and ||g||^2 of m gradients: numbers, arrays or tensors, entry by entry."""
    return (norm_sum - m * square) / (m - 1)


def _statistics(norm_sum: Array, square: Array, m: int, rest: float) -> Array:
    unbiased = sample_variance(norm_sum, square, m)
    return np.stack([norm_sum / m, unbiased * (1 - rest), square - unbiased * (1 / m - rest)])
