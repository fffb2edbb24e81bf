"""The Ornstein-Uhlenbeck answers as results: where the weights settle, how they get there, how long they remember."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import logm

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.diffusion.linear import (
    DISCRETE,
    DIVERGES,
    NULL,
    SPREADS,
    STATIONARY,
    UNDERDAMPED,
    Minimum,
    theories,
)
from shotnoise.predict.diffusion.settings import Array, Setting, matrices
from shotnoise.predict.stationary.arguments import covariance, vector
from shotnoise.sampling import Sampling

MATRIX = ("parameter", "parameter_")
THEORY = "constant noise at a quadratic minimum: continuous models beside the discrete chain"


def ornstein_uhlenbeck(
    hessian: ArrayLike,
    noise_covariance: ArrayLike,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    *,
    sampling: Sampling | None = None,
    n: int | None = None,
) -> xr.Dataset:
    """Stationary covariance of the weights at a quadratic minimum, by each continuous model and by the discrete chain.

    hessian: H (d, d). noise_covariance: C (d, d), of ONE sample's gradient; the batch noise has s_f C, s_f = 1/B with
    replacement (default), (n - B) / (B (n - 1)) without. Momentum is PyTorch's. Models (`theory`): without momentum
    "first order", "second order", "second order, corrected"; with momentum "overdamped" (mu fixed, eta -> 0) and
    "underdamped" (eta -> 0 at fixed (1 - mu) / sqrt(eta), the better one as mu -> 1 where eta (h_i - h_j)^2 / (1-mu)^2
    is not small); last "discrete", SGD itself with this noise, exactly. Singular C is fine, nothing is inverted.

    Returns `weight_covariance` (theory, parameter, parameter_), `relative_error` of each against the discrete one (in
    the Frobenius norm, with the sign of the trace of the difference), `status`: "stationary", "spreads" (a flat
    direction is noisy: no stationary law, NaN) or "diverges"; `settled_covariance`, the part that has a limit;
    `covariance_growth`, what the covariance gains per update along noisy flat directions; with momentum
    `position_momentum_covariance` E theta p^T and `momentum_covariance` E p p^T of the underdamped model, p = v /
    sqrt(eta). Flat directions without noise keep their start and count as stationary. Source: sec. 2 of the notes on
    the continuous-time limit, corrected; Li, Tai and E (2019); Mandt, Hoffman and Blei (2017).

    >>> s = ornstein_uhlenbeck([2.0, 1.0], [1.0, 0.6], learning_rate=0.1, batch_size=4)
    >>> s["weight_covariance"].sel(theory="first order").values.diagonal().round(12).tolist()
    [0.00625, 0.0075]
    >>> s["relative_error"].values.round(4).tolist()  # the second order is the worse one
    [-0.076, -0.1398, -0.0125, 0.0]
    """
    minimum = _minimum(hessian, noise_covariance, learning_rate, batch_size, momentum, sampling, n)
    names = theories(momentum)
    statuses = [minimum.status(name) for name in names]
    settled = np.array([minimum.settled(name) for name in names])
    settled[np.array(statuses) == DIVERGES] = np.nan
    there = np.where((np.array(statuses) == STATIONARY)[:, None, None], settled, np.nan)
    found: dict[str, object] = {
        "weight_covariance": (("theory", *MATRIX), there),
        "settled_covariance": (("theory", *MATRIX), settled),
        "relative_error": (("theory",), _errors(settled)),
        "status": (("theory",), statuses),
        "covariance_growth": (MATRIX, minimum.growth()),
    }
    if momentum and UNDERDAMPED in names and statuses[names.index(UNDERDAMPED)] == STATIONARY:
        cross, own = minimum.momenta()
        found["position_momentum_covariance"] = (MATRIX, cross)
        found["momentum_covariance"] = (MATRIX, own)
    return results.dataset(found, {"theory": list(names)}, {"theory": THEORY, **minimum.setting.attributes})


def transient(
    hessian: ArrayLike,
    noise_covariance: ArrayLike,
    learning_rate: float,
    batch_size: int,
    steps: Sequence[int],
    initial: ArrayLike,
    initial_covariance: ArrayLike | None = None,
    momentum: float = 0.0,
    *,
    sampling: Sampling | None = None,
    n: int | None = None,
) -> xr.Dataset:
    """Mean and covariance of the weights after so many updates, for every model of `ornstein_uhlenbeck`; exact.

    initial: mean of the first weights (d,), counted from the minimum; initial_covariance: theirs, default none. The
    velocity starts at 0. Returns `mean_weights` (theory, step, parameter), `weight_covariance` (theory, step,
    parameter, parameter_). Unstable and flat directions are no exception.

    >>> t = transient([1.0], [2.0], 0.1, 1, steps=[0, 10], initial=[1.0])
    >>> t["mean_weights"].sel(theory=["first order", "discrete"], step=10).values.round(6).ravel().tolist()
    [0.367879, 0.348678]
    """
    minimum = _minimum(hessian, noise_covariance, learning_rate, batch_size, momentum, sampling, n)
    d, names = len(minimum.hessian), theories(momentum)
    m0 = vector("initial", initial, d)
    X0 = np.zeros((d, d)) if initial_covariance is None else covariance("initial_covariance", initial_covariance, d)
    when = _whole("steps", steps)
    means, covariances = np.empty((len(names), len(when), d)), np.empty((len(names), len(when), d, d))
    for a, name in enumerate(names):
        system = minimum.system(name)
        for k, step in enumerate(when):
            E, N = system.propagated(step)
            means[a, k] = E[:d, :d] @ m0
            covariances[a, k] = E[:d, :d] @ X0 @ E[:d, :d].T + N[:d, :d]
    found = {
        "mean_weights": (("theory", "step", "parameter"), means),
        "weight_covariance": (("theory", "step", *MATRIX), covariances),
    }
    attributes = {"theory": THEORY, **minimum.setting.attributes}
    return results.dataset(found, {"theory": list(names), "step": when}, attributes)


def autocorrelation(
    hessian: ArrayLike,
    noise_covariance: ArrayLike,
    learning_rate: float,
    batch_size: int,
    lags: Sequence[int],
    momentum: float = 0.0,
    *,
    sampling: Sampling | None = None,
    n: int | None = None,
) -> xr.Dataset:
    """E theta_{k + lag} theta_k^T in the stationary state, for every model of `ornstein_uhlenbeck`.

    Returns `weight_autocovariance` (theory, lag, parameter, parameter_), the later weights first. Its antisymmetric
    part at lag 1 is -eta Q to leading order, which shows the rotation of `diffusion.rotation` without knowing C.
    Raises InputError where there is no stationary state.

    >>> a = autocorrelation([1.0], [2.0], 0.1, 1, lags=[0, 1])
    >>> a["weight_autocovariance"].sel(theory="first order").values.ravel().round(6).tolist()  # 0.1 and 0.1 / e^0.1
    [0.1, 0.090484]
    """
    minimum = _minimum(hessian, noise_covariance, learning_rate, batch_size, momentum, sampling, n)
    require_stationary(minimum, DISCRETE)
    when, names, d = _whole("lags", lags), theories(momentum), len(minimum.hessian)
    values = np.empty((len(names), len(when), d, d))
    for a, name in enumerate(names):
        system, X = minimum.system(name), minimum.settled(name)
        whole = _all_covariances(minimum, name, X)
        for k, lag in enumerate(when):
            values[a, k] = (system.propagated(lag)[0] @ whole)[:d, :d]
    found = {"weight_autocovariance": (("theory", "lag", *MATRIX), values)}
    attributes = {"theory": THEORY, **minimum.setting.attributes}
    return results.dataset(found, {"theory": list(names), "lag": when}, attributes)


def exact_embedding(
    hessian: ArrayLike, noise_covariance: ArrayLike, learning_rate: float, batch_size: int,
    *, sampling: Sampling | None = None, n: int | None = None,
) -> xr.Dataset:  # fmt: skip
    """The linear SDE that has all first and second moments of the discrete chain at t = k eta.

    Drift matrix A = -log(I - eta H) / eta, diffusion 2D = A X + X A^T with the discrete X. Returns `drift_matrix`,
    `diffusion_matrix` (2D) and `weight_covariance`. Raises InputError where eta h >= 1, no real logarithm, or where 2D
    is not positive semi-definite: then no SDE has these moments.

    >>> e = exact_embedding([1.0], [2.0], 0.1, 1)
    >>> round(float(e["drift_matrix"].item()), 6), round(float(e["diffusion_matrix"].item()), 6)
    (1.053605, 0.221812)
    """
    minimum = _minimum(hessian, noise_covariance, learning_rate, batch_size, 0.0, sampling, n)
    require_stationary(minimum, DISCRETE)
    eta, H = learning_rate, minimum.hessian
    largest = float(minimum.eigen[0].max())
    if eta * largest >= 1:
        raise InputError(
            f"learning_rate {eta:g} times the largest curvature {largest:.3g} is {eta * largest:.3g}: an exact "
            "embedding needs less than 1, for beyond it SGD jumps over the minimum, which no diffusion does"
        )
    X = minimum.settled(DISCRETE)
    A = -np.real(logm(np.eye(len(H)) - eta * H)) / eta
    D = A @ X + X @ A.T
    lowest = np.linalg.eigvalsh(D)
    if lowest[0] < -1e-10 * max(lowest[-1], np.finfo(float).tiny):
        raise InputError(f"no SDE has these moments: its diffusion would have the negative eigenvalue {lowest[0]:.3g}")
    found = {"drift_matrix": (MATRIX, A), "diffusion_matrix": (MATRIX, D), "weight_covariance": (MATRIX, X)}
    return results.dataset(found, {}, {"theory": "exact embedding of the discrete chain", **minimum.setting.attributes})


def require_stationary(minimum: Minimum, theory: str) -> None:
    status, values = minimum.status(theory), minimum.eigen[0]
    if status == SPREADS:
        raise InputError(
            f"{int(minimum.spreading.sum())} flat directions of the Hessian are noisy: the weights spread along them "
            "for ever and there is no stationary state; `transient` says how they spread"
        )
    if status == DIVERGES:
        raise InputError(
            f"no stationary state at learning_rate={minimum.setting.learning_rate:g}: curvatures run from "
            f"{values.min():.3g} to {values.max():.3g} and must lie between 0 and "
            f"{2 * (1 + minimum.setting.momentum) / minimum.setting.learning_rate:.3g}"
        )


def _minimum(
    hessian: ArrayLike,
    noise_covariance: ArrayLike,
    learning_rate: float,
    batch_size: int,
    momentum: float,
    sampling: Sampling | None,
    n: int | None,
) -> Minimum:
    H, C = matrices(hessian, noise_covariance)
    return Minimum(H, C, Setting.of(learning_rate, batch_size, momentum, sampling, n))


def _all_covariances(minimum: Minimum, theory: str, X: Array) -> Array:
    """The stationary covariance of z: of the weights alone, or of weights and momenta."""
    system, d = minimum.system(theory), len(X)
    if len(system.matrix) == d:
        return X
    if theory == UNDERDAMPED:
        cross, own = minimum.momenta()
    else:  # p = (theta_k - theta_{k-1}) / sqrt(eta), and E theta_{k+1} theta_k^T follows from the chain itself
        eta, mu = minimum.setting.learning_rate, minimum.setting.momentum
        # theta_{k+1} = ((1 + mu) I - eta H) theta_k - mu theta_{k-1} + noise, so that G = E theta_{k+1} theta_k^T is
        # ((1 + mu) I - eta H) X - mu G^T.
        right = (1 + mu) * X - eta * minimum.hessian @ X
        G = (right - mu * right.T) / (1 - mu**2)
        cross, own = (X - G) / np.sqrt(eta), (2 * X - G - G.T) / eta
    return np.block([[X, cross], [cross.T, own]])


def _whole(name: str, given: Sequence[int]) -> list[int]:
    found = np.asarray(given)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iu" or (found < 0).any():
        raise InputError(f"{name}={given}: a sequence of whole numbers that are not negative")
    return [int(k) for k in found]


def _errors(settled: Array) -> Array:
    """Against the last: the Frobenius norm of the difference, with the sign of its trace."""
    exact = settled[-1]
    size = np.linalg.norm(exact)
    off = np.linalg.norm(settled - exact, axis=(1, 2)) / (size if size > NULL else 1.0)
    found: Array = off * np.where(np.trace(settled - exact, axis1=1, axis2=2) < 0, -1.0, 1.0)
    return found
