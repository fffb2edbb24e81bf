"""What turns: the circulation of the stationary state where Hessian and gradient noise do not commute.

    dtheta = -H theta dt + sqrt(2 D) dW,  D = eps C / 2,  H X + X H = 2 D,     Q = H X - D = (H X - X H) / 2

Q is antisymmetric, H = (D + Q) X^-1, the law N(0, X) is stationary all the same, and on its level sets circulates the
current J = p W theta, W = -Q X^-1. Q = 0 if and only if H and C commute, which is detailed balance. Entropy is produced
at the rate tr(Q^T D^-1 Q X^-1), whatever eps. Written with X^-1, the law is the Gibbs state of a modified loss
1/2 theta^T U theta, not of L. A single trajectory turns with noise; it is no closed orbit.
"""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.predict.diffusion.linear import DISCRETE, FIRST, NULL, Minimum
from shotnoise.predict.diffusion.ornstein_uhlenbeck import MATRIX, require_stationary
from shotnoise.predict.diffusion.settings import Array, Setting, matrices
from shotnoise.sampling import Sampling


def rotation(
    hessian: ArrayLike, noise_covariance: ArrayLike, learning_rate: float, batch_size: int,
    *, sampling: Sampling | None = None, n: int | None = None,
) -> xr.Dataset:  # fmt: skip
    """The rotational part of the stationary state at a quadratic minimum, in any dimension.

    hessian H and noise_covariance C (d, d), C of one sample's gradient; momentum 0. Returns

    `weight_covariance`   X of the first-order SDE `rotation`            Q, antisymmetric; -Q is the area swept per unit
    time, the antisymmetric part of E dtheta theta^T / dt `circulation`         W with J / p = W theta; in two
    dimensions its curl is `velocity_curl` `rotation_rates`      angular velocities, the positive imaginary parts of W's
    eigenvalues (mode), d // 2 of them `entropy_production`  per unit time t = k eta; infinite where Q leaves the range
    of C `entropy_per_step`    of the discrete chain with Gaussian noise; over eta it tends to the former
    `modified_hessian`    U = T X^-1, T = `temperature` = eps tr C / (2 d): the law is exp(-theta^T U theta / (2 T));
                          pseudo-inverse on the range of X where that is singular. U = H where C is a multiple of I.
    `commutator`          ||H C - C H|| / ||H C|| in the Frobenius norm

    Raises InputError where there is no stationary state. Source: sec. 6 of the corrected notes; Kwon, Ao and Thouless
    (2005); for SGD Chaudhari and Soatto (2018).

    >>> r = rotation([[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 0.6]], 0.1, 4)
    >>> round(float(r["rotation"][0, 1]), 12), round(float(r["entropy_production"]), 10)
    (-0.002083333333, 0.1633986928)
    """
    H, C = matrices(hessian, noise_covariance)
    minimum = Minimum(H, C, Setting.of(learning_rate, batch_size, 0.0, sampling, n))
    require_stationary(minimum, FIRST)
    X, D, d = minimum.settled(FIRST), minimum.setting.epsilon / 2 * C, len(H)
    Q = (H @ X - X @ H) / 2
    inverse: Array = np.asarray(np.linalg.pinv(X, rcond=NULL, hermitian=True), np.float64)
    W = -Q @ inverse
    temperature = minimum.setting.epsilon * float(np.trace(C)) / (2 * d)
    scale = np.linalg.norm(H @ C)
    found = {
        "weight_covariance": (MATRIX, X),
        "rotation": (MATRIX, Q),
        "circulation": (MATRIX, W),
        "rotation_rates": (("mode",), np.sort(np.linalg.eigvals(W).imag)[::-1][: d // 2]),
        "entropy_production": ((), _production(Q, D, inverse)),
        "entropy_per_step": ((), _per_step(minimum)),
        "modified_hessian": (MATRIX, temperature * inverse),
        "temperature": ((), temperature),
        "commutator": ((), float(np.linalg.norm(H @ C - C @ H) / scale) if scale else 0.0),
    }
    if d == 2:
        found["velocity_curl"] = ((), float(W[1, 0] - W[0, 1]))
    attributes = {"theory": "rotation of the Ornstein-Uhlenbeck process", **minimum.setting.attributes}
    return results.dataset(found, {}, attributes)


def _production(Q: Array, D: Array, inverse: Array) -> float:
    values, vectors = np.linalg.eigh(D)
    kept = values > NULL * max(values[-1], np.finfo(float).tiny)
    outside = vectors[:, ~kept].T @ Q
    if np.abs(outside).max(initial=0.0) > 1e-10 * max(np.abs(Q).max(), np.finfo(float).tiny) and np.abs(Q).max():
        return np.inf
    within = vectors[:, kept].T @ Q
    return float(np.trace((within.T / values[kept]) @ within @ inverse))


def _per_step(minimum: Minimum) -> float:
    """Relative entropy of a pair of successive weights against the pair turned round; Gaussian noise."""
    if minimum.status(DISCRETE) != "stationary":
        return np.nan
    X, d = minimum.settled(DISCRETE), len(minimum.hessian)
    later = X - minimum.setting.learning_rate * minimum.hessian @ X  # E theta_{k+1} theta_k^T
    if np.linalg.matrix_rank(minimum.noise, tol=NULL * np.abs(minimum.noise).max(), hermitian=True) < d:
        return np.inf if np.abs(later - later.T).max() > NULL * np.abs(later).max() else 0.0
    forward, backward = np.block([[X, later], [later.T, X]]), np.block([[X, later.T], [later, X]])
    return float(np.trace(np.linalg.solve(forward, backward)) / 2 - d)
