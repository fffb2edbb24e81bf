"""What is reported of an iterate whose mean and covariance are known: the same for every way of drawing batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares
from shotnoise.predict.linear_regression.recursion import Moments
from shotnoise.predict.linear_regression.subspace import Reduced


@dataclass(frozen=True)
class Combination:
    """sum_i A_i grad L_i(W) = A w - a for each row w of W: A (q, p), a (k, q). Source: Theorem 1 of the paper."""

    matrix: Array
    shift: Array

    @classmethod
    def of(cls, problem: LeastSquares, matrices: ArrayLike) -> "Combination":
        """From the A_i, (n, q, p); grad L_i = s_i (w^T x_i - y_i) x_i + l2 w."""
        given: Any = np.asarray(matrices, np.float64)
        if given.ndim != 3 or given.shape[::2] != (problem.n, problem.p) or not np.isfinite(given).all():
            raise InputError(
                f"combination: one finite matrix per sample is needed, ({problem.n}, q, {problem.p}); got {given.shape}"
            )
        kicked = np.einsum("iqp,ip->iq", given, problem.s[:, None] * problem.x)  # A_i s_i x_i
        matrix = np.einsum("iq,ip->qp", kicked, problem.x) + problem.l2 * given.sum(0)
        return cls(matrix, problem.y.T @ kicked)


@dataclass(frozen=True)
class Quantities:
    """The problem in its coordinates, how gradients are mapped (p', q), and what the rest of the weights adds."""

    reduced: Reduced
    map: Array
    combination: Combination | None

    @classmethod
    def of(cls, reduced: Reduced, projection: Array | None, combination: Combination | None) -> "Quantities":
        if projection is None:
            return cls(reduced, np.eye(reduced.problem.p), combination)  # lengths are those of the coordinates
        return cls(reduced, reduced.embedding.T @ projection.T, combination)

    def at(self, t: int, here: Moments) -> dict[str, Array]:
        """Arrays (B,), and the mean of all weights (kp,) or (B, kp)."""
        problem, embedding, rest = self.reduced.problem, self.reduced.embedding, self.reduced.rest[t]
        hessian, mean, covariance = problem.hessian, here.mean, here.covariance
        moved = hessian @ covariance @ hessian
        weights = mean @ embedding.T + rest
        found = {
            "gradient_variance": self._mapped(here.gradient_covariance),
            "full_gradient_variance": self._mapped(moved),
            "loss": problem.loss(mean)
            + 0.5 * problem.l2 * (rest**2).sum()
            + 0.5 * np.einsum("pr,bkpr->b", hessian, covariance),
            "gradient_norm_sq": (problem.gradient(mean) ** 2).sum((-2, -1))
            + problem.l2**2 * (rest**2).sum()
            + np.einsum("bkpp->b", moved),
            "weights_variance": np.einsum("bkpp->b", covariance),
            "mean_weights": weights.reshape(*weights.shape[:-2], -1),
        }
        if self.combination is not None:
            inner = self.combination.matrix @ embedding
            found["combined_gradient_norm_sq"] = (
                (weights @ self.combination.matrix.T - self.combination.shift) ** 2
            ).sum((-2, -1)) + np.einsum("qp,bkpr,qr->b", inner, covariance, inner)
        return found

    def _mapped(self, matrix: Array) -> Array:
        """tr B N B^T, summed over the outputs."""
        return np.einsum("bkpr,pr->b", matrix, self.map @ self.map.T)
