"""The change of the loss by one step to second order, exact where the loss is quadratic: mean, variance and law.

With xi_i = g_i - mu, b = -eta (I - eta H) mu and q_ij = xi_i^T H xi_j, a batch with mean xi changes the loss by

    c_0 + b^T xi + (eta^2 / 2) xi^T H xi,     c_0 = -eta |mu|^2 + (eta^2 / 2) mu^T H mu

    mean       c_0 + (eta^2 / 2) kappa Tr H Sigma
    variance   (1/m) b^T Sigma b + (eta^2 / m^2) <b^T xi_i q_ii> + eta^4 / (4 m^3) [<q_ii^2> - (Tr H Sigma)^2
               + 2 (m - 1) Tr H Sigma H Sigma]                                                with replacement
               by the probabilities that a batch holds one, two, three or four given samples   without
               kappa b^T Sigma b + (eta^4 kappa^2 / 2) Tr H Sigma H Sigma                     Gaussian noise
               the last term times p/(p+2) (1 - (Tr H Sigma)^2 / (p Tr H Sigma H Sigma))      noise on a sphere

Everything is had from n x n matrices. Source: own derivation; the paper has no such statement, and its "concentrates
around (eta^2/2) L Tr M" at a stationary point is false unless H = L I.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shotnoise.predict.bounds.law import QuadraticForm

Array = NDArray[np.float64]
ROUNDING = 1e-12  # of the largest part of the form: a smaller one is rounding


@dataclass(frozen=True)
class SecondOrder:
    """constant: c_0; linear: b^T xi_i (n,); curvature: q (n, n); parameters: p."""

    constant: float
    linear: Array
    curvature: Array
    learning_rate: float
    parameters: int

    @classmethod
    def of(cls, gradients: Array, products: Array, learning_rate: float) -> "SecondOrder":
        """From per-sample gradients G (n, p) and the products G H (n, p)."""
        eta, mu, curved = learning_rate, gradients.mean(0), products.mean(0)
        centred = gradients - mu
        b = -eta * (mu - eta * curved)
        q = centred @ (products - curved).T
        constant = -eta * mu @ mu + 0.5 * eta**2 * mu @ curved
        return cls(float(constant), centred @ b, (q + q.T) / 2, eta, gradients.shape[1])

    @property
    def trace(self) -> float:
        """Tr H Sigma"""
        return float(np.diag(self.curvature).mean())

    @property
    def square_trace(self) -> float:
        """Tr H Sigma H Sigma"""
        return float((self.curvature**2).mean())

    def mean(self, kappa: float) -> float:
        return self.constant + 0.5 * self.learning_rate**2 * kappa * self.trace

    def variance_with_replacement(self, m: int) -> float:
        eta, own = self.learning_rate, np.diag(self.curvature)
        fourth = (own**2).mean() - self.trace**2 + 2 * (m - 1) * self.square_trace
        skew = (self.linear * own).mean()
        return float((self.linear**2).mean() / m + eta**2 * skew / m**2 + eta**4 * fourth / (4 * m**3))

    def variance_without_replacement(self, m: int) -> float:
        """Of sum_i in S d_i + sum_{i != j in S} A_ij over uniform subsets S of m samples."""
        n = len(self.linear)
        chance = np.ones(5)  # that k given samples are all in the batch
        for k in range(4):
            chance[k + 1] = chance[k] * max(0, m - k) / (n - k) if n > k else 0.0
        A = 0.5 * self.learning_rate**2 / m**2 * self.curvature
        d = self.linear / m + np.diag(A)
        A = A - np.diag(np.diag(A))
        rows, squares = A.sum(1), float((A**2).sum())
        whole, single = float(rows.sum()), float(d.sum())
        mixed, ends = float(d @ rows), float(rows @ rows)
        mean = chance[1] * single + chance[2] * whole
        second = chance[1] * float(d @ d) + chance[2] * (single**2 - float(d @ d))
        second += 2 * (2 * mixed * chance[2] + (single * whole - 2 * mixed) * chance[3])
        second += 2 * squares * chance[2] + 4 * (ends - squares) * chance[3]
        second += (whole**2 - 4 * ends + 2 * squares) * chance[4]
        return max(0.0, float(second - mean**2))

    def variance_of_noise(self, kappa: float, *, sphere: bool = False) -> float:
        """Under Gaussian noise of covariance kappa Sigma, or noise of the same covariance from a sphere."""
        share, square = 1.0, self.square_trace
        if sphere and square > 0:
            p = self.parameters
            share = p / (p + 2) * (1 - self.trace**2 / (p * square))
        linear = kappa * float((self.linear**2).mean())
        return linear + 0.5 * self.learning_rate**4 * kappa**2 * square * share

    def law(self, kappa: float) -> QuadraticForm:
        """The distribution under Gaussian noise."""
        n = len(self.linear)
        values, vectors = np.linalg.eigh(0.5 * self.learning_rate**2 * kappa / n * self.curvature)
        linear = np.sqrt(kappa / n) * (vectors.T @ self.linear)
        size = max(np.abs(values).max(initial=0.0), np.abs(linear).max(initial=0.0))
        values = np.where(np.abs(values) > ROUNDING * size, values, 0.0)
        kept = (values != 0) | (np.abs(linear) > ROUNDING * size)
        return QuadraticForm(self.constant, linear[kept], values[kept])

    def changes(self, batches: NDArray[np.int64]) -> Array:
        """The change by each of some batches of samples (k, m), to second order."""
        k, m = batches.shape
        share = np.zeros((k, len(self.linear)))
        np.add.at(share, (np.arange(k)[:, None], batches), 1 / m)
        curved = ((share @ self.curvature) * share).sum(1)
        return np.asarray(self.constant + share @ self.linear + 0.5 * self.learning_rate**2 * curved)
