"""Reshuffled epochs: batches of an epoch share the samples out, their noise is anticorrelated, and no white noise is.

At fixed weights two batches of an epoch have correlation -B / (n - B), those of different epochs none; averaged over
the place in the epoch, lag h < M = n // B has -B / (n - B) (M - h) / M. For linear gradients with constant noise, g_i =
H w + c_i, the weights follow exactly: over an epoch the noise adds up to zero (where B divides n), and directions that
relax within many epochs hardly fluctuate. Source: Kuehn and Rosenow, "Correlated noise in epoch-based stochastic
gradient descent" (2023), here in discrete time without their approximation of slow modes.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import solve_discrete_lyapunov

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.diffusion.linear import DISCRETE, DIVERGES, Minimum
from shotnoise.predict.diffusion.settings import Array, Setting, matrices
from shotnoise.sampling import ReshuffledEpochs, WithoutReplacement

MATRIX = ("parameter", "parameter_")


def epoch_correlation(n: int, batch_size: int, lags: Sequence[int]) -> xr.Dataset:
    """Correlation of the noise of two updates `lag` apart at fixed weights, exactly, under reshuffled epochs.

    Returns `noise_correlation` by lag, averaged over where in an epoch the first one lies: 1 at lag 0, negative up to
    M - 1, zero from M = n // B on.

    >>> epoch_correlation(8, 2, [0, 1, 3, 4])["noise_correlation"].values.round(6).tolist()
    [1.0, -0.25, -0.083333, -0.0]
    """
    per_epoch = _per_epoch(n, batch_size)
    when = np.asarray(lags)
    if when.ndim != 1 or not when.size or when.dtype.kind not in "iu" or (when < 0).any():
        raise InputError(f"lags={lags}: whole numbers that are not negative")
    negative = -batch_size / (n - batch_size) * np.maximum(per_epoch - when, 0) / per_epoch
    values = np.where(when == 0, 1.0, negative)
    attributes = {"theory": "disjoint batches, exact", "n_samples": n, "batch_size": batch_size,
                  "sampling": str(ReshuffledEpochs())}  # fmt: skip
    return results.dataset({"noise_correlation": (("lag",), values)}, {"lag": when}, attributes)


def epoch_covariance(
    hessian: ArrayLike, noise_covariance: ArrayLike, learning_rate: float, batch_size: int, n: int, momentum: float =
    0.0
) -> xr.Dataset:  # fmt: skip
    """Stationary covariance of the weights under reshuffled epochs, at every place in the epoch, beside fresh batches.

    hessian H, the same for all samples, and noise_covariance C, of one sample's gradient (divisor n), both (d, d);
    momentum runs on through the epochs. Returns `weight_covariance` (phase, parameter, parameter_), phase j = 0 .. M -
    1 being j updates into an epoch; `weight_covariance_fresh`, that of independent batches without replacement;
    `variance_ratio` (phase, mode), of the first to the second along the eigenvectors of H, and its mean over the epoch,
    `mean_variance_ratio` (mode); `mode_curvature`. Exact for such gradients; where the noise depends on the weights,
    `predict.regression` with ReshuffledEpochs() has small data sets exactly.

    >>> e = epoch_covariance([1.0], [1.0], 0.1, 2, 6)
    >>> e["variance_ratio"].values.ravel().round(4).tolist()  # nearly nothing is left at the end of an epoch
    [0.011, 0.1989, 0.1801]
    """
    H, C = matrices(hessian, noise_covariance)
    per_epoch = _per_epoch(n, batch_size)
    setting = Setting.of(learning_rate, batch_size, momentum, WithoutReplacement(), n)
    minimum = Minimum(H, C, setting)
    values, V = minimum.eigen
    if minimum.status(DISCRETE) == DIVERGES:
        raise InputError(f"learning_rate={learning_rate:g}: the mean diverges for curvatures up to {values.max():.3g}")
    if (values == 0).any():
        raise InputError(
            f"{int((values == 0).sum())} flat directions: nothing pulls the weights back along them. Reshuffled epochs "
            "of whole batches do not spread there, as their noise adds up to zero; leave them out of H and C"
        )
    d, chain = len(H), minimum.system(DISCRETE)
    kick = learning_rate * np.eye(d)
    if momentum:
        kick = np.concatenate([kick, np.sqrt(learning_rate) * np.eye(d)])
    own, shared = setting.factor + 1 / (n - 1), 1 / (n - 1)  # cov(xi_j, xi_k) = (own delta_jk - shared) C
    q = len(chain.matrix)
    power, summed, scattered = np.eye(q), np.zeros((q, d)), np.zeros((q, q))
    noises, powers = [], []
    for _ in range(per_epoch):
        noises.append(own * scattered - shared * summed @ C @ summed.T)
        powers.append(power)
        moved = power @ kick
        scattered, summed, power = scattered + moved @ C @ moved.T, summed + moved, chain.matrix @ power
    start = solve_discrete_lyapunov(power, own * scattered - shared * summed @ C @ summed.T)
    phases = np.array([(E @ start @ E.T + N)[:d, :d] for E, N in zip(powers, noises, strict=True)])
    fresh = minimum.settled(DISCRETE)
    ratio = _along(phases, V) / _along(fresh[None], V)
    found = {
        "weight_covariance": (("phase", *MATRIX), phases),
        "weight_covariance_fresh": (MATRIX, fresh),
        "variance_ratio": (("phase", "mode"), ratio),
        "mean_variance_ratio": (("mode",), ratio.mean(0)),
        "mode_curvature": (("mode",), values),
    }
    attributes = {
        "theory": "constant noise under reshuffled epochs, exact",
        "n_samples": n,
        **setting.attributes,
        "sampling": str(ReshuffledEpochs()),
    }
    return results.dataset(found, {"phase": np.arange(per_epoch)}, attributes)


def _along(covariances: Array, V: Array) -> Array:
    """Variances along the columns of V; NaN where there is no noise at all."""
    found: Array = np.einsum("di,pde,ei->pi", V, covariances, V)
    return np.where(found > 0, found, np.nan)


def _per_epoch(n: int, batch_size: int) -> int:
    ReshuffledEpochs().check(batch_size, n)
    if n // batch_size < 2:
        raise InputError(
            f"batch_size={batch_size} of n={n}: an epoch of one batch has no correlations; take smaller ones"
        )
    return n // batch_size
