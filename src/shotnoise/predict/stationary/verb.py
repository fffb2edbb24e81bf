"""Where SGD settles on a linear model and how widely it fluctuates: label noise, input noise, penalty, or all."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import FourthMoment, Grid
from shotnoise.predict.stationary.model import LinearModel
from shotnoise.predict.stationary.modes import Modes

MATRIX = ("parameter", "parameter_")


def label_noise(
    feature_covariance: ArrayLike,
    label_variance: float,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    target: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    *,
    fourth_moment: FourthMoment | ArrayLike | None = None,
) -> xr.Dataset:
    """Stationary SGD on y = u^T x + eps, var eps = label_variance, features of covariance A; see `gaussian`.

    Source: Theorems 2 and 3 of Ziyin et al. (2022), with G_mu^-1 Lambda in place of Lambda G_mu^-1, which makes it
    hold for every symmetric positive definite matrix of learning rates, commuting with A or not.

    >>> s = label_noise([1.0], label_variance=0.25, learning_rate=1.0, batch_size=4)
    >>> s["weight_covariance"].item(), s["kappa"].item()  # in one dimension sigma^2 / (S - 2) at a rate of 1
    (0.125, 2.0)
    >>> float(s["critical_learning_rate"].round(12)), str(s["status"].values)
    (1.333333333333, 'stationary')
    """
    return gaussian(
        feature_covariance, learning_rate, batch_size, label_variance=label_variance, l2=l2, target=target,
        momentum=momentum, fourth_moment=fourth_moment,
    )  # fmt: skip


def input_noise(
    feature_covariance: ArrayLike,
    input_covariance: ArrayLike,
    target: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    l2: ArrayLike = 0.0,
    label_variance: float = 0.0,
) -> xr.Dataset:
    """Stationary SGD where noise of covariance B is added to the features of y = u^T x~ (+ eps); see `gaussian`.

    Source: Proposition 9 and Theorem 9 of Ziyin et al. (2022); in the test loss the trace is that of A, not of A + B.

    >>> s = input_noise([1.0], [0.5], target=[1.0], learning_rate=0.5, batch_size=4)
    >>> round(float(s["train_loss"]), 12), round(float(s["mean_weights"][0]), 12)
    (0.202380952381, 0.666666666667)
    """
    return gaussian(
        feature_covariance, learning_rate, batch_size, label_variance=label_variance,
        input_covariance=input_covariance, l2=l2, target=target, momentum=momentum,
    )  # fmt: skip


def regularised(
    feature_covariance: ArrayLike,
    target: ArrayLike,
    l2: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    label_variance: float = 0.0,
    *,
    fourth_moment: FourthMoment | ArrayLike | None = None,
) -> xr.Dataset:
    """Stationary SGD with the penalty 1/2 w^T Gamma w, Gamma a number or symmetric matrix of any sign; see `gaussian`.

    Source: Proposition 3 and Theorem 4 of Ziyin et al. (2022), without their commutators; eq. 12 holds only where A
    commutes with u u^T too, and is not used.

    >>> s = regularised([2.0], target=[1.0], l2=-0.4, learning_rate=1.0, batch_size=16)
    >>> round(float(s["test_loss"]), 12), round(float(s["mean_weights"][0]), 12)
    (0.285714285714, 1.25)
    """
    return gaussian(
        feature_covariance, learning_rate, batch_size, label_variance=label_variance, l2=l2, target=target,
        momentum=momentum, fourth_moment=fourth_moment,
    )  # fmt: skip


def gaussian(
    feature_covariance: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    *,
    label_variance: float = 0.0,
    input_covariance: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    target: ArrayLike | None = None,
    momentum: float = 0.0,
    fourth_moment: FourthMoment | ArrayLike | None = None,
    matrices: bool = True,
) -> xr.Dataset:
    """Where SGD settles on a linear model with label noise, input noise and penalty together; exact, at any rate.

    Fresh Gaussian samples at every step, zero-mean: features x = x~ + eta with covariances feature_covariance A (p, p)
    and input_covariance B (default none), labels u^T x~ + eps; loss 1/2 (x^T w - y)^2 + 1/2 w^T Gamma w.
    A covariance may be a matrix, or a vector: its diagonal. l2: Gamma, a number or a symmetric matrix, of any sign.
    target: u (p,), needed with input noise or a penalty; without it weights are counted from u. learning_rate: a
    number, a sequence (dimension `learning_rate`), or one symmetric positive definite matrix (p, p). batch_size: a
    number or a sequence (dimension `batch_size`). Momentum as in PyTorch, m <- mu m + g, w <- w - Lambda m.
    fourth_moment: for features that are not Gaussian, the map S -> E[x x^T S x x^T] or the tensor E[x_i x_j x_k x_l];
    not together with input noise. matrices: False leaves out the two matrices, which for many parameters and a sweep
    would fill the memory.

    Returns `weight_covariance` and `noise_covariance` of the minibatch gradient, averaged over the iterates (parameter,
    parameter_); `train_loss` with the penalty and the noise in it, `test_loss` 1/2 E (w - u)^T A (w - u) without;
    `mean_weights`; `kappa`, the isotropic enhancement S tr(K Sigma) / sigma^2 of label noise alone (K = A + B; it
    contains the learning rate); `critical_learning_rate`, from which on second moments diverge (for a matrix: the
    multiple of it; 0 where none is stable), `mean_critical_learning_rate`, from which on the mean does, and
    `critical_batch_size`: stable are batches above it; `second_moment_rate`, the factor per step by which second
    moments approach the limit (NaN for more than 100 parameters where nothing commutes); `status`, "stationary" or
    "diverges": there every moment is NaN. Directions that nothing curves keep their start and count nothing.

    Cost O(p^3): in closed form where A + B and Gamma commute (with the learning rates taken in), else about a hundred
    products of p x p matrices for each rate and batch size.
    Raises InputError for matrices that are not symmetric, covariances with a negative eigenvalue, shapes that do not
    fit, momentum outside [0, 1).
    Source: Ziyin et al. (2022), "Strength of Minibatch Noise in SGD", Theorems 1-4, 8, 9, corrected and joined.

    >>> s = gaussian([1.0, 0.5], [0.1, 1.0], [1, 8], label_variance=0.25, l2=0.1, target=[1.0, 1.0])
    >>> s["status"].values.tolist()
    [['stationary', 'stationary'], ['diverges', 'stationary']]
    """
    model = LinearModel.of(
        feature_covariance, label_variance=label_variance, input_covariance=input_covariance, l2=l2, target=target,
        fourth=fourth_moment,
    )  # fmt: skip
    return solved(model, Grid.of(learning_rate, batch_size, len(model.clean)), momentum, matrices=matrices)[0]


def solved(
    model: LinearModel, grid: Grid, momentum: float, shown: Grid | None = None, matrices: bool = True
) -> tuple[xr.Dataset, Modes]:
    """The result of `gaussian`, and the coordinates it was had in.

    shown: the learning rates and batch sizes to label it with, if not those of the grid.
    """
    shown = grid if shown is None else shown
    check_momentum(momentum)
    modes = Modes.of(model.features, model.penalty, grid.rates.root, momentum, model.fourth)
    p, T, shape = len(model.clean), modes.basis, (len(grid.rates.multiples), len(grid.sizes))
    weights, noise = np.full((2, *shape, p, p) if matrices else (2, 0), np.nan)
    train, test, kappa, rate = np.full((4, *shape), np.nan)
    additive = T.T @ model.noise @ T
    status = np.full(shape, DIVERGES, dtype=f"<U{len(STATIONARY)}")
    critical = np.array([modes.critical(1 / S) for S in grid.sizes])
    batches = np.array([modes.critical_batch(c) for c in grid.rates.multiples])
    for i, c in enumerate(grid.rates.multiples):
        for j, S in enumerate(grid.sizes):
            if c >= critical[j]:
                continue
            status[i, j] = STATIONARY
            Sigma = T @ modes.solve(c, 1 / S, additive / S, batches[i]) @ T.T
            train[i, j], test[i, j] = model.losses(Sigma)
            if matrices:
                weights[i, j], noise[i, j] = Sigma, model.gradient_noise(Sigma, 1 / S)
            kappa[i, j] = (modes.features * modes.solve(c, 1 / S, modes.features, batches[i])).sum()
            rate[i, j] = modes.convergence(c, 1 / S)
    found = {
        "train_loss": shown.variable(train),
        "test_loss": shown.variable(test),
        "kappa": shown.variable(kappa),
        "second_moment_rate": shown.variable(rate),
        "status": shown.variable(status),
        "critical_learning_rate": shown.variable(critical, over="batch_size"),
        "critical_batch_size": shown.variable(batches, over="learning_rate"),
        "mean_critical_learning_rate": ((), modes.mean_critical),
        "mean_weights": (("parameter",), np.full(p, np.nan) if modes.unstable else model.minimum),
    }
    if matrices:
        found |= {
            "weight_covariance": shown.variable(weights, *MATRIX),
            "noise_covariance": shown.variable(noise, *MATRIX),
        }
    attributes = {
        "theory": "exact second moments of SGD on a linear model, fresh samples at every step",
        "features": "Gaussian" if model.fourth is None else "given by their fourth moments",
        "parameters": p,
        "momentum": modes.momentum,
    }
    return results.dataset(found, shown.coordinates, attributes), modes
