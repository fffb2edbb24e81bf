"""What one step of SGD can do to the loss: the first-order description that every bound of it is made of.

With mean gradient mu, per-sample covariance Sigma (divisor n), M = Sigma + mu mu^T, learning rate eta, a loss whose
gradient is L-Lipschitz on the way, and kappa the factor of the sampling (`shotnoise.sampling`),

    U_-+ = -eta |mu|^2 -+ (eta^2 L / 2) Tr M^(m),    Tr M^(m) = kappa Tr Sigma + |mu|^2,     U_- <= E[change] <= U_+

Printed is Tr M, of one sample, in place of Tr M^(m), of the batch: valid, and up to m times as wide.
The deviations are (linear form) + (centred positive form) in the noise; see `tails`.
Source: Theorem 1 of Li, Gu, Zhou, Chen, Banerjee; in (74), (75) the factor 1/sqrt(m) stands at a wrong place.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shotnoise.predict.bounds.tails import CHERNOFF, BatchTail, NoiseTail

Array = NDArray[np.float64]
ROUNDING = 1e-13  # of the largest eigenvalue of Sigma: below it an eigenvalue is rounding


@dataclass(frozen=True)
class Step:
    """mu and Sigma as far as the bounds need them: |mu|^2, the eigenvalues (r,) of Sigma, and Sigma^1/2 mu in its
    eigenbasis (r,)."""

    gradient_norm_sq: float
    eigenvalues: Array
    along: Array

    @classmethod
    def of_matrices(cls, gradient: ArrayLike, covariance: ArrayLike) -> "Step":
        """From mu (p,) and Sigma (p, p)."""
        mu = np.asarray(gradient, np.float64)
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        return cls._of(float(mu @ mu), values, np.sqrt(np.maximum(values, 0)) * (vectors.T @ mu))

    @classmethod
    def of_gradients(cls, gradients: Array) -> "Step":
        """From per-sample gradients (n, p), through whichever of Sigma and the Gram matrix is smaller."""
        n, p = gradients.shape
        mu = gradients.mean(0)
        centred = gradients - mu
        if p <= n:
            return cls.of_matrices(mu, centred.T @ centred / n)
        values, vectors = np.linalg.eigh(centred @ centred.T / n)
        return cls._of(float(mu @ mu), values, vectors.T @ (centred @ mu) / np.sqrt(n))

    @classmethod
    def _of(cls, square: float, values: Array, along: Array) -> "Step":
        kept = values > ROUNDING * values.max(initial=0.0)
        return cls(square, values[kept], along[kept])

    @property
    def noise_trace(self) -> float:
        return float(self.eigenvalues.sum())

    def second_moment_trace(self, kappa: float = 1.0) -> float:
        """Tr M^(m); kappa = 1 is one sample, Tr M."""
        return kappa * self.noise_trace + self.gradient_norm_sq

    def expectation(self, learning_rate: float, smoothness: float, kappa: float) -> tuple[float, float]:
        """U_- and U_+ (27'); kappa = 1 gives the printed interval."""
        gain = learning_rate * self.gradient_norm_sq
        noise = 0.5 * learning_rate**2 * smoothness * self.second_moment_trace(kappa)
        return -gain - noise, -gain + noise

    def tails(self, learning_rate: float, smoothness: float, kappa: float) -> tuple[NoiseTail, NoiseTail]:
        """Of (change - U_+) upwards and of (U_- - change) upwards, under the noise model."""
        eta, L = learning_rate, smoothness
        eigenvalues = 0.5 * eta**2 * L * kappa * self.eigenvalues
        along = eta * np.sqrt(kappa) * self.along
        return NoiseTail(eigenvalues, (1 - eta * L) * along), NoiseTail(eigenvalues, (1 + eta * L) * along)


def batch_tails(
    norms: Array, along: Array, learning_rate: float, smoothness: float, batch_size: int
) -> tuple[BatchTail, BatchTail]:
    """Real batches: of Y_i = -eta <g_i, mu> + (eta^2 L / 2) |g_i|^2 upwards, and of the same with L -> -L downwards.

    norms: |g_i|^2, along: <g_i, mu>, (n,) each. The change is at most the batch mean of Y and at least that of the
    other.
    """
    gain, noise = learning_rate * along, 0.5 * learning_rate**2 * smoothness * norms
    return BatchTail(noise - gain, batch_size), BatchTail(gain + noise, batch_size)


@dataclass(frozen=True)
class BatchDeviation:
    """Real batches again, centred at U_+ instead of the mean of Y: the noise enters by the length of its mean.

    change - U <= lin + (eta^2 L / 2) |xi|^2,   U = -eta |mu|^2 + (eta^2 L / 2) |mu|^2,   xi the batch mean of g_i - mu
    lin: the batch mean of -eta (1 - eta L) <mu, g_i - mu>, by Chernoff's bound for p / 2, and for the other half
    |xi| <= sqrt(Tr Sigma / m) + sqrt(2 x (|Sigma|_2 + 2 R sqrt(Tr Sigma / m)) / m) + R x / (3 m),    R = max |g_i - mu|

    x = ln 2/p: Talagrand's inequality with Bousquet's constants (2002) for sup over unit u of <u, xi>; without
    replacement too, exp(t |.|) being convex (Hoeffding 1963). Downwards with 1 + eta L and U from below.
    """

    centre: float
    line: BatchTail
    curvature: float
    trace: float
    norm: float
    radius: float

    @classmethod
    def of(
        cls, centred: Array, step: Step, along: Array, rate: float, L: float, m: int, sign: float
    ) -> "BatchDeviation":
        """sign: +1 upwards, -1 downwards. centred: g_i - mu (n, p); along: <g_i, mu> (n,)."""
        square = step.gradient_norm_sq
        line = BatchTail(-sign * rate * (1 - sign * rate * L) * (along - square), m)
        noise = 0.5 * rate**2 * L
        norm = float(step.eigenvalues.max(initial=0.0))
        radius = float(np.sqrt((centred**2).sum(1).max()))
        return cls(-sign * rate * square + noise * square, line, noise, step.noise_trace, norm, radius)

    def bound(self, probability: float) -> float:
        """Of sign times the change."""
        m, x = self.line.batch_size, np.log(2 / probability)
        mean = np.sqrt(self.trace / m)
        length = mean + np.sqrt(2 * x * (self.norm + 2 * self.radius * mean) / m) + self.radius * x / (3 * m)
        length = min(float(length), self.radius)
        return self.centre + self.line.threshold(probability / 2, CHERNOFF) + self.curvature * length**2
