"""How large a learning rate, how small a batch, how wide a model: where second moments stop to exist, exactly.

Without penalty, in the notation of `modes`, they exist if and only if all g_i = 2 (1 - mu) - ((1 - mu) / (1 + mu) +
1/S) k_i are positive and tau = sum_i k_i / g_i is below S. Source: the pole of kappa_mu in Theorem 2 of Ziyin et al.
(2022), sec. 6.2, where the order of a summand is S/D, not D/S.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import (
    FourthMoment,
    Grid,
    Rates,
    covariance,
    numbers,
    penalty,
)
from shotnoise.predict.stationary.arguments import (
    fourth_moment as checked_fourth,
)
from shotnoise.predict.stationary.modes import Modes

THEORY = "exact existence of second moments of SGD on a linear model, fresh samples at every step"


def critical_learning_rate(
    feature_covariance: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    *,
    input_covariance: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    preconditioner: ArrayLike | None = None,
    fourth_moment: FourthMoment | ArrayLike | None = None,
) -> xr.Dataset:
    """The learning rate from which on second moments diverge, exact; labels do not matter.

    Arguments as in `gaussian`; preconditioner: a symmetric positive definite matrix that the rate multiplies (default
    the identity). Returns `critical_learning_rate` (batch_size; 0 where no rate is stable) and
    `mean_critical_learning_rate`, that of gradient descent. Between them the mean converges and the variance does not.
    In one dimension lambda a = 2 (1 - mu) / ((1 - mu) / (1 + mu) + 2 / S); for isotropic features 2 S / (S + p + 1) at
    momentum 0, so that it falls as 1 / p once p exceeds S.

    >>> critical_learning_rate([1.0] * 5, [2, 64])["critical_learning_rate"].values.round(6).tolist()  # 2 S / (S + 6)
    [0.5, 1.828571]
    """
    p = len(covariance("feature_covariance", feature_covariance))
    grid = Grid.of(1.0 if preconditioner is None else preconditioner, batch_size, p)
    if preconditioner is not None and grid.rates.kind != "matrix":
        raise InputError(f"preconditioner: a symmetric positive definite matrix ({p}, {p}) is needed")
    modes = _modes(feature_covariance, input_covariance, l2, grid.rates, momentum, fourth_moment)
    found = {
        "critical_learning_rate": grid.variable([modes.critical(1 / S) for S in grid.sizes], over="batch_size"),
        "mean_critical_learning_rate": ((), modes.mean_critical),
    }
    attributes = {"theory": THEORY, "parameters": p, "momentum": float(momentum)}
    return results.dataset(found, {"batch_size": grid.coordinates["batch_size"]}, attributes)


def critical_batch_size(
    feature_covariance: ArrayLike,
    learning_rate: ArrayLike,
    momentum: float = 0.0,
    *,
    input_covariance: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    fourth_moment: FourthMoment | ArrayLike | None = None,
) -> xr.Dataset:
    """The batch size above which second moments are stable at this learning rate; a real number, exact.

    Arguments as in `gaussian`. Returns `critical_batch_size` (learning_rate): stable if and only if S exceeds it;
    infinite where the mean diverges, so that no batch helps. One dimension: 2 lambda a / (2 - lambda a) at momentum 0.

    >>> critical_batch_size([1.0], [0.5, 1.5, 2.0])["critical_batch_size"].values.round(6).tolist()
    [0.666667, 6.0, inf]
    """
    p = len(covariance("feature_covariance", feature_covariance))
    grid = Grid.of(learning_rate, 1, p)
    modes = _modes(feature_covariance, input_covariance, l2, grid.rates, momentum, fourth_moment)
    found = {
        "critical_batch_size": grid.variable(
            [modes.critical_batch(c) for c in grid.rates.multiples], over="learning_rate"
        )
    }
    coordinates = {name: values for name, values in grid.coordinates.items() if name == "learning_rate"}
    return results.dataset(found, coordinates, {"theory": THEORY, "parameters": p, "momentum": float(momentum)})


def critical_width(
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    feature_variance: ArrayLike = 1.0,
    momentum: float = 0.0,
) -> xr.Dataset:
    """The number of features from which on second moments diverge at this learning rate and batch size; no penalty.

    feature_variance: that of each of any number of uncorrelated features, or a sequence of variances in the order in
    which features are added. Returns `critical_width` over learning_rate and batch_size. For one variance a it is the
    real number S g / k, k = lambda a: stable are fewer features than that; 0 where even one is too many. For a sequence
    it is the smallest number of leading features that is not stable, infinite where all given are.
    Scaling the rate as 1 / width keeps a growing model stable (sec. 6.2 of Ziyin et al., 2022).

    >>> float(critical_width(0.1, 8)["critical_width"].round(6))
    151.0
    """
    check_momentum(momentum)
    variances = numbers("feature_variance", feature_variance)
    if variances.ndim > 1 or not variances.size or not (variances > 0).all():
        raise InputError("feature_variance: a positive number, or a sequence of them in the order they are added")
    grid = Grid.of(learning_rate, batch_size, variances.size)
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: a number or a sequence; a matrix belongs to one width")
    k = grid.rates.multiples[:, None, None] * variances.reshape(-1)
    sizes = grid.sizes[:, None]
    g = 2 * (1 - momentum) - ((1 - momentum) / (1 + momentum) + 1 / sizes) * k
    if variances.ndim == 0:
        width = np.maximum(sizes * g / k, 0.0)[..., 0]
    else:
        stable = np.logical_and.accumulate(g > 0, axis=-1)
        stable &= np.cumsum(k / np.where(g > 0, g, 1.0), axis=-1) < sizes
        width = np.where(stable.all(-1), np.inf, stable.sum(-1) + 1)
    attributes = {"theory": THEORY, "momentum": float(momentum)}
    return results.dataset({"critical_width": grid.variable(width)}, grid.coordinates, attributes)


def _modes(
    feature_covariance: ArrayLike,
    input_covariance: ArrayLike | None,
    l2: ArrayLike,
    rates: Rates,
    momentum: float,
    fourth: FourthMoment | ArrayLike | None,
) -> Modes:
    check_momentum(momentum)
    A = covariance("feature_covariance", feature_covariance)
    p = len(A)
    if fourth is not None and input_covariance is not None:
        raise InputError("fourth_moment: give that of the observed features, their covariance, and no input_covariance")
    K = A if input_covariance is None else A + covariance("input_covariance", input_covariance, p)
    return Modes.of(K, penalty("l2", l2, p), rates.root, momentum, checked_fourth(fourth, A))
