"""Second moments of SGD with momentum on a linear model, in the coordinates where the mean dynamics is diagonal.

With learning rates c Lambda, Lambda = R^2, R H R = V diag(k) V^T and T = R V, the covariance Sigma = T P T^T solves

    (slope / c + E - s N)(P) = s T^T (S C_0) T,    slope_ij = (1 - mu) (k_i + k_j),
    E_ij = [mu (k_i - k_j)^2 - (1 - mu)^2 k_i k_j] / (1 - mu^2),    s = 1/S the variance factor of a batch,

entry by entry but for N, the noise that the fluctuation itself makes: with K = E x x^T in these coordinates

    N(P) = K P K + tr(K P) K    for Gaussian features,    E[x x^T P x x^T] - K P K    for others.

All are self-adjoint and the operator falls with c: second moments exist if and only if it is positive definite, that is
below c = 1 / (largest eigenvalue of slope^-1/2 (s N - E) slope^-1/2). N is proportional to s, so for a given c they
exist if and only if S exceeds the largest eigenvalue of (slope / c + E)^-1/2 N (..)^-1/2. Where K is diagonal too, N
mixes only diagonal entries, through one number, tr(K P), and all is in closed form. Sources: eq. 3 of Ziyin et al.
(2022), Theorems 2 and 4 without their commutators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, cg, eigsh

from shotnoise.errors import ShotnoiseError
from shotnoise.predict import damping
from shotnoise.predict.stationary.arguments import Array, FourthMoment

NULL = 1e-12  # curvatures below this share of the largest count as zero
DIAGONAL = 1e-11  # off-diagonal entries below this share of the largest count as zero: matrices commute
MOST_COUPLED = 100  # modes up to which the rate of convergence is found where nothing commutes
PRECISION = 1e-12  # relative error of a linear solve, in the norm of the symmetrised equation


@dataclass(frozen=True)
class Modes:
    """The directions that are curved. If some are curved downwards, or noisy but flat, nothing is ever stationary."""

    basis: Array  # T (p, r)
    curvatures: Array  # k (r,)
    features: Array  # K (r, r)
    momentum: float
    fourth: FourthMoment | None  # of the features in the original coordinates
    unstable: bool

    @classmethod
    def of(
        cls, features: Array, penalty: Array, root: Array, momentum: float, fourth: FourthMoment | None = None
    ) -> "Modes":
        """For K and the penalty Gamma, both (p, p), and the symmetric root R of the learning rates."""
        K, G = root @ features @ root, root @ penalty @ root
        values, vectors = np.linalg.eigh(K + G)
        shared = np.linalg.eigh(K + G / np.sqrt(3))[1] if G.any() else vectors  # splits what is degenerate in the sum
        commute = _is_diagonal(shared.T @ K @ shared) and _is_diagonal(shared.T @ G @ shared)
        if commute:
            vectors = shared
            values = np.diag(vectors.T @ (K + G) @ vectors)
        scale = np.abs(values).max(initial=0.0)
        kept = values > NULL * scale
        left = vectors[:, ~kept]
        flat_noise = np.abs(left.T @ K @ left).max(initial=0.0) > 1e-10 * np.abs(K).max()
        unstable = bool((values < -NULL * scale).any() or flat_noise)
        basis = root @ vectors[:, kept]
        seen = basis.T @ features @ basis
        return cls(basis, values[kept], np.diag(np.diag(seen)) if commute else seen, momentum, fourth, unstable)

    @cached_property
    def diagonal(self) -> bool:
        return self.fourth is None and bool((self.features == np.diag(self.own)).all())

    @cached_property
    def own(self) -> Array:
        """The diagonal of K, (r,)."""
        return np.diag(self.features).copy()

    def damping(self, c: float) -> Array:
        """slope / c + E, (r, r)."""
        return self.slope / c + self.offset

    @cached_property
    def slope(self) -> Array:
        return damping.slope(self.curvatures, self.momentum)

    @cached_property
    def offset(self) -> Array:
        return damping.offset(self.curvatures, self.momentum)

    def spread(self, P: Array) -> Array:
        """N(P)."""
        if self.fourth is None:
            return spread(self.features, P)
        T, fourth = self.basis, self.fourth
        return spread(self.features, P, lambda inner: T.T @ fourth(T @ inner @ T.T) @ T)

    @property
    def mean_critical(self) -> float:
        """The multiple from which on the mean diverges."""
        if self.unstable:
            return 0.0
        return 2 * (1 + self.momentum) / float(self.curvatures.max()) if len(self.curvatures) else np.inf

    def critical(self, s: float) -> float:
        """The multiple from which on second moments diverge; 0 if they always do."""
        if self.unstable or not len(self.curvatures):
            return self.mean_critical
        root = 1 / np.sqrt(self.slope)
        if self.diagonal:
            weighted = np.diag(root) * self.own
            own = (s * self.own**2 - np.diag(self.offset)) / np.diag(self.slope)
            return float(1 / np.linalg.eigvalsh(np.diag(own) + s * np.outer(weighted, weighted))[-1])
        return 1 / self._largest(lambda P: root * (s * self.spread(root * P) - self.offset * (root * P)))

    def critical_batch(self, c: float) -> float:
        """The batch size down to which second moments diverge at this multiple; infinite where the mean does."""
        if c >= self.mean_critical:
            return np.inf
        if not len(self.curvatures):
            return 0.0
        root = 1 / np.sqrt(self.damping(c))
        if self.diagonal:
            weighted = np.diag(root) * self.own
            return float(np.linalg.eigvalsh(np.diag(weighted**2) + np.outer(weighted, weighted))[-1])
        return self._largest(lambda P: root * self.spread(root * P))

    def convergence(self, c: float, s: float) -> float:
        """The factor per step by which second moments approach their limit, below the critical multiple.

        A unit kick moves mode i by h_i(n) after n steps, and with z = 1 + mu - c k

            G_ij = sum_n h_i h_j x^n = x (1 - mu^2 x^2) / [1 - z_i z_j x + mu (z_i^2 + z_j^2 - 2 mu) x^2 - mu^2 z_i z_j
            x^3 + mu^4 x^4],

        so that P changes as rho^t where P = s c^2 G * N(P), entry by entry, has a solution at x = 1 / rho. Where K is
        diagonal that is sum_i y_i / (1 - y_i) = 1, y_i = s (c a_i)^2 G_ii. NaN beyond MOST_COUPLED modes that couple.
        """
        mu, z = self.momentum, 1 + self.momentum - c * self.curvatures
        split = np.sqrt(z.astype(complex) ** 2 - 4 * mu)
        low = float(np.max(np.abs(np.array([z + split, z - split]) / 2) ** 2, initial=0.0))  # of the mean, squared
        if self.diagonal:
            return self._bisected(lambda rho: self._settled(_response(z, z, mu, rho), c, s), low)
        if len(z) > MOST_COUPLED:
            return np.nan

        def excess(rho: float) -> float:
            root = c * np.sqrt(_response(z[:, None], z, mu, rho))
            return s * self._largest(lambda P: root * self.spread(root * P)) - 1

        above = (1 + low) / 2
        while excess(above) < 0:
            above = (above + low) / 2
            if above - low < 1e-9:
                return low  # what the noise does decays faster than the mean
        return float(brentq(excess, above, 1.0, xtol=1e-13))

    def _settled(self, response: Array, c: float, s: float) -> bool:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = s * (c * self.own) ** 2 * response
            return bool((share < 1).all() and (share / (1 - share)).sum() < 1)

    @staticmethod
    def _bisected(settled: Callable[[float], bool], low: float) -> float:
        high = 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if settled(middle) else (middle, high)
        return (low + high) / 2

    def solve(self, c: float, s: float, noise: Array, critical_batch: float) -> Array:
        """P for additive noise (r, r), at a multiple below the critical one; critical_batch is that multiple's."""
        if self.diagonal:
            b = self.damping(c) - s * self.own[:, None] * self.own
            own = np.diag(b)
            trace = (self.own * np.diag(noise) / own).sum() / (1 - s * (self.own**2 / own).sum())
            return (noise + s * trace * np.diag(self.own)) / b
        r, root = len(self.curvatures), 1 / np.sqrt(self.damping(c))
        share = s * critical_batch  # of what a fluctuation loses, the part that its own noise brings back

        def apply(flat: Array) -> Array:
            P = flat.reshape(r, r)
            return (P - s * root * self.spread(root * P)).reshape(-1)

        # The error of v is at most |residual| / (1 - share), and |v| is at least the norm of the right side.
        tolerance = max(PRECISION * (1 - share), 4 * np.finfo(float).eps)
        operator = LinearOperator((r * r, r * r), matvec=apply, dtype=np.float64)
        solved, left = cg(operator, (root * noise).reshape(-1), rtol=tolerance, maxiter=50 * r + 200)
        if left:
            raise ShotnoiseError(
                f"the stationary covariance was not found: the learning rate is {c / self.critical(s):.6f} of the "
                "critical one; move away from it"
            )
        P = root * solved.reshape(r, r)
        return (P + P.T) / 2

    def _largest(self, apply: Callable[[Array], Array]) -> float:
        """The largest eigenvalue of a self-adjoint map of symmetric matrices."""
        r = len(self.curvatures)
        if r == 1:
            return float(apply(np.ones((1, 1)))[0, 0])

        def flat(given: Array) -> Array:
            P = given.reshape(r, r)
            return apply((P + P.T) / 2).reshape(-1)

        noise = np.random.default_rng(0).normal(size=(r, r))
        start = np.eye(r) + 1e-3 * (noise + noise.T)  # near the cone's middle, orthogonal to nothing
        operator = LinearOperator((r * r, r * r), matvec=flat, dtype=np.float64)
        try:
            return float(
                eigsh(operator, k=1, which="LA", v0=start.reshape(-1), return_eigenvectors=False, tol=1e-12)[0]
            )
        except ArpackNoConvergence as error:
            raise ShotnoiseError(f"the stability limit was not found: {error}") from error


def spread(K: Array, P: Array, fourth: FourthMoment | None = None) -> Array:
    """The noise that a covariance P of the weights makes in the gradient of one sample; features of covariance K."""
    if fourth is None:
        return K @ P @ K + (K * P).sum() * K
    return fourth(P) - K @ P @ K


def _response(z: Array, other: Array, mu: float, rho: float) -> Array:
    """G of `Modes.convergence`; infinite at a pole."""
    x, both = 1 / rho, z * other
    poles = 1 - both * x + mu * (z**2 + other**2 - 2 * mu) * x**2 - mu**2 * both * x**3 + mu**4 * x**4
    with np.errstate(divide="ignore"):
        found: Array = x * (1 - mu**2 * x**2) / poles
    return found


def _is_diagonal(matrix: Array) -> bool:
    own = np.abs(np.diag(matrix)).max(initial=0.0)
    return bool(np.abs(matrix - np.diag(np.diag(matrix))).max(initial=0.0) <= DIAGONAL * own)
