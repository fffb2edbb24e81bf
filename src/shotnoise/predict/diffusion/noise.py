"""The two sources of gradient noise at fixed weights, and how to estimate the second from a few batches.

Sampling noise, the data set against the population, has covariance Sigma_pop / n; batch noise, the batch against the
data set, s_f Sigma_emp, with E Sigma_emp = (n - 1)/n Sigma_pop over data sets. At weights chosen without looking at the
data:

                          with replacement                  without
    batch                 s_f = 1/B                         (n - B) / (B (n - 1))           times Sigma_emp
    its mean              (n - 1) / (n B)                   1/B - 1/n                       times Sigma_pop
    batch + sampling      1/B + 1/n - 1/(n B)               1/B                             times Sigma_pop

Along a training the weights depend on the data, and the last two rows are false. Source: sec. 1.8 of the notes; their
estimator 1.8.5 is right for batches drawn with replacement only, and mended here for the other ways to draw.
"""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.stationary.arguments import covariance, numbers
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithReplacement

MATRIX = ("parameter", "parameter_")
LARGEST = 2000  # weights up to which the matrix is kept
EPOCHS = (ReshuffledEpochs, CyclicEpochs)


def noise_sources(
    population_covariance: ArrayLike, n: int, batch_size: int, sampling: Sampling | None = None
) -> xr.Dataset:
    """Covariances of batch noise, sampling noise and their sum, expected over data sets of n independent samples.

    population_covariance: Sigma_pop (d, d) of one sample's gradient at fixed weights. sampling: default
    WithReplacement(). Returns by `source` ("batch", "sampling", "total") `noise_factor`, in units of Sigma_pop, and
    `noise_covariance`.

    >>> noise_sources([2.0], n=10, batch_size=5)["noise_factor"].values.round(12).tolist()
    [0.18, 0.1, 0.28]
    """
    sigma = covariance("population_covariance", population_covariance)
    chosen = WithReplacement() if sampling is None else sampling
    if n < 2:
        raise InputError(f"n={n}: a data set of at least two samples")
    batch = chosen.variance_factor(batch_size, n) * (n - 1) / n
    factors = np.array([batch, 1 / n, batch + 1 / n])
    found = {
        "noise_factor": (("source",), factors),
        "noise_covariance": (("source", *MATRIX), factors[:, None, None] * sigma),
    }
    attributes = {
        "theory": "noise at weights independent of the data",
        "n_samples": n,
        "batch_size": int(batch_size),
        "sampling": str(chosen),
    }
    return results.dataset(found, {"source": ["batch", "sampling", "total"]}, attributes)


def covariance_from_batches(
    gradients: ArrayLike,
    batch_size: int,
    n: int,
    sampling: Sampling,
    *,
    full_gradient: ArrayLike | None = None,
) -> xr.Dataset:
    """Sigma_emp, the covariance of one sample's gradient (divisor n), from m batch gradients at the same weights.

    gradients: (m, d), of m batches drawn by `sampling`: WithReplacement(), WithoutReplacement() (independent batches),
    or ReshuffledEpochs() (disjoint batches of ONE epoch). full_gradient (d,): if it is known it stands in place of the
    mean of the batches. Unbiased in every case; for Sigma_pop over data sets multiply by n / (n - 1).

    Returns `per_sample_covariance` (up to 2,000 weights), `parameter_noise_variance`, its diagonal, and `noise_trace`,
    with standard errors by the scatter of the batches, which count as independent; O(m d^2), O(m d) without the matrix.
    Raises InputError for B = n without replacement, which has no noise to see.

    >>> g = [[1.0], [3.0], [2.0]]
    >>> covariance_from_batches(g, 2, 10, WithReplacement())["noise_trace"].item()
    2.0
    """
    g = numbers("gradients", gradients)
    if g.ndim != 2 or len(g) < 3:
        raise InputError(f"gradients: an array (batches, weights) of at least three batches is needed; got {g.shape}")
    m, d = g.shape
    factor = sampling.variance_factor(batch_size, n)
    if isinstance(sampling, EPOCHS):
        if m * batch_size > n:
            raise InputError(
                f"{m} batches of {batch_size} are more than one epoch of n={n}: they would not be disjoint"
            )
        # Batches of an epoch have covariance -Sigma / (n - 1) with each other.
        scatter = factor + 1 / (n - 1)
    else:
        scatter = factor
    if not factor > 0:
        raise InputError(f"batch_size={batch_size} is the whole data set: such batches have no noise")
    if full_gradient is None:
        centred, scale = g - g.mean(0), m / (m - 1) / scatter
    else:
        full = numbers("full_gradient", full_gradient)
        if full.shape != (d,):
            raise InputError(f"full_gradient: {d} numbers; got an array {full.shape}")
        centred, scale = g - full, 1 / factor
    root = np.sqrt(m)
    squares = centred**2 * scale
    total = squares.sum(1)
    found = {
        "parameter_noise_variance": (("parameter",), squares.mean(0)),
        "parameter_noise_variance_stderr": (("parameter",), squares.std(0, ddof=1) / root),
        "noise_trace": ((), total.mean()),
        "noise_trace_stderr": ((), total.std(ddof=1) / root),
    }
    if d <= LARGEST:
        mean = centred.T @ centred / m * scale
        second = (centred**2).T @ (centred**2) / m * scale**2
        found["per_sample_covariance"] = (MATRIX, mean)
        found["per_sample_covariance_stderr"] = (MATRIX, np.sqrt(np.maximum(second - mean**2, 0) / (m - 1)))
    attributes = {"sampling": str(sampling), "batch_size": int(batch_size), "n_samples": n, "draws": m}
    return results.dataset(found, {}, attributes)
