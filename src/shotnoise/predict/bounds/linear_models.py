"""The bounds on one step specialised to linear models with more features than samples (Corollaries 1 and 2).

    alpha = smallest eigenvalue of X X^T / n > 0,   beta = max |x_i|^2,   step eta = alpha / (beta L)

    least squares  f = |X w - y|^2 / (2 n s^2)      L = lambda_max(X^T X) / (n s^2)
                                                    U_+ <= -alpha^2 |X w - y|^2 / (2 beta L n s^4)
    logistic       f = cross-entropy, y in {0, 1}   L = lambda_max(X^T X) / (4 n)
                                                    U_+ <= -alpha^2 |y - p|^2 / (2 beta L n)

with the deviations of `tails`, alpha_1 = eta (1 - eta L) sqrt(kappa mu^T Sigma mu). This is the main text with the
variance s^2 of the noise restored; the appendix has X X^T / n^2, another eta, and alpha_1 without 1/sqrt(m) in places.
Note that eta L = alpha / beta <= 1 / n: a guarantee for a tiny step.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.bounds.batches import check_sampling
from shotnoise.predict.bounds.one_step import check_probabilities
from shotnoise.predict.bounds.step import Step
from shotnoise.predict.bounds.tails import PRINTED, SUB_GAMMA
from shotnoise.sampling import Sampling

Array = NDArray[np.float64]
DEPENDENT = 1e-12  # of the largest eigenvalue: below it alpha is 0
FORMS = (SUB_GAMMA, PRINTED)


def least_squares(
    x: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike,
    batch_size: int,
    *,
    noise_variance: float = 1.0,
    sampling: Sampling | None = None,
    tail_probabilities: Sequence[float] = (0.1, 0.05, 0.01, 0.001),
) -> xr.Dataset:
    """Corollary 1: one step of SGD on f = |X w - y|^2 / (2 n s^2), with its own learning rate alpha / (beta L).

    x (n, p), linearly independent rows; y (n,); weights (p,); noise_variance: s^2; sampling: default WithReplacement().
    Returns `learning_rate`, `smoothness`; `loss_change_upper` (form): U_+, and the corollary's simpler bound of it;
    `loss_change_lower`; `loss_change_bound` (bound, tail_probability), that the change exceeds with at most this
    probability under the noise model; `second_order_mean`, the exact mean: the loss is quadratic.
    Raises InputError where alpha is 0 (fewer features than samples, or dependent samples): the step would be 0.

    >>> x = 2 * np.eye(4, 6)
    >>> found = least_squares(x, [1.0, 1.0, -1.0, 2.0], np.zeros(6), 2, noise_variance=4.0)
    >>> bool(found["second_order_mean"] <= found["loss_change_upper"].sel(form="corollary"))
    True
    """
    X, target, w = _arrays(x, y, weights)
    if not noise_variance > 0:
        raise InputError(f"noise_variance={noise_variance}: a positive number")
    n, residual = len(X), X @ w - target
    curvature = float(np.linalg.eigvalsh(X @ X.T)[-1]) / (n * noise_variance)
    gradients = residual[:, None] * X / noise_variance
    found, attributes, kappa = _found(
        X, gradients, residual, curvature, noise_variance**2, batch_size, sampling, tail_probabilities
    )
    eta, mu = float(found["learning_rate"]), gradients.mean(0)
    centred = gradients - mu
    noise = float(((X @ centred.T) ** 2).sum(0).mean()) / (n * noise_variance)  # Tr H Sigma
    slope = float(((X @ mu) ** 2).sum()) / (n * noise_variance)
    exact = -eta * mu @ mu + 0.5 * eta**2 * (slope + kappa * noise)
    return _dataset(found.assign(second_order_mean=exact), attributes | {"theory": "Corollary 1, corrected"})


def logistic(
    x: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike,
    batch_size: int,
    *,
    sampling: Sampling | None = None,
    tail_probabilities: Sequence[float] = (0.1, 0.05, 0.01, 0.001),
) -> xr.Dataset:
    """Corollary 2: one step of SGD on the logistic loss, y in {0, 1}; arguments and results as in `least_squares`.

    The loss is not quadratic, and there is no `second_order_mean`; L = lambda_max(X^T X) / (4 n) is a certified
    constant.

    >>> found = logistic(np.eye(2, 3), [0, 1], np.zeros(3), 1)
    >>> float(found["loss_change_upper"].sel(form="corollary"))
    -0.25
    """
    X, target, w = _arrays(x, y, weights)
    if not np.isin(target, (0, 1)).all():
        raise InputError("y: class labels 0 and 1 are needed")
    residual = 1 / (1 + np.exp(-(X @ w))) - target
    curvature = float(np.linalg.eigvalsh(X @ X.T)[-1]) / (4 * len(X))
    found, attributes, _ = _found(
        X, residual[:, None] * X, residual, curvature, 1.0, batch_size, sampling, tail_probabilities
    )
    return _dataset(found, attributes | {"theory": "Corollary 2, corrected"})


def _found(
    X: Array,
    gradients: Array,
    residual: Array,
    L: float,
    scale: float,
    m: int,
    sampling: Sampling | None,
    probabilities: Sequence[float],
) -> tuple[xr.Dataset, dict[str, object], float]:
    sampling = check_sampling(sampling)
    n = len(X)
    sampling.check(m, n)
    check_probabilities(probabilities)
    spectrum = np.linalg.eigvalsh(X @ X.T) / n
    alpha, beta = float(spectrum[0]), float((X**2).sum(1).max())
    if not alpha > DEPENDENT * spectrum[-1]:
        raise InputError(
            f"x: the rows of a ({n}, {X.shape[1]}) matrix must be linearly independent (more features than samples), "
            f"but X X^T / n has the eigenvalue {alpha:.2g}: the step would be 0; use bounds.one_step"
        )
    eta = alpha / (beta * L)
    kappa, step = sampling.variance_factor(m, n), Step.of_gradients(gradients)
    low, high = step.expectation(eta, L, kappa)
    simple = -(alpha**2) * float(residual @ residual) / (2 * beta * L * n * scale)
    tail = step.tails(eta, L, kappa)[0]
    bounds = [[simple + tail.threshold(p, form) for p in probabilities] for form in FORMS]
    found = xr.Dataset(
        {
            "learning_rate": eta,
            "smoothness": L,
            "loss_change_lower": low,
            "loss_change_upper": ("form", [high, simple]),
            "loss_change_bound": (("bound", "tail_probability"), bounds),
        },
        {
            "form": ["batch", "corollary"],
            "bound": list(FORMS),
            "tail_probability": np.asarray(probabilities, np.float64),
        },
    )
    promising = [form for form, row in zip(FORMS, bounds, strict=True) if min(row) < 0]
    attributes = {
        "alpha": alpha,
        "beta": beta,
        "batch_size": m,
        "sampling": str(sampling),
        "tails_say": f"descent promised by: {', '.join(promising)}" if promising else "vacuous as a promise of descent",
    }
    return found, attributes, kappa


def _dataset(found: xr.Dataset, attributes: dict[str, object]) -> xr.Dataset:
    variables, coordinates = ({str(k): v for k, v in part.items()} for part in (found.data_vars, found.coords))
    return results.dataset(variables, coordinates, attributes)


def _arrays(x: ArrayLike, y: ArrayLike, weights: ArrayLike) -> tuple[Array, Array, Array]:
    X, target, w = (np.asarray(a, np.float64) for a in (x, y, weights))
    if X.ndim != 2 or target.shape != X.shape[:1] or w.shape != X.shape[1:]:
        raise InputError(f"x (n, p), y (n,) and weights (p,) are needed; got {X.shape}, {target.shape}, {w.shape}")
    if not all(np.isfinite(a).all() for a in (X, target, w)):
        raise InputError("x, y, weights: finite numbers are needed")
    return X, target, w
