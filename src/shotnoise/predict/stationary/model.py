"""A linear model fitted to data with noise in labels and inputs and an L2 penalty: its minimum and its noise there.

    x = x~ + eta, cov x~ = A, cov eta = B;  y = u^T x~ + eps, var eps = sigma^2;  loss E 1/2 (x^T w - y)^2 + 1/2 w^T G w
    K = A + B,  w* = (K + G)^-1 A u,  e2 = E (x^T w* - y)^2,  q = K w* - A u = -G w*,

and the covariance of the gradient of one sample at w* is e2 K + q q^T for Gaussian features (the sign is plus), and for
others, with d = w* - u, E[x x^T d d^T x x^T] + sigma^2 K - q q^T. Sources: Lemma 1, Propositions 3 and 9 of Ziyin et
al. (2022) in one formula, without their commutators.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shotnoise.errors import InputError
from shotnoise.predict.stationary.arguments import (
    Array,
    FourthMoment,
    covariance,
    fourth_moment,
    penalty,
    variance,
    vector,
)
from shotnoise.predict.stationary.modes import NULL, spread


@dataclass(frozen=True)
class LinearModel:
    clean: Array  # A (p, p)
    features: Array  # K
    penalty: Array  # G
    target: Array  # u (p,)
    minimum: Array  # w*, the shortest if there are several
    residual: float  # e2
    noise: Array  # of one sample at w*, (p, p)
    fourth: FourthMoment | None

    @classmethod
    def of(
        cls,
        feature_covariance: ArrayLike,
        *,
        label_variance: float = 0.0,
        input_covariance: ArrayLike | None = None,
        l2: ArrayLike = 0.0,
        target: ArrayLike | None = None,
        fourth: FourthMoment | ArrayLike | None = None,
    ) -> "LinearModel":
        A = covariance("feature_covariance", feature_covariance)
        p = len(A)
        B = np.zeros((p, p)) if input_covariance is None else covariance("input_covariance", input_covariance, p)
        G, sigma2 = penalty("l2", l2, p), variance("label_variance", label_variance)
        if target is None and (B.any() or G.any()):
            raise InputError(
                "target: with input noise or a penalty the noise depends on the true weights; give target, one number "
                f"per feature ({p})"
            )
        if fourth is not None and B.any():
            raise InputError(
                "fourth_moment: with input noise the joint moments of clean and observed features would be needed; "
                "leave out one of the two, or give the data to `finite_data`"
            )
        moment = fourth_moment(fourth, A)
        u = np.zeros(p) if target is None else vector("target", target, p)
        K = A + B
        minimum = _solve(K + G, A @ u) if B.any() or G.any() else u
        q, off = K @ minimum - A @ u, minimum - u
        residual = float(sigma2 + off @ A @ off + minimum @ B @ minimum)
        if moment is None:
            noise = residual * K + np.outer(q, q)
        else:
            noise = moment(np.outer(off, off)) + sigma2 * K - np.outer(q, q)
        return cls(A, K, G, u, minimum, residual, noise, moment)

    @property
    def hessian(self) -> Array:
        return self.features + self.penalty

    def gradient_noise(self, weights: Array, s: float) -> Array:
        """Covariance of the minibatch gradient for weights of this covariance, on average; s is 1/S."""
        return s * (spread(self.features, weights, self.fourth) + self.noise)

    def losses(self, weights: Array) -> tuple[Array, Array]:
        """Training and test loss for weight covariances (..., p, p); the test is on clean inputs and labels."""
        train = self.residual + self.minimum @ self.penalty @ self.minimum
        off = self.minimum - self.target
        found = (
            0.5 * (train + np.einsum("ij,...ij->...", self.hessian, weights)),
            0.5 * (off @ self.clean @ off + np.einsum("ij,...ij->...", self.clean, weights)),
        )
        return found


def _solve(hessian: Array, cross: Array) -> Array:
    """The shortest solution; along flat directions there is nothing to solve."""
    values, vectors = np.linalg.eigh(hessian)
    kept = np.abs(values) > NULL * np.abs(values).max(initial=0.0)
    found: Array = vectors[:, kept] @ (vectors[:, kept].T @ cross / values[kept])
    return found
