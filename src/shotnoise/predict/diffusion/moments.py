"""First and second moments of linear models, exactly, under SGD and under its diffusions: no path is ever drawn.

With squared loss the noise covariance is quadratic in the weights, and in delta = w - w*, m = E delta, M = E delta
delta^T

    discrete      m' = F m,       M' = F M F^T + eta^2 s_f Sigma(m, M),     F = I - eta H
    first order   dm = -H m dt,   dM = [-H M - M H + eps Sigma(m, M)] dt,   second order with H + eta/2 H^2 for H

close: one linear system of 1 + d + d^2 numbers, whose exponential gives any time. Sigma(m, M) of one sample's gradient
is affine in m and M: from the samples, or K M K + tr(K M) K + sigma^2 K for Gaussian features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.linalg import expm

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.diffusion.linear import DISCRETE, FIRST, SECOND
from shotnoise.predict.diffusion.settings import Array, Setting
from shotnoise.predict.linear_regression.least_squares import least_squares
from shotnoise.predict.stationary.arguments import covariance, variance, vector
from shotnoise.sampling import Sampling

THEORIES = (FIRST, SECOND, DISCRETE)
MATRIX = ("parameter", "parameter_")
MOST = 40  # weights: the system has d^2 unknowns


@dataclass(frozen=True)
class LinearModel:
    """H and Sigma(m, M) = additive + linear(m) + quadratic(M); n is None for a population."""

    hessian: Array
    minimum: Array
    additive: Array  # (d, d)
    linear: Array  # (d, d, d), the last index that of m
    quadratic: Array  # (d, d, d, d), the last two those of M
    n: int | None

    @classmethod
    def of_data(cls, X: ArrayLike, y: ArrayLike, l2: float = 0.0) -> "LinearModel":
        data = least_squares(X, y, intercept=False, l2=l2)
        if data.y.shape[1] != 1 or data.p > MOST:
            raise InputError(
                f"X {data.x.shape}, y {data.y.shape}: one output and at most {MOST} features are known here"
            )
        x, H, n = data.x, data.hessian, data.n
        w = np.linalg.lstsq(H, data.cross[0], rcond=None)[0]
        r, K = x @ w - data.y[:, 0], data.moment
        mean = x.T @ r / n
        # g_i - mean = x_i (r_i + x_i . delta) - (mean + K delta)
        additive = np.einsum("n,ni,nj->ij", r**2, x, x) / n - np.outer(mean, mean)
        third = np.einsum("n,ni,nj,nk->ijk", 2 * r, x, x, x, optimize=True) / n
        linear = third - np.einsum("i,jk->ijk", mean, K) - np.einsum("j,ik->ijk", mean, K)
        quadratic = np.einsum("ni,nj,nk,nl->ijkl", x, x, x, x, optimize=True) / n - np.einsum("ik,jl->ijkl", K, K)
        return cls(H, w, additive, linear, quadratic, n)

    @classmethod
    def gaussian(cls, feature_covariance: ArrayLike, label_variance: float) -> "LinearModel":
        K = covariance("feature_covariance", feature_covariance)
        if len(K) > MOST:
            raise InputError(f"feature_covariance {K.shape}: at most {MOST} features are known here")
        d = len(K)
        quadratic = np.einsum("ik,jl->ijkl", K, K) + np.einsum("ij,kl->ijkl", K, K)
        return cls(K, np.zeros(d), variance("label_variance", label_variance) * K, np.zeros((d, d, d)), quadratic, None)

    @cached_property
    def d(self) -> int:
        return len(self.hessian)

    def noise(self, m: Array, M: Array) -> Array:
        found: Array = self.additive + self.linear @ m + np.einsum("ijkl,kl->ij", self.quadratic, M)
        return found

    def system(self, theory: str, setting: Setting) -> Array:
        """The matrix G with dz/dt = G z, or z' = G z in discrete time; z = (1, m, M)."""
        d, eta = self.d, setting.learning_rate
        one = np.eye(d)
        G = np.zeros((1 + d + d * d, 1 + d + d * d))
        if theory == DISCRETE:
            F, strength = one - eta * self.hessian, eta * setting.epsilon
            G[0, 0], G[1 : 1 + d, 1 : 1 + d], moved = 1.0, F, np.kron(F, F)
        else:
            A = self.hessian + (eta / 2 * self.hessian @ self.hessian if theory == SECOND else 0.0)
            strength = setting.epsilon
            G[1 : 1 + d, 1 : 1 + d], moved = -A, -np.kron(A, one) - np.kron(one, A)
        G[1 + d :, 1 + d :] = moved + strength * self.quadratic.reshape(d * d, d * d)
        G[1 + d :, 1 : 1 + d] = strength * self.linear.reshape(d * d, d)
        G[1 + d :, 0] = strength * self.additive.ravel()
        return G

    def stationary(self, theory: str, setting: Setting) -> Array | None:
        """M, the covariance (the mean is the minimum), or None where second moments grow without limit."""
        d = self.d
        G = self.system(theory, setting)
        values = np.linalg.eigvals(G[1:, 1:])
        stable = np.abs(values).max() < 1 if theory == DISCRETE else values.real.max() < 0
        if not stable:
            return None
        inner = G[1 + d :, 1 + d :] - (np.eye(d * d) if theory == DISCRETE else 0.0)
        found: Array = np.asarray(np.linalg.solve(inner, -G[1 + d :, 0]), np.float64).reshape(d, d)
        return (found + found.T) / 2


def regression_moments(
    model: LinearModel,
    learning_rate: float,
    batch_size: int,
    steps: Sequence[int],
    initial: ArrayLike,
    *,
    sampling: Sampling | None = None,
) -> xr.Dataset:
    """Mean and covariance of the weights after so many updates, of SGD ("discrete") and of its two diffusions, exactly.

    model: `LinearModel.of_data(X, y, l2)` or `LinearModel.gaussian(feature_covariance, label_variance)`, whose weights
    count from the true ones. sampling: fresh batches, default WithReplacement(). Returns `mean_weights` and
    `weight_covariance` by (theory, step, ..). The differences are the weak errors: O(eta) under the first order and
    O(eta^2) under the second at fixed k eta. Source: sec. 3 of the corrected notes; Li, Tai and E (2019).

    >>> r = regression_moments(LinearModel.gaussian([1.0], 0.5), 0.1, 4, [20], [1.0])
    >>> second = (r["weight_covariance"].squeeze() + r["mean_weights"].squeeze() ** 2).values
    >>> [f"{x:.1e}" for x in (second[:2] - second[2]).tolist()]
    ['3.2e-03', '-7.9e-04']
    """
    setting = Setting.of(learning_rate, batch_size, 0.0, sampling, model.n)
    d = model.d
    start = vector("initial", initial, d) - model.minimum
    z0 = np.concatenate([[1.0], start, np.outer(start, start).ravel()])
    means, covariances = np.empty((3, len(steps), d)), np.empty((3, len(steps), d, d))
    for a, theory in enumerate(THEORIES):
        G = model.system(theory, setting)
        for k, step in enumerate(steps):
            power = np.linalg.matrix_power(G, int(step)) if theory == DISCRETE else expm(G * (step * learning_rate))
            z = power @ z0
            m = z[1 : 1 + d]
            means[a, k] = model.minimum + m
            covariances[a, k] = z[1 + d :].reshape(d, d) - np.outer(m, m)
    found = {
        "mean_weights": (("theory", "step", "parameter"), means),
        "weight_covariance": (("theory", "step", *MATRIX), covariances),
    }
    attributes = {"theory": "exact moments of a linear model, discrete and continuous", **setting.attributes}
    return results.dataset(found, {"theory": list(THEORIES), "step": list(steps)}, attributes)
