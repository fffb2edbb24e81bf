"""Eigenpairs at the ends of the spectrum of symmetric operators, many operators at once: block Lanczos, thick restarts.

    Q orthonormal (m, p),   T = Q A Q^T = S diag(theta) S^T,   Ritz pairs (theta_i, x_i = s_i Q)
    residual   ||A x_i - theta_i x_i||  from A Q, which is kept: it is that of the operator, whatever Q has lost

Every new block is orthogonalised against the whole basis, at least twice. When the basis is full, the best Ritz
vectors and the block that comes next are what it starts again from (Krylov-Schur; Stewart 2002, Wu and Simon 2000). A
Krylov space sees of a multiple eigenvalue only as many copies as its blocks are wide: what has converged is confirmed
by a few more products with one random direction more per block, until these find nothing new. Copies close to the rest
of the spectrum can still be passed over, as by every Krylov method; dense matrices cannot hide any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shotnoise.errors import InputError

Product = Callable[[Tensor], Tensor]  # (R, b, p) -> (R, b, p), one symmetric operator for each of the R
End = Literal["largest", "smallest", "both"]
ENDS = ("largest", "smallest", "both")
PACE = 1.15  # growth of the basis between looks at the Ritz pairs, which cost more the larger it is
CONFIRMING = 12  # products that may still show a pair that was passed over
CANCELLED = 1e-2  # of its length: when less is left of a row, it is orthogonalised once more
LOST = 1e-10  # of its length: a block of which orthogonalisation leaves less lies within the basis


@dataclass(frozen=True)
class RitzPairs:
    """values (R, k), unit vectors (R, k, p), residuals (R, k) in the scale of the operator, and what it took.

    norms (R,): the largest modulus of a Ritz value, by which residuals are judged. products: by run.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    norms: Tensor
    products: int


def lanczos(
    product: Product,
    start: Tensor,
    k: int,
    *,
    end: End = "largest",
    tolerance: float,
    basis: int,
    most: int,
) -> RitzPairs:
    """k eigenpairs of each of R operators by block Lanczos.

    start: (R, b, p), b random vectors for each operator: its type and device are those of the arithmetic.
    end: "largest" (descending), "smallest" (ascending), or "both", the k largest and then the k smallest.
    tolerance: of the residuals, relative to the largest modulus of a Ritz value. basis: vectors held at a time.
    most: products with a vector, by operator, after which what is there is returned as it is; its residuals tell.
    Raises InputError where k pairs and two blocks do not fit the basis.

    >>> A = torch.diag(torch.arange(50.0, dtype=torch.float64))[None]
    >>> start = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = lanczos(lambda x: x @ A, start, 2, tolerance=1e-9, basis=20, most=500)
    >>> found.values.round(decimals=6).tolist()
    [[49.0, 48.0]]
    """
    space = _Space(product, start, min(basis, start.shape[2]))
    space.require(2 * k if end == "both" else k)
    if not space.extend(end, k, tolerance, most):
        return space.pairs(_picked(end, k, space.size))
    while True:
        before = space.pairs(_picked(end, k, space.size))
        if space.is_complete or space.capacity < (2 * k if end == "both" else k) + 2 * (space.block + 1):
            return before
        space.widen()
        converged = space.extend(end, k, tolerance, most, at_least=CONFIRMING)
        after = space.pairs(_picked(end, k, space.size))
        moved = (after.values - before.values).abs().amax(1)
        if not converged or bool((moved <= tolerance * after.norms).all()):
            return after


class _Space:
    """A growing orthonormal basis Q, A Q, and the eigenpairs of A in it."""

    def __init__(self, product: Product, start: Tensor, basis: int) -> None:
        self.product, (self.runs, self.block, self.p) = product, start.shape
        self.block = min(self.block, self.p)
        self.capacity, self.size, self.products = basis, 0, 0
        self.Q = start.new_empty(self.runs, basis, self.p)
        self.AQ = torch.empty_like(self.Q)
        self.T = start.new_zeros(self.runs, basis, basis, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(0)
        self.coupling: Tensor | None = None  # (R, last block, next block): what A carries out of the basis
        self.next = self._orthonormal(start[:, : self.block])

    def require(self, wanted: int) -> None:
        if self.capacity < self.p and self.capacity < wanted + 2 * self.block:
            raise InputError(
                f"a basis of {self.capacity} vectors is too small for {wanted} eigenpairs in blocks of {self.block}; "
                f"at least {wanted + 2 * self.block} are needed: allow more memory or ask for fewer"
            )

    def extend(self, end: End, k: int, tolerance: float, most: int, at_least: int = 0) -> bool:
        """Grow until the wanted pairs have converged; False where `most` products did not suffice."""
        wanted, first = (2 * k if end == "both" else k), self.products + at_least
        look = wanted + 2
        while not self.is_complete and self.products + self.block <= most:
            if self.is_full:
                self.restart(_kept(end, wanted, self))
                look = int(PACE * self.size) + 1
            self.grow()
            if self.products < first or not (self.is_full or self.size >= look):
                continue
            look = int(PACE * self.size) + 1
            picked = _picked(end, k, self.size)
            if self.seems_converged(picked, tolerance) and self.is_converged(picked, tolerance):
                return True
        return self.is_complete

    def widen(self) -> None:
        """From here on one random direction more in every block."""
        width = self.next.shape[1]
        self.block += 1
        self.next = self._orthonormal(torch.cat([self.next, torch.zeros_like(self.next[:, :1])], 1))
        if self.coupling is not None:
            self.coupling = torch.nn.functional.pad(self.coupling, (0, self.next.shape[1] - width))

    @property
    def is_complete(self) -> bool:
        """The basis spans everything; its Ritz pairs are exact."""
        return self.size >= self.p

    @property
    def is_full(self) -> bool:
        return self.size + min(self.block, self.p - self.size) > self.capacity or self.is_complete

    def grow(self) -> None:
        """Take in the next block."""
        width = min(self.block, self.p - self.size)
        new = self.next[:, :width]
        product = self.product(new)
        self.products += width
        old, size = self.size, self.size + width
        self.Q[:, old:size], self.AQ[:, old:size] = new, product
        overlap = (self.Q[:, :size] @ product.mT).double()  # (R, size, width)
        self.T[:, :size, old:size] = overlap
        self.T[:, old:size, :size] = overlap.mT
        inside = overlap[:, old:]
        self.T[:, old:size, old:size] = (inside + inside.mT) / 2
        self.size, self.ritz = size, None
        if size < self.p:
            rest = product - overlap.mT.to(product) @ self.Q[:, :size]
            self.next = self._orthonormal(rest)
            self.coupling = (rest @ self.next.mT).double()

    ritz: tuple[Tensor, Tensor] | None = None

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Ritz values (R, size), ascending, and coefficients (R, size, size) by column."""
        if self.ritz is None:
            self.ritz = torch.linalg.eigh(self.T[:, : self.size, : self.size])
        return self.ritz

    def scale(self) -> Tensor:
        return self.eigen()[0].abs().amax(1)

    def seems_converged(self, picked: list[int], tolerance: float) -> bool:
        """By ||coupling^T s_last||, which is the residual in exact arithmetic and costs nothing."""
        if self.coupling is None:
            return True
        _, vectors = self.eigen()
        last = vectors[:, self.size - self.coupling.shape[1] :, picked]
        estimate = torch.linalg.vector_norm(self.coupling.mT @ last, dim=1)
        return bool((estimate <= tolerance * self.scale()[:, None]).all())

    def is_converged(self, picked: list[int], tolerance: float) -> bool:
        found = self.pairs(picked)
        return bool((found.residuals <= tolerance * found.norms[:, None]).all())

    def pairs(self, picked: list[int]) -> RitzPairs:
        values, vectors = self.eigen()
        values, s = values[:, picked], vectors[:, :, picked].mT.to(self.Q)
        x, ax = s @ self.Q[:, : self.size], s @ self.AQ[:, : self.size]
        length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        x, ax = x / length, ax / length
        residuals = torch.linalg.vector_norm(ax - values[..., None].to(x) * x, dim=2).double()
        return RitzPairs(values, x, residuals, self.scale(), self.products)

    def restart(self, kept: list[int]) -> None:
        """Ritz vectors instead of the basis; the next block stays orthogonal to them, and stays next."""
        values, vectors = self.eigen()
        s = vectors[:, :, kept].mT.to(self.Q)
        count = len(kept)
        self.Q[:, :count], self.AQ[:, :count] = s @ self.Q[:, : self.size], s @ self.AQ[:, : self.size]
        self.T.zero_()
        self.T[:, range(count), range(count)] = values[:, kept]
        self.size, self.ritz, self.coupling = count, None, None

    def _orthonormal(self, block: Tensor) -> Tensor:
        """The part of a block outside the basis, as orthonormal rows; random rows where nothing is left."""
        length = torch.linalg.vector_norm(block, dim=2, keepdim=True)
        block = self._projected(block)
        count = min(self.block, self.p - self.size)
        if count <= block.shape[1]:
            quotient, triangle = torch.linalg.qr(block[:, :count].mT)
            left = triangle.diagonal(dim1=1, dim2=2).abs()[..., None]
            if bool((left > CANCELLED * length[:, :count]).all()):
                return quotient.mT
        rows = block[:, :0]
        for j in range(count):
            row, lost = self._beside(block[:, j : j + 1], rows, length[:, j : j + 1])
            for _ in range(3):
                if not bool(lost.any()):
                    break
                drawn = torch.randn(row.shape, generator=self.generator, dtype=row.dtype).to(row.device)
                other, again = self._beside(self._projected(drawn), rows, torch.full_like(length[:, :1], self.p**0.5))
                row, lost = torch.where(lost, other, row), lost & again
            rows = torch.cat([rows, row], 1)
        return rows

    def _projected(self, block: Tensor) -> Tensor:
        basis = self.Q[:, : self.size]
        return block - (block @ basis.mT) @ basis

    def _beside(self, row: Tensor, rows: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """A row (R, 1, p) orthogonal to `rows` and of length one, and where next to nothing of `length` was left."""
        before = torch.linalg.vector_norm(row, dim=2, keepdim=True)
        for _ in range(2 if rows.shape[1] else 0):
            row = row - (row @ rows.mT) @ rows
        left = torch.linalg.vector_norm(row, dim=2, keepdim=True)
        lost = ~(left > LOST * length)
        row = row / left.clamp_min(torch.finfo(row.dtype).tiny)
        if bool((left < CANCELLED * torch.maximum(before, length)).any()):  # what was small at first is large by now
            row = self._projected(row)
            row = row - (row @ rows.mT) @ rows
            row = row / torch.linalg.vector_norm(row, dim=2, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
        return row, lost


def _picked(end: End, k: int, size: int) -> list[int]:
    """Positions among the ascending Ritz values."""
    largest, smallest = list(range(size - 1, max(-1, size - 1 - k), -1)), list(range(min(k, size)))
    return {"largest": largest, "smallest": smallest, "both": largest + smallest}[end]


def _kept(end: End, wanted: int, space: _Space) -> list[int]:
    """What survives a restart: the wanted, and half as many again as there is room for beside them."""
    room = space.capacity - wanted - 2 * space.block
    count = min(wanted + max(0, room) // 2, space.size - 1)
    if end == "largest":
        return list(range(space.size - count, space.size))
    if end == "smallest":
        return list(range(count))
    upper = count - count // 2
    return list(range(count // 2)) + list(range(space.size - upper, space.size))
