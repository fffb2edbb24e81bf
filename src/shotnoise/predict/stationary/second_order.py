"""Second-order methods: Newton's method with the learning rates lambda A^-1, and natural gradient descent.

Newton: an ordinary matrix of learning rates, exact: Sigma = lambda sigma^2 / (g S - lambda p) A^-1, g = 2 (1 - mu) -
((1 - mu) / (1 + mu) + 1/S) lambda. Natural gradient: Lambda = (lambda / S) C^-1 with the noise covariance C of the
stationary state, held fixed. Then C is a multiple of A, C = ((1 + p) x + sigma^2) A / S with Sigma = x A^-1, the method
is Newton's at the rate lambda / ((1 + p) x + sigma^2), and x solves a quadratic equation. Sources: Propositions 5 and 6
of Ziyin et al. (2022).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import Array, Grid, Rates, variance
from shotnoise.predict.stationary.model import LinearModel
from shotnoise.predict.stationary.verb import MATRIX, solved


def damped_newton(
    feature_covariance: ArrayLike,
    label_variance: float,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
) -> xr.Dataset:
    """Stationary SGD with the gradient multiplied by lambda A^-1, A the Hessian; exact, at any rate.

    Arguments and result as in `label_noise`; feature_covariance must be positive definite, learning_rate lambda is a
    number or a sequence. Stable if and only if g S > lambda p: the critical rate is that of p isotropic features.

    >>> s = damped_newton([4.0, 1.0], 1.0, learning_rate=0.5, batch_size=8)
    >>> np.diag(s["weight_covariance"]).round(9).tolist()  # 0.5 / (g 8 - 1) A^-1, g = 2 - (1 + 1/8) / 2
    [0.011904762, 0.047619048]
    """
    model = LinearModel.of(feature_covariance, label_variance=label_variance)
    grid = Grid.of(learning_rate, batch_size, len(model.clean))
    inverse = _inverse(model.clean)
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: a number or a sequence; Newton's method brings its own matrix")
    newton = Grid(Rates(inverse, grid.rates.multiples, "matrix"), grid.sizes, grid.one_size)
    return solved(model, newton, momentum, grid)[0]


def natural_gradient(
    feature_covariance: ArrayLike,
    label_variance: float,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
) -> xr.Dataset:
    """Stationary natural gradient descent, Lambda = lambda J^-1, J = S C the Fisher matrix; an approximation.

    Exact for the preconditioner frozen at the stationary average of J. With the real one, which moves with the weights,
    it is good only while the noise that the fluctuation makes is small beside that of the labels, that is while
    `multiplicative_share` is small: in one dimension (S = 8, lambda = 0.2) the formula is 4 % low at sigma^2 = 1 (share
    0.03), 34 % low at 0.1 (0.39), ten times low at 0.01 (0.92). For sigma^2 = 0 it is the edge of stability of the
    frozen method: `status` is "diverges" there.

    Arguments and dimensions as in `label_noise`, feature_covariance positive definite. Returns `weight_covariance`,
    `noise_covariance`, `train_loss`, `test_loss`, `multiplicative_share`, the part of the noise that the fluctuation
    makes, `newton_learning_rate`, that of the Newton method it amounts to, and `status`.

    >>> s = natural_gradient([1.0], 1.0, learning_rate=0.2, batch_size=8)
    >>> round(float(s["weight_covariance"].item()), 9), str(s["status"].values)
    (0.013847426, 'stationary')
    """
    model = LinearModel.of(feature_covariance, label_variance=label_variance)
    check_momentum(momentum)
    A, sigma2 = model.clean, variance("label_variance", label_variance)
    p, inverse, grid = len(A), _inverse(model.clean), Grid.of(learning_rate, batch_size, len(model.clean))
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: a number or a sequence; the natural gradient brings its own matrix")
    rate, sizes = grid.rates.multiples[:, None], grid.sizes[None, :].astype(np.float64)
    x = _fluctuation(rate, sizes, p, sigma2, momentum)
    newton = rate / ((1 + p) * x + sigma2)
    g = 2 * (1 - momentum) - ((1 - momentum) / (1 + momentum) + 1 / sizes) * newton
    stable = (g * sizes > newton * p * (1 + 1e-12)) & (sigma2 > 0)
    x = np.where(stable, x, np.nan)
    weights = x[..., None, None] * inverse
    train, test = model.losses(weights)
    found = {
        "weight_covariance": grid.variable(weights, *MATRIX),
        "noise_covariance": grid.variable((((1 + p) * x + sigma2) / sizes)[..., None, None] * A, *MATRIX),
        "train_loss": grid.variable(train),
        "test_loss": grid.variable(test),
        "multiplicative_share": grid.variable((1 + p) * x / ((1 + p) * x + sigma2)),
        "newton_learning_rate": grid.variable(np.where(stable, newton, np.nan)),
        "status": grid.variable(np.where(stable, STATIONARY, DIVERGES)),
    }
    attributes = {
        "theory": "natural gradient with the preconditioner frozen at its stationary value, an approximation",
        "parameters": p,
        "momentum": float(momentum),
    }
    return results.dataset(found, grid.coordinates, attributes)


def _fluctuation(rate: Array, sizes: Array, p: int, sigma2: float, momentum: float) -> Array:
    """x of Sigma = x A^-1 over rates (L, 1) and batch sizes (1, B); eq. 87 of the paper."""
    s, g = sigma2 / (1 + p), 1 / ((1 + p) * (1 + momentum)) + 1 / (sizes * (1 - momentum))
    inner = (rate * g) ** 2 + 4 * rate * (g - 2 / ((1 + p) * (1 + momentum))) * s + 4 * s**2
    found: Array = rate * g / 4 - s / 2 + np.sqrt(inner) / 4
    return found


def _inverse(A: Array) -> Array:
    values, vectors = np.linalg.eigh(A)
    if not values[0] > 1e-12 * values[-1]:
        raise InputError("feature_covariance is singular; second-order methods divide by it")
    found: Array = (vectors / values) @ vectors.T
    return (found + found.T) / 2
