"""The noise covariance as an operator: Sigma = (1/n) sum_i (g_i - g)(g_i - g)^T, never written out unless asked.

A product with k vectors is one pass over the data. For up to GRAM_LIMIT samples everything follows exactly from the
centred n x n Gram matrix, whose non-zero eigenvalues over n are those of Sigma.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.products import GRAM_LIMIT, gram, parameter_variance
from shotnoise.named import dot
from shotnoise.problem import Problem

Array = NDArray[np.float64]
DENSE_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class Value:
    """A number and its standard error, 0 where it is exact."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues (k,), descending, unit eigenvectors (p, k), and how good they are.

    residuals: ||Sigma v - lambda v|| (k,), computed afresh by one more pass; converged: residual <= tolerance x the
    largest eigenvalue.
    """

    values: Array
    vectors: Array
    residuals: Array
    tolerance: float

    @property
    def converged(self) -> NDArray[np.bool_]:
        return self.residuals <= self.tolerance * self.values[0]


class NoiseCovariance(LinearOperator):
    """Sigma of a problem at its present weights, (p, p), parameters in the order of `problem.parameters`.

    A `scipy.sparse.linalg.LinearOperator`, so SciPy's eigen- and linear solvers take it as it is. Arithmetic is in the
    model's precision. The weights must not change while it is in use.

    >>> line = Problem(torch.nn.Linear(1, 1), "mse", torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> sigma = NoiseCovariance(line)
    >>> bool(np.allclose(sigma @ np.eye(2), sigma.to_dense(), rtol=1e-4))
    True
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        p = problem.parameter_count
        super().__init__(np.float64, (p, p))  # type: ignore[call-arg]
        self._mean = problem.gradient()

    def _matmat(self, X: Array) -> Array:
        problem = self.problem
        columns = [problem.unflatten(self._tensor(x)) for x in X.T]
        offsets = torch.stack([dot(self._mean, v) for v in columns])
        total = torch.zeros(len(columns), problem.parameter_count, dtype=problem.dtype, device=problem.device)
        for chunk in problem.passes(with_gradient=False):
            dots = [torch.stack([g.dot(v[name]) for name, g in chunk.per_sample.items()]).sum(0) for v in columns]
            weights = torch.stack(dots, 1) - offsets + self._penalty_offsets(columns)
            sums = [g.weighted_sum(weights).flatten(1) for g in chunk.per_sample.values()]
            total += torch.cat(sums, 1)
        # sum_i (g_i . v - g . v) g_i needs no centring of the second factor: its weights add up to zero
        return (total / problem.n).double().cpu().numpy().T

    def _matvec(self, x: Array) -> Array:
        return self._matmat(np.asarray(x).reshape(-1, 1))[:, 0]

    def _adjoint(self) -> "NoiseCovariance":
        return self

    def diagonal(self) -> Array:
        """The variance of each gradient entry, (p,)."""
        return self.problem.flatten(parameter_variance(self.problem)).double().cpu().numpy()

    def trace(self) -> float:
        return float(self.diagonal().sum())

    def frobenius_norm(self, probes: int = 32, seed: int = 0) -> Value:
        """||Sigma||_F; exact through the Gram matrix where n allows, else from random sign vectors, a pass for all."""
        if self._gram_fits:
            return Value(float(np.linalg.norm(self._centred_gram)) / self.problem.n, 0.0)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(self.shape[1], probes))
        squares = (self._matmat(signs) ** 2).sum(0)
        norm = float(np.sqrt(squares.mean()))
        return Value(norm, float(squares.std(ddof=1) / np.sqrt(probes) / (2 * norm)) if norm else 0.0)

    def effective_rank(self, probes: int = 32, seed: int = 0) -> Value:
        """(Tr Sigma)^2 / ||Sigma||_F^2, the participation ratio: k for k equal eigenvalues; NaN without noise."""
        norm = self.frobenius_norm(probes, seed)
        if norm.value == 0:
            return Value(float("nan"), 0.0)
        rank = self.trace() ** 2 / norm.value**2
        return Value(rank, 2 * rank * norm.stderr / norm.value)

    def spectrum(self) -> Array:
        """All eigenvalues that can differ from zero, descending, (min(n - 1, p),). Raises InputError for large n."""
        if not self._gram_fits:
            raise InputError(
                f"the exact spectrum needs the n x n Gram matrix; n={self.problem.n} exceeds {GRAM_LIMIT}: "
                "ask for the largest k with .top(k)"
            )
        values = np.linalg.eigvalsh(self._centred_gram)[::-1] / self.problem.n
        return np.maximum(values[: min(self.problem.n - 1, self.shape[0])], 0)

    def top(self, k: int, tolerance: float | None = None) -> Eigenpairs:
        """The k largest eigenvalues with eigenvectors and residuals.

        tolerance: of the residual, relative to the largest eigenvalue; by default 1e-8 in double and 1e-4 in single
        precision. Raises InputError if k exceeds the rank of Sigma, beyond which eigenvectors are arbitrary.
        """
        most = min(self.problem.n - 1, self.shape[0])
        if not 1 <= k <= most:
            raise InputError(f"k={k} eigenpairs of a covariance of {self.problem.n} samples in {self.shape[0]} "
                             f"dimensions; k must be between 1 and {most}")  # fmt: skip
        if tolerance is None:
            tolerance = 1e-8 if self.problem.dtype == torch.float64 else 1e-4
        if self._gram_fits:
            values, vectors = self._top_by_gram(k)
        elif k < self.shape[0]:
            values, vectors = self._top_by_lanczos(k, tolerance)
        else:
            ascending, columns = np.linalg.eigh(self.to_dense())  # Lanczos cannot have all of them
            values, vectors = ascending[::-1], columns[:, ::-1]
        residuals = np.linalg.norm(self._matmat(vectors) - vectors * values, axis=0)
        return Eigenpairs(values, vectors, residuals, tolerance)

    def to_dense(self) -> Array:
        """Sigma as a matrix (p, p). Raises InputError where it would exceed 1 GiB."""
        p = self.shape[0]
        if 8 * p * p > DENSE_LIMIT_BYTES:
            raise InputError(f"a dense covariance of {p} parameters would take {8 * p * p / 2**30:.1f} GiB "
                             "(limit 1 GiB); use it as an operator, or .top(k), .diagonal(), .spectrum()")  # fmt: skip
        mean = self.problem.flatten(self._mean).double()
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
    def _centred_gram(self) -> Array:
        matrix = gram(self.problem).double().cpu().numpy()
        rows = matrix.mean(0)
        return matrix - rows[None, :] - rows[:, None] + rows.mean()

    def _top_by_gram(self, k: int) -> tuple[Array, Array]:
        values, left = np.linalg.eigh(self._centred_gram)
        values, left = values[::-1][:k], left[:, ::-1][:, :k]
        self._require_rank(values)
        left = left - left.mean(0)  # zero but for rounding, which would let the mean gradient in
        sums, start = [], 0
        for chunk in self.problem.passes(with_gradient=False):
            weights = self._tensor(left[start : start + len(chunk.indices)])
            sums.append(torch.cat([g.weighted_sum(weights).flatten(1) for g in chunk.per_sample.values()], 1))
            start += len(chunk.indices)
        vectors = torch.stack(sums).sum(0).double().cpu().numpy().T
        return values / self.problem.n, vectors / np.linalg.norm(vectors, axis=0)

    def _top_by_lanczos(self, k: int, tolerance: float) -> tuple[Array, Array]:
        start = np.random.default_rng(0).standard_normal(self.shape[0])
        try:
            values, vectors = eigsh(self, k=k, v0=start, tol=tolerance / 10)
        except ArpackNoConvergence as partial:
            raise InputError(
                f"only {len(partial.eigenvalues)} of {k} eigenpairs converged to {tolerance:g}; "
                "ask for fewer, or pass a larger tolerance"
            ) from partial
        self._require_rank(values[::-1])
        return values[::-1], vectors[:, ::-1]

    def _require_rank(self, values: Array) -> None:
        """Raise InputError if some of the largest eigenvalues are zero but for rounding."""
        smallest = 1e3 * torch.finfo(self.problem.dtype).eps * values[0]
        rank = int((values > smallest).sum()) if values[0] > 0 else 0
        if rank < len(values):
            raise InputError(
                f"the noise covariance has numerical rank {rank}, but k={len(values)} eigenpairs were asked for; "
                f"ask for at most {rank}"
            )

    def _penalty_offsets(self, columns: list[dict[str, Tensor]]) -> Tensor:
        """s . v: the recorded g_i are those of the data part, while the mean has the penalty's gradient s in it."""
        shift = self.problem.penalty_gradient
        return torch.stack([dot(shift, v) for v in columns])

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(np.array(array), dtype=self.problem.dtype, device=self.problem.device)
