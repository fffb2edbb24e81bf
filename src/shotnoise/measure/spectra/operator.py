"""Symmetric operators on weight space: products with blocks of vectors, and what follows from products alone."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.spectra.lanczos import ENDS, LONG, End, lanczos

Array = NDArray[np.float64]
DENSE_LIMIT_BYTES = 2**30
MEMORY = 2**30  # bytes that a basis may take
TOLERANCES = {torch.float64: 1e-6}  # of residuals, relative to the largest eigenvalue
LEAST_TOLERANCE = 1e-4  # in single precision
SPARE = 40  # vectors of a basis beyond four times those wanted; half of all where passes over it are what costs
MOST = 40  # products per wanted pair, after which the search ends


@dataclass(frozen=True)
class Value:
    """A number and its standard error, 0 where it is exact."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues (k,), unit eigenvectors (p, k), and how good they are.

    residuals: ||A v - lambda v|| (k,), from products with A; converged: residual <= tolerance x scale, the largest
    modulus of an eigenvalue (by default of those here). products: how many vectors were multiplied; 0 where it was not
    by products.
    """

    values: Array
    vectors: Array
    residuals: Array
    tolerance: float
    scale: float | None = None
    products: int = 0

    @property
    def converged(self) -> NDArray[np.bool_]:
        scale = np.abs(self.values).max(initial=0.0) if self.scale is None else self.scale
        return self.residuals <= self.tolerance * scale


class Symmetric(LinearOperator):
    """A symmetric (p, p) operator whose products are taken in blocks, (b, p) tensors in and out.

    A `scipy.sparse.linalg.LinearOperator`, so SciPy's eigen- and linear solvers take it as it is.
    """

    precision: torch.dtype  # of the arithmetic
    device: torch.device
    name = "matrix"

    def __init__(self, size: int, precision: torch.dtype, device: torch.device) -> None:
        super().__init__(np.float64, (size, size))  # type: ignore[call-arg]
        self.precision, self.device = precision, device

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """A v for the rows of (b, p)."""

    @property
    def block(self) -> int:
        """Vectors to multiply at a time where there are many."""
        return 64

    @property
    def default_tolerance(self) -> float:
        return TOLERANCES.get(self.precision, LEAST_TOLERANCE)

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
        """k eigenpairs at an end of the spectrum, by Lanczos; see `spectra.lanczos` for how copies are looked for.

        end: "largest" (descending), "smallest" (ascending) or "both", the k largest and then the k smallest.
        tolerance: of residuals, relative to the largest modulus of an eigenvalue; default 1e-6 in double and 1e-4 in
        single precision. memory: bytes for the basis, beside which the pairs take three times their own. most: products
        with a vector, default 40 per pair; what has not converged by then is returned all the same, and `converged`
        says so.
        Raises InputError for k out of range or a memory that does not hold the pairs.
        """
        p = self.shape[0]
        wanted = 2 * k if end == "both" else k
        if end not in ENDS:
            raise InputError(f"end={end!r}: one of {', '.join(map(repr, ENDS))}")
        if not 1 <= wanted <= p:
            where, highest = (" at both ends", p // 2) if end == "both" else ("", p)
            raise InputError(f"k={k} eigenpairs{where} of a matrix of {p} rows; ask for 1 to {highest}")
        tolerance = self.default_tolerance if tolerance is None else tolerance
        each, least = p * torch.finfo(self.precision).bits // 8, min(p, wanted + 4)
        fitting = memory // each
        if fitting < least:
            raise InputError(
                f"memory={memory} bytes hold {fitting} vectors of {p} numbers; {wanted} eigenpairs "
                f"need at least {least}: allow {least * each} bytes, or ask for fewer"
            )
        basis = 2 * wanted + SPARE // 2 if p >= LONG else 4 * wanted + SPARE
        start = torch.randn(1, 1, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = lanczos(
            lambda v: self._in_blocks(v[0])[None],
            start.to(self.device, self.precision),
            k,
            end=end,
            tolerance=tolerance,
            basis=min(p, fitting, basis),
            most=MOST * wanted + SPARE if most is None else most,
        )
        values, residuals = (t[0].cpu().numpy().astype(np.float64) for t in (found.values, found.residuals))
        vectors = found.vectors[0].double().cpu().numpy().T
        return Eigenpairs(values, vectors, residuals, tolerance, float(found.norms[0]), found.products)

    def _in_blocks(self, vectors: Tensor) -> Tensor:
        """A v for any number of them."""
        if len(vectors) <= self.block:
            return self.product(vectors)
        return torch.cat([self.product(some) for some in vectors.split(self.block)])

    def to_dense(self) -> Array:
        """The matrix (p, p), made symmetric. Raises InputError where it would exceed 1 GiB."""
        self.require_dense()
        rows = np.concatenate([part.double().cpu().numpy() for part in self.rows()])
        return (rows + rows.T) / 2

    def diagonal(self) -> Array:
        """The diagonal (p,), exactly: p products, a block of rows at a time."""
        found, start = [], 0
        for part in self.rows():
            found.append(part.diagonal(start).double().cpu().numpy())
            start += len(part)
        return np.concatenate(found)

    def trace(self) -> float:
        return float(self.diagonal().sum())

    def rows(self) -> Iterator[Tensor]:
        """The rows of the matrix, a block (b, p) at a time."""
        p = self.shape[0]
        for start in range(0, p, self.block):
            some = torch.zeros(min(self.block, p - start), p, dtype=self.precision, device=self.device)
            some.diagonal(start).fill_(1)
            yield self.product(some)

    def require_dense(self) -> None:
        p = self.shape[0]
        if 8 * p * p > DENSE_LIMIT_BYTES:
            raise InputError(
                f"a dense {self.name} of {p} parameters would take {8 * p * p / 2**30:.1f} GiB (limit 1 GiB); "
                "use it as an operator, or .top(k), .diagonal()"
            )

    def _matmat(self, X: Array) -> Array:
        tensor = torch.as_tensor(np.array(X.T), dtype=self.precision, device=self.device)
        return self._in_blocks(tensor).double().cpu().numpy().T

    def _matvec(self, x: Array) -> Array:
        return self._matmat(np.asarray(x).reshape(-1, 1))[:, 0]

    def _adjoint(self) -> "Symmetric":
        return self
