"""Second moments of the per-sample gradients as operators, never written out unless asked.

    Sigma = (1/n) sum_i (g_i - g)(g_i - g)^T,   M = (1/n) sum_i g_i g_i^T

A product with k vectors is one pass over the data. For up to GRAM_LIMIT samples everything follows exactly from the
n x n Gram matrix, centred for Sigma, whose non-zero eigenvalues over n are those of the matrix.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.products import GRAM_LIMIT, gram, parameter_mean_square, parameter_variance
from shotnoise.measure.spectra.lanczos import End
from shotnoise.measure.spectra.operator import MEMORY, Eigenpairs, Symmetric, Value
from shotnoise.named import dot
from shotnoise.problem import Problem

Array = NDArray[np.float64]


class Moment(Symmetric):
    """What `NoiseCovariance` and `SecondMoment` share: (1/n) sum_i (g_i - c)(g_i - c)^T with c = g, or c = 0."""

    centred: bool
    full_name: str

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.parameter_count, problem.dtype, problem.device)
        self.problem = problem
        self._mean = problem.gradient() if self.centred else {}

    @property
    def default_tolerance(self) -> float:
        return 1e-8 if self.precision == torch.float64 else 1e-4

    def product(self, vectors: Tensor) -> Tensor:
        problem = self.problem
        columns = [problem.unflatten(v) for v in vectors]
        shift = problem.penalty_gradient
        # What is recorded of g_i is the data part, without the penalty's gradient s; the mean has it.
        offsets = torch.stack([dot(shift, v) - (dot(self._mean, v) if self.centred else 0.0) for v in columns])
        total = torch.zeros_like(vectors)
        for chunk in problem.passes(with_gradient=False):
            dots = [torch.stack([g.dot(v[name]) for name, g in chunk.per_sample.items()]).sum(0) for v in columns]
            weights = torch.stack(dots, 1) + offsets
            sums = [g.weighted_sum(weights).flatten(1) for g in chunk.per_sample.values()]
            total += torch.cat(sums, 1)
            if problem.l2 and not self.centred:
                total += weights.sum(0)[:, None] * problem.flatten(shift)
        # sum_i (g_i . v - g . v) g_i needs no centring of the second factor: its weights add up to zero
        return total / problem.n

    def diagonal(self) -> Array:
        """The variance, or the mean square, of each gradient entry, (p,)."""
        moments = parameter_variance if self.centred else parameter_mean_square
        return self.problem.flatten(moments(self.problem)).double().cpu().numpy()

    def frobenius_norm(self, probes: int = 32, seed: int = 0) -> Value:
        """Exact through the Gram matrix where n allows, else from random sign vectors, one pass for all of them."""
        if self._gram_fits:
            return Value(float(np.linalg.norm(self.gram)) / self.problem.n, 0.0)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(self.shape[1], probes))
        squares = (self._matmat(signs) ** 2).sum(0)
        norm = float(np.sqrt(squares.mean()))
        return Value(norm, float(squares.std(ddof=1) / np.sqrt(probes) / (2 * norm)) if norm else 0.0)

    def effective_rank(self, probes: int = 32, seed: int = 0) -> Value:
        """Tr^2 / ||.||_F^2, the participation ratio: k for k equal eigenvalues; NaN without noise."""
        norm = self.frobenius_norm(probes, seed)
        if norm.value == 0:
            return Value(float("nan"), 0.0)
        rank = self.trace() ** 2 / norm.value**2
        return Value(rank, 2 * rank * norm.stderr / norm.value)

    @property
    def largest_rank(self) -> int:
        """What n samples can span."""
        return min(self.problem.n - self.centred, self.shape[0])

    def spectrum(self) -> Array:
        """All eigenvalues that can differ from zero, descending, (min(n, p),), n - 1 where centred.

        Raises InputError for large n.
        """
        if not self._gram_fits:
            raise InputError(
                f"the exact spectrum needs the n x n Gram matrix; n={self.problem.n} exceeds {GRAM_LIMIT}: "
                "ask for the largest k with .top(k)"
            )
        values = np.linalg.eigvalsh(self.gram)[::-1] / self.problem.n
        return np.maximum(values[: self.largest_rank], 0)

    def top(
        self,
        k: int,
        tolerance: float | None = None,
        *,
        end: End = "largest",
        memory: int = MEMORY,
        most: int | None = None,
        seed: int = 0,
    ) -> Eigenpairs:
        """The k largest eigenvalues with eigenvectors and residuals, computed afresh by one more pass.

        From the n x n Gram matrix where n allows, else as for every `Symmetric` operator. tolerance: of the residual,
        relative to the largest eigenvalue; by default 1e-8 in double and 1e-4 in single precision. Raises InputError if
        k exceeds the rank, beyond which eigenvectors are arbitrary.
        """
        if not 1 <= k <= self.largest_rank:
            raise InputError(f"k={k} eigenpairs of a {self.name} of {self.problem.n} samples in {self.shape[0]} "
                             f"dimensions; k must be between 1 and {self.largest_rank}")  # fmt: skip
        if end != "largest" or not self._gram_fits:
            pairs = super().top(k, tolerance, end=end, memory=memory, most=most, seed=seed)
            if end == "largest":
                self._require_rank(pairs.values)
            return pairs
        values, vectors = self._top_by_gram(k)
        residuals = np.linalg.norm(self._matmat(vectors) - vectors * values, axis=0)
        return Eigenpairs(values, vectors, residuals, self.default_tolerance if tolerance is None else tolerance)

    def to_dense(self) -> Array:
        """The matrix (p, p). Raises InputError where it would exceed 1 GiB."""
        self.require_dense()
        p = self.shape[0]
        mean = self.problem.flatten(self._mean).double() if self.centred else 0.0
        total = torch.zeros(p, p, dtype=torch.float64, device=self.problem.device)
        shift = self.problem.flatten(self.problem.parameters).detach() * self.problem.l2
        for chunk in self.problem.passes(with_gradient=False):
            g = torch.cat([gradients.explicit().flatten(1) for gradients in chunk.per_sample.values()], 1) + shift
            centred = g.double() - mean
            total += centred.T @ centred
        return (total / self.problem.n).cpu().numpy()

    @property
    def _gram_fits(self) -> bool:
        return self.problem.n <= GRAM_LIMIT

    @cached_property
    def gram(self) -> Array:
        """(g_i - c) . (g_j - c), (n, n)"""
        matrix = gram(self.problem).double().cpu().numpy()
        if not self.centred:
            return matrix
        rows = matrix.mean(0)
        return matrix - rows[None, :] - rows[:, None] + rows.mean()

    def _top_by_gram(self, k: int) -> tuple[Array, Array]:
        values, left = np.linalg.eigh(self.gram)
        values, left = values[::-1][:k], left[:, ::-1][:, :k]
        self._require_rank(values)
        if self.centred:
            left = left - left.mean(0)  # zero but for rounding, which would let the mean gradient in
        sums, start = [], 0
        for chunk in self.problem.passes(with_gradient=False):
            weights = self._tensor(left[start : start + len(chunk.indices)])
            sums.append(torch.cat([g.weighted_sum(weights).flatten(1) for g in chunk.per_sample.values()], 1))
            start += len(chunk.indices)
        vectors = torch.stack(sums).sum(0).double().cpu().numpy().T
        shift = self.problem.flatten(self.problem.penalty_gradient).double().cpu().numpy()
        vectors = vectors + shift[:, None] * left.sum(0)
        return values / self.problem.n, vectors / np.linalg.norm(vectors, axis=0)

    def _require_rank(self, values: Array) -> None:
        """Raise InputError if some of the largest eigenvalues are zero but for rounding."""
        smallest = 1e3 * torch.finfo(self.problem.dtype).eps * values[0]
        rank = int((values > smallest).sum()) if values[0] > 0 else 0
        if rank < len(values):
            raise InputError(
                f"the {self.full_name} has numerical rank {rank}, but k={len(values)} eigenpairs were asked for; "
                f"ask for at most {rank}"
            )

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(np.array(array), dtype=self.problem.dtype, device=self.problem.device)


class NoiseCovariance(Moment):
    """Sigma of a problem at its present weights, (p, p), parameters in the order of `problem.parameters`.

    A `scipy.sparse.linalg.LinearOperator`, so SciPy's eigen- and linear solvers take it as it is. Arithmetic is in the
    model's precision. The weights must not change while it is in use.

    >>> line = Problem(torch.nn.Linear(1, 1), "mse", torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> sigma = NoiseCovariance(line)
    >>> bool(np.allclose(sigma @ np.eye(2), sigma.to_dense(), rtol=1e-4))
    True
    """

    centred, name, full_name = True, "covariance", "noise covariance"


class SecondMoment(Moment):
    """M = (1/n) sum_i g_i g_i^T = Sigma + g g^T, the empirical Fisher matrix of a log-likelihood; as `NoiseCovariance`.

    >>> line = Problem(torch.nn.Linear(1, 1), "mse", torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> g = line.flatten(line.gradient()).double().numpy()
    >>> bool(np.allclose(SecondMoment(line).to_dense() - NoiseCovariance(line).to_dense(), np.outer(g, g), atol=1e-6))
    True
    """

    centred, name, full_name = False, "second moment", "second moment"
