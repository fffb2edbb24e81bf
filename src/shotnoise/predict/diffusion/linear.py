"""Linear drift and constant noise, in closed form: every continuous model beside the discrete chain it stands for.

Near a minimum, L = 1/2 theta^T H theta, with C the covariance of ONE sample's gradient and eps = eta s_f. In the
eigenbasis of H, curvatures h, the stationary covariance of the weights is X_ij = eps C_ij n_ij / d_ij, and of

    first order     dtheta = -H theta dt + sqrt(eps C) dW              n = 1, d = h_i + h_j
    second order    drift -(H + eta/2 H^2) theta (Li, Tai, E)          n = 1, d = h_i + h_j + eta/2 (h_i^2 + h_j^2)
    corrected       the same, C + eta/2 (H C + C H)                    n = 1 + eta/2 (h_i + h_j), d as before
    overdamped      first order in time k eta / (1 - mu)               d = (1 - mu) (h_i + h_j)
    underdamped     dtheta = p dt, dp = -gamma p dt - H theta dt ..  d as overdamped + eta (h_i - h_j)^2 / (2 (1 - mu))
    discrete        w <- w + v, v <- mu v - eta g, white noise         see `predict.damping`

The second-order drift alone corrects transients, not the stationary covariance: there it corrects the wrong way, and
its error is twice that of the first order. Directions with h = 0: without noise the weights stay there, with it they
spread for ever, in all models by the same eta^2 s_f C / (1 - mu)^2 per update.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import expm

from shotnoise.predict import damping
from shotnoise.predict.diffusion.settings import Array, Setting

FIRST, SECOND, CORRECTED, DISCRETE = "first order", "second order", "second order, corrected", "discrete"
OVERDAMPED, UNDERDAMPED = "overdamped", "underdamped"
NULL = 1e-12  # shares of the largest below which curvatures, and noise in flat directions, count as zero
STATIONARY, SPREADS, DIVERGES = "stationary", "spreads", "diverges"


def theories(momentum: float) -> tuple[str, ...]:
    return (OVERDAMPED, UNDERDAMPED, DISCRETE) if momentum else (FIRST, SECOND, CORRECTED, DISCRETE)


@dataclass(frozen=True)
class System:
    """z = (theta, ..): dz = -matrix z dt + noise, or z <- matrix z + noise where `time` is None."""

    matrix: Array  # (q, q)
    noise: Array  # (q, q), covariance per unit time, or per update
    time: float | None  # that one update takes

    def propagated(self, updates: float) -> tuple[Array, Array]:
        """E and N with z(k) = E z(0) + noise of covariance N after k updates; k whole for the discrete chain."""
        if self.time is None:
            return _powers(self.matrix, self.noise, int(updates))
        elapsed = updates * self.time
        norm = max(1.0, float(np.abs(self.matrix).sum(1).max()) * elapsed)
        halvings = int(np.ceil(np.log2(norm))) + 1
        E, N = _short(self.matrix, self.noise, elapsed / 2**halvings)
        for _ in range(halvings):
            E, N = E @ E, N + E @ N @ E.T
        return E, N


@dataclass(frozen=True)
class Minimum:
    """A quadratic minimum with constant noise under one setting."""

    hessian: Array
    noise: Array
    setting: Setting

    @cached_property
    def eigen(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.hessian)
        values = np.where(np.abs(values) <= NULL * np.abs(values).max(), 0.0, values)
        return values, vectors

    @cached_property
    def rotated(self) -> Array:
        """C in the eigenbasis of H."""
        V = self.eigen[1]
        found: Array = V.T @ self.noise @ V
        return found

    @property
    def spreading(self) -> Array:
        """Which flat directions are noisy."""
        own = np.diag(self.rotated)
        found: Array = (self.eigen[0] == 0) & (own > NULL * max(own.max(), np.finfo(float).tiny))
        return found

    def status(self, theory: str) -> str:
        values, mu = self.eigen[0], self.setting.momentum
        limit = 2 * (1 + mu) / self.setting.learning_rate if theory == DISCRETE else np.inf
        if (values < 0).any() or (values >= limit).any():
            return DIVERGES
        return SPREADS if self.spreading.any() else STATIONARY

    def growth(self) -> Array:
        """What the covariance of the weights gains per update in the flat directions, (d, d)."""
        values, V = self.eigen
        flat = V[:, values == 0]
        per_update = self.setting.learning_rate * self.setting.epsilon / (1 - self.setting.momentum) ** 2
        return per_update * flat @ (flat.T @ self.noise @ flat) @ flat.T

    def settled(self, theory: str) -> Array:
        """X (d, d), but for the covariance between flat directions, which is left at zero."""
        values, V = self.eigen
        eta, mu, h = self.setting.learning_rate, self.setting.momentum, values
        total, difference = h[:, None] + h, h[:, None] - h
        above = np.ones_like(total)
        if theory in (FIRST, OVERDAMPED):
            below = (1 - mu) * total
        elif theory == UNDERDAMPED:
            below = (1 - mu) * total + eta * difference**2 / (2 * (1 - mu))
        elif theory == DISCRETE:
            below = damping.slope(h, mu) + eta * damping.offset(h, mu)
        else:
            below = total + eta / 2 * (h[:, None] ** 2 + h**2)
            above = 1 + eta / 2 * total if theory == CORRECTED else above
        both_flat = (h[:, None] == 0) & (h == 0)
        entries = np.where(both_flat, 0.0, self.rotated * above / np.where(both_flat, 1.0, below))
        return self.setting.epsilon * V @ entries @ V.T

    def momenta(self) -> tuple[Array, Array]:
        """E theta p^T and E p p^T of the underdamped model, p = v / sqrt(eta)."""
        H, X = self.hessian, self.settled(UNDERDAMPED)
        gamma = (1 - self.setting.momentum) / np.sqrt(self.setting.learning_rate)
        return (H @ X - X @ H) / (2 * gamma), (H @ X + X @ H) / 2

    def system(self, theory: str) -> System:
        H, C, eps = self.hessian, self.noise, self.setting.epsilon
        eta, mu, d = self.setting.learning_rate, self.setting.momentum, len(self.hessian)
        one, zero = np.eye(d), np.zeros((d, d))
        if theory == FIRST:
            return System(H, eps * C, eta)
        if theory == OVERDAMPED:
            return System(H, eps / (1 - mu) * C, eta / (1 - mu))
        if theory in (SECOND, CORRECTED):
            extra = eta / 2 * (H @ C + C @ H) if theory == CORRECTED else 0.0
            return System(H + eta / 2 * H @ H, eps * (C + extra), eta)
        if theory == UNDERDAMPED:
            gamma = (1 - mu) / np.sqrt(eta)
            drift = np.block([[zero, -one], [H, gamma * one]])
            noise = np.block([[zero, zero], [zero, eps / np.sqrt(eta) * C]])
            return System(drift, noise, float(np.sqrt(eta)))
        if not mu:
            return System(one - eta * H, eta * eps * C, None)
        # In (theta, p), p = v / sqrt(eta): the velocity first, and the weights move with the fresh one.
        root = np.sqrt(eta)
        chain = np.block([[one - eta * H, root * mu * one], [-root * H, mu * one]])
        kick = np.concatenate([root * one, one])
        return System(chain, kick @ (eps * C) @ kick.T, None)


def _powers(F: Array, noise: Array, k: int) -> tuple[Array, Array]:
    """F^k and sum_{j < k} F^j noise F^jT, by squaring."""
    E, N = np.eye(len(F)), np.zeros_like(F)
    power, own = F, noise
    while k:
        if k & 1:
            E, N = power @ E, own + power @ N @ power.T
        power, own = power @ power, own + power @ own @ power.T
        k >>= 1
    return E, N


def _short(A: Array, noise: Array, t: float) -> tuple[Array, Array]:
    """exp(-A t) and the integral of exp(-A s) noise exp(-A s)^T over [0, t], by one exponential (Van Loan 1978)."""
    q = len(A)
    block = expm(np.block([[A, noise], [np.zeros((q, q)), -A.T]]) * t)
    E = block[q:, q:].T
    N = E @ block[:q, q:]
    return E, (N + N.T) / 2
