"""Eigenpairs at the ends of the spectrum of symmetric operators, many operators at once: block Lanczos, thick restarts.

    A Q^T = Q^T T + X^T C    Q (m, p) the basis, X the block that comes next, C what A carries out of the basis
    T = S diag(theta) S^T    Ritz pairs (theta_i, x_i = s_i Q), of residual ||C s_i|| in exact arithmetic
    at the end               Rayleigh and Ritz once more on the x_i, whose A x_i, and so the residuals, are products

A new block is orthogonalised against the rows that T couples it to and then against all others. Where vectors are long,
the latter waits until the recurrence has lost more orthogonality than the residuals can bear (`orthogonality`). When
the basis is full, the best Ritz vectors and the block that comes next are what it starts again from (Krylov-Schur;
Stewart 2002, Wu and Simon 2000). A Krylov space sees of a multiple eigenvalue only as many copies as its blocks are
wide: what has converged is confirmed by a few more products with one random direction more per block, until these find
nothing new. Copies close to the rest of the spectrum can still be passed over, as by every Krylov method; dense
matrices cannot hide any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.spectra.orthogonality import Loss

Product = Callable[[Tensor], Tensor]  # (R, b, p) -> (R, b, p), one symmetric operator for each of the R
End = Literal["largest", "smallest", "both"]
ENDS = ("largest", "smallest", "both")
PACE = 1.15  # growth of the basis between looks at the Ritz pairs, which cost more than a product of short vectors
CONFIRMING = 12  # products that may still show a pair that was passed over
CANCELLED = 1e-2  # of its length: when less is left of a row, it is orthogonalised once more
LONG = 2**17  # numbers in a vector; of shorter ones a pass over the basis is cheap
COLUMNS = 2**11  # of the basis at a time, what a processor's cache holds
LOST = 1e-10  # of its length: a block of which orthogonalisation leaves less lies within the basis


@dataclass(frozen=True)
class RitzPairs:
    """values (R, k), unit vectors (R, k, p), residuals (R, k) in the scale of the operator, and what it took.

    norms (R,): the largest modulus of a Ritz value, by which residuals are judged. products: with a vector, by run.
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
    most: products with a vector, by operator, after which what is there is returned as it is; its residuals tell. These
    are from products with the vectors themselves, or, where `most` leaves none for that, from the recurrence.
    Raises InputError where k pairs and two blocks do not fit the basis.

    >>> A = torch.diag(torch.arange(50.0, dtype=torch.float64))[None]
    >>> start = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> found = lanczos(lambda x: x @ A, start, 2, tolerance=1e-9, basis=20, most=500)
    >>> found.values.round(decimals=6).tolist()
    [[49.0, 48.0]]
    """
    wanted = _wanted(end, k)
    space = _Space(product, start, min(basis, start.shape[2]), tolerance)
    space.require(wanted)
    search = most - wanted if most >= 3 * wanted else most  # what is left is for the residuals
    converged = space.extend(end, k, tolerance, search)
    while converged and not space.is_complete and space.capacity >= wanted + 2 * (space.block + 1):
        before = space.values(_picked(end, k, space.size))
        space.widen(_kept(end, wanted, space))
        converged = space.extend(end, k, tolerance, search, at_least=CONFIRMING)
        after = space.values(_picked(end, k, space.size))
        if bool(((after - before).abs().amax(1) <= tolerance * space.scale()).all()):
            break
    while True:
        left = most - space.products - wanted
        if left < 0:
            return space.pairs(_picked(end, k, space.size))
        found = space.multiplied(end, k)
        missed = bool((found.residuals > tolerance * found.norms[:, None]).any())
        if not (missed and converged) or space.is_complete or left < CONFIRMING + wanted:
            return found
        converged = space.extend(end, k, tolerance, search, at_least=CONFIRMING)


class _Space:
    """A growing orthonormal basis Q of Krylov spaces and the eigenpairs of A in it."""

    def __init__(self, product: Product, start: Tensor, basis: int, tolerance: float) -> None:
        self.product, (self.runs, self.block, self.p) = product, start.shape
        self.block = min(self.block, self.p)
        self.capacity, self.size, self.products = basis, 0, 0
        self.Q = start.new_empty(self.runs, basis, self.p)
        self.T = start.new_zeros(self.runs, basis, basis, dtype=torch.float64)
        epsilon = torch.finfo(start.dtype).eps
        self.is_long = start[:, 0].numel() >= LONG
        watched = self.block == 1 and self.is_long and Loss.can_wait(epsilon, tolerance)
        self.loss = Loss(self.T, epsilon, tolerance) if watched else None
        self.generator = torch.Generator().manual_seed(0)
        self.next = self._orthonormal(start[:, : self.block])
        self._couple(self.T[:, :0, : self.block], 0)

    def _couple(self, coupling: Tensor, first: int) -> None:
        """C^T (R, size, next block), of which the rows before `first` vanish."""
        self.coupling, self.first = coupling, first

    def require(self, wanted: int) -> None:
        if self.capacity < self.p and self.capacity < wanted + 2 * self.block:
            raise InputError(
                f"a basis of {self.capacity} vectors is too small for {wanted} eigenpairs in blocks of {self.block}; "
                f"at least {wanted + 2 * self.block} are needed: allow more memory or ask for fewer"
            )

    def extend(self, end: End, k: int, tolerance: float, most: int, at_least: int = 0) -> bool:
        """Grow until the wanted pairs seem to have converged; False where `most` products did not suffice."""
        wanted, first, pace = _wanted(end, k), self.products + at_least, 1 if self.is_long else PACE
        look = wanted + 2
        while not self.is_complete and self.products + self.block <= most:
            if self.is_full:
                self.restart(_kept(end, wanted, self))
                look = int(pace * self.size) + 1
            self.grow()
            if self.products < first or not (self.is_full or self.size >= look):
                continue
            look = int(pace * self.size) + 1
            if self.seems_converged(_picked(end, k, self.size), tolerance):
                return True
        return self.is_complete

    def widen(self, kept: list[int]) -> None:
        """From here on one random direction more in every block."""
        if self.loss is not None:  # all blocks are orthogonalised from now on: let there be fewer rows
            self.restart(kept)
        width = self.next.shape[1]
        self.block, self.loss = self.block + 1, None
        self.next = self._orthonormal(torch.cat([self.next, torch.zeros_like(self.next[:, :1])], 1))
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
        new, coupling = self.next[:, :width], self.coupling[:, :, :width]
        product = self.product(new)
        self.products += width
        old, size = self.size, self.size + width
        self.Q[:, old:size] = new
        inside = (new @ product.mT).double()
        inside = (inside + inside.mT) / 2
        self.T[:, :old, old:size], self.T[:, old:size, :old] = coupling, coupling.mT
        self.T[:, old:size, old:size] = inside
        self.size, self.ritz = size, None
        if size < self.p:
            near = torch.cat([coupling[:, self.first :], inside], 1).to(product)
            rest = torch.baddbmm(product, near.mT, self.Q[:, self.first : size], alpha=-1)
            beside = self._advance(rest)
            self._couple(torch.nn.functional.pad(beside, (0, 0, old, 0)), old)

    def _advance(self, rest: Tensor) -> Tensor:
        """Make of it the next block, and return what A carries there, (R, last block, next block)."""
        if self.loss is not None:
            beta = _lengths(rest)
            if self.loss.spreads(self.size, beta[:, :, 0]):
                rest = self._mended(rest)
                left = _lengths(rest)
                beta = torch.where(left > CANCELLED * beta, left, 0)
            if bool((beta > 0).all()):
                self.next = rest.div_(beta.to(rest))
                return beta
        self.next = self._orthonormal(rest)
        return (rest @ self.next.mT).double()

    def _mended(self, rest: Tensor) -> Tensor:
        """`rest` and the last row, from which together the next loss would spring, orthogonalised at once."""
        last = self.size - 1
        pair = torch.cat([self.Q[:, last : self.size], rest], 1)
        if last:
            pair.baddbmm_(pair @ self.Q[:, :last].mT, self.Q[:, :last], alpha=-1)
        row, rest = pair[:, :1], pair[:, 1:]
        row = self.Q[:, last : self.size] = row / _lengths(row).to(row)
        return torch.baddbmm(rest, rest @ row.mT, row, alpha=-1)

    ritz: tuple[Tensor, Tensor] | None = None

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Ritz values (R, size), ascending, and coefficients (R, size, size) by column."""
        if self.ritz is None:
            self.ritz = torch.linalg.eigh(self.T[:, : self.size, : self.size])
        return self.ritz

    def values(self, picked: list[int]) -> Tensor:
        return self.eigen()[0][:, picked]

    def scale(self) -> Tensor:
        return self.eigen()[0].abs().amax(1)

    def estimates(self, picked: list[int]) -> Tensor:
        """||C s_i||, which costs nothing; zero for a basis that spans everything."""
        coefficients = self.eigen()[1][:, self.first :, picked]
        if self.is_complete:
            return torch.zeros_like(coefficients[:, 0])
        return torch.linalg.vector_norm(self.coupling[:, self.first :].mT @ coefficients, dim=1)

    def seems_converged(self, picked: list[int], tolerance: float) -> bool:
        return bool((self.estimates(picked) <= tolerance * self.scale()[:, None]).all())

    def pairs(self, picked: list[int]) -> RitzPairs:
        """As the recurrence has them, residuals included."""
        values, vectors = self.eigen()
        x = vectors[:, :, picked].mT.to(self.Q) @ self.Q[:, : self.size]
        x = x / _lengths(x).to(x)
        return RitzPairs(values[:, picked], x, self.estimates(picked), self.scale(), self.products)

    def multiplied(self, end: End, k: int) -> RitzPairs:
        """By Rayleigh and Ritz with the products of the picked vectors themselves."""
        picked = _picked(end, k, self.size)
        x = self.Q.new_empty(self.runs, len(picked), self.p)
        _turn(self.eigen()[1][:, :, picked].mT, self.Q[:, : self.size], x)
        ax = self.product(x)
        self.products += len(picked)
        inner, image = (x @ x.mT).double(), (x @ ax.mT).double()
        whitening = torch.linalg.inv(torch.linalg.cholesky(inner))
        values, vectors = torch.linalg.eigh(whitening @ ((image + image.mT) / 2) @ whitening.mT)
        order = _picked(end, k, len(picked))
        values, turn, r = values[:, order], (vectors.mT @ whitening)[:, order], torch.empty_like(x)
        _turn(turn, ax, r)
        _turn(turn, x, x)
        residuals = _lengths(r.addcmul_(values[..., None].to(x), x, value=-1))[..., 0]
        return RitzPairs(values, x, residuals, self.scale(), self.products)

    def restart(self, kept: list[int]) -> None:
        """Ritz vectors instead of the basis; the next block stays orthogonal to them, and stays next."""
        values, vectors = self.eigen()
        s, count = vectors[:, :, kept].mT, len(kept)
        _turn(s, self.Q[:, : self.size], self.Q[:, :count])
        if self.loss is not None:
            self.loss.rotate(s)
        self._couple(s @ self.coupling, 0)
        self.T.zero_()
        self.T[:, range(count), range(count)] = values[:, kept]
        self.size, self.ritz = count, None

    def _orthonormal(self, block: Tensor) -> Tensor:
        """The part of a block outside the basis, as orthonormal rows; random rows where nothing is left."""
        length = _lengths(block)
        block = self._projected(block)
        count = min(self.block, self.p - self.size)
        if count <= block.shape[1]:
            rows, left = _factored(block[:, :count])
            if bool((left > CANCELLED * length[:, :count]).all()):
                return rows
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
        return torch.baddbmm(block, block @ basis.mT, basis, alpha=-1) if self.size else block

    def _beside(self, row: Tensor, rows: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """A row (R, 1, p) orthogonal to `rows` and of length one, and where next to nothing of `length` was left."""
        before = _lengths(row)
        for _ in range(2 if rows.shape[1] else 0):
            row = row - (row @ rows.mT) @ rows
        left = _lengths(row)
        lost = ~(left > LOST * length)
        row = row / left.clamp_min(torch.finfo(row.dtype).tiny).to(row)
        if bool((left < CANCELLED * torch.maximum(before, length)).any()):  # what was small at first is large by now
            row = self._projected(row)
            row = row - (row @ rows.mT) @ rows
            row = row / _lengths(row).clamp_min(torch.finfo(row.dtype).tiny).to(row)
        return row, lost


def _factored(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, b, p) as orthonormal ones, and what is left of each beside those before it, (R, b, 1)."""
    if rows.shape[1] == 1:
        left = _lengths(rows)
        return rows / left.clamp_min(torch.finfo(rows.dtype).tiny).to(rows), left
    quotient, triangle = torch.linalg.qr(rows.mT)
    return quotient.mT, triangle.diagonal(dim1=1, dim2=2).abs()[..., None]


def _turn(s: Tensor, rows: Tensor, place: Tensor) -> None:
    """s rows to `place`, which may be among the rows."""
    s = s.to(rows)
    for some, there in zip(rows.split(COLUMNS, dim=2), place.split(COLUMNS, dim=2), strict=True):
        there.copy_(s @ some)


def _lengths(rows: Tensor) -> Tensor:
    """(R, b, 1), summed in double precision: of a million squares single precision loses three digits."""
    return torch.linalg.vector_norm(rows, dim=2, keepdim=True, dtype=torch.float64)


def _wanted(end: End, k: int) -> int:
    return 2 * k if end == "both" else k


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
