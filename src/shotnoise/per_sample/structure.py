"""Per-sample gradients of one parameter, kept in the form in which backpropagation delivers them.

    Outer    g_i = sum_t d_it a_it^T     Linear and convolutions: input a, output gradient d, positions t
    Lookup   g_i = sum_t e(k_it) d_it^T  embeddings: row index k, e(k) the k-th unit vector
    Dense    g_i as it stands            biases, normalisation scales, whatever had no better form

A `PerSample` is the sum of such parts (a weight used several times has several) and answers the questions that the
library asks of m gradients of p numbers without building the m x p matrix: squared norms, inner products,
sums of squares, products with a vector. Blocks of rows of the parameter are built where nothing shorter exists.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import lcm

import torch
from torch import Tensor

BLOCK_BYTES = 32 * 2**20  # explicit gradients of one block of rows, all samples
CACHE_BYTES = 2**20  # explicit gradients of a few samples: what stays in a core's cache


@dataclass(frozen=True)
class Outer:
    """g_i = sum_t d_it a_it^T, for each of G groups of rows.

    d: (m, G, O, T); a: anything that reshapes to (m, G, I, T), usually a view whose copy would be larger than the
    input it shows (a convolution's windows), so it is copied for a few samples at a time. The parameter has
    G * O rows of I numbers.
    """

    a: Tensor
    d: Tensor

    @property
    def groups(self) -> int:
        return self.d.shape[1]

    @property
    def positions(self) -> int:
        return self.d.shape[3]

    @property
    def row_length(self) -> int:
        return self.a[0].numel() // (self.groups * self.positions)

    @property
    def row_step(self) -> int:
        """Rows come in whole groups when there are several."""
        return 1 if self.groups == 1 else self.d.shape[2]

    @property
    def is_flat(self) -> bool:
        return self.positions == 1 and self.groups == 1

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """a as (m, I) and d as (m, O); only if `is_flat`."""
        return self.a.reshape(len(self.a), -1), self.d.reshape(len(self.d), -1)

    def few(self, numbers: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which, a, d) for a few samples at a time, so many that `numbers` per sample fit the cache."""
        step = max(1, CACHE_BYTES // (self.d.element_size() * max(1, numbers)))
        for start in range(0, len(self.d), step):
            some = slice(start, start + step)
            d = self.d[some]
            yield some, self.a[some].reshape(len(d), self.groups, self.row_length, self.positions), d

    def squared_norms(self) -> Tensor:
        if self.is_flat:
            a, d = self.flat
            return _square_rows(a) * _square_rows(d)
        inputs, outputs, positions = self.row_length, self.d.shape[2], self.positions
        norms = self.d.new_empty(len(self.d))
        # Either the products of positions (T x T) or the gradients themselves (O x I), whichever is less work.
        if positions * (inputs + outputs) <= inputs * outputs:
            for some, a, d in self.few(self.groups * max(positions**2, positions * inputs)):
                norms[some] = (a.mT @ a).mul_(d.mT @ d).sum((1, 2, 3))
        else:
            for some, a, d in self.few(self.groups * inputs * max(outputs, positions)):
                norms[some] = (d @ a.mT).flatten(1).square_().sum(1)
        return norms

    def sum_of_squares(self) -> Tensor:
        """sum_i g_i^2 entry by entry, (rows, I)."""
        if self.is_flat:
            a, d = self.flat
            return d.square().T @ a.square()
        inputs, outputs = self.row_length, self.d.shape[2]
        total = self.d.new_zeros(self.groups, outputs, inputs)
        for _, a, d in self.few(self.groups * inputs * max(outputs, self.positions)):
            total += (d @ a.mT).square_().sum(0)
        return total.flatten(0, 1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop of every gradient, (m, stop - start, I)."""
        inputs, size = self.row_length, self.row_step
        groups = slice(None) if self.groups == 1 else slice(start // size, stop // size)
        inside = slice(start, stop) if self.groups == 1 else slice(None)
        written = self.d.new_empty(len(self.d), stop - start, inputs)
        for some, a, d in self.few(self.groups * inputs * max(self.d.shape[2], self.positions)):
            written[some] = (d[:, groups, inside] @ a[:, groups].mT).flatten(1, 2)
        return written

    def dot(self, matrix: Tensor) -> Tensor:
        grouped = matrix.reshape(self.groups, self.d.shape[2], self.row_length)
        if self.is_flat:
            a, d = self.flat
            return torch.linalg.vecdot(a @ grouped[0].T, d)
        dots = self.d.new_empty(len(self.d))
        for some, a, d in self.few(self.groups * self.positions * max(self.row_length, self.d.shape[2])):
            dots[some] = (grouped @ a).mul_(d).sum((1, 2, 3))
        return dots

    def weighted_sum(self, weights: Tensor) -> Tensor:
        if self.is_flat:
            a, d = self.flat
            return torch.stack([(d * w[:, None]).T @ a for w in weights.T])
        inputs, outputs = self.row_length, self.d.shape[2]
        total = self.d.new_zeros(weights.shape[1], self.groups * outputs * inputs)
        for some, a, d in self.few(self.groups * inputs * max(outputs, self.positions)):
            total += weights[some].T @ (d @ a.mT).flatten(1)
        return total


@dataclass(frozen=True)
class Lookup:
    """g_i = sum_t e(k_it) d_it^T.  index: (m, T), d: (m, T, D), the parameter has `size` rows of D numbers."""

    index: Tensor
    d: Tensor
    size: int

    row_step = 1

    def squared_norms(self) -> Tensor:
        same = self.index[:, :, None] == self.index[:, None, :]
        return (same * (self.d @ self.d.mT)).sum((1, 2))

    def rows(self, start: int, stop: int) -> Tensor:
        inside = (self.index >= start) & (self.index < stop)
        rows = self.d.new_zeros(len(self.d), stop - start, self.d.shape[2])
        index = torch.where(inside, self.index - start, 0)[:, :, None].expand_as(self.d)
        return rows.scatter_add_(1, index, self.d * inside[:, :, None])

    def dot(self, matrix: Tensor) -> Tensor:
        return (matrix[self.index] * self.d).sum((1, 2))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        flat, index = self.d.flatten(0, 1), self.index.flatten()
        positions = self.index.shape[1]
        sums = [
            flat.new_zeros(self.size, flat.shape[1]).index_add_(
                0, index, flat * w.repeat_interleave(positions)[:, None]
            )
            for w in weights.T
        ]
        return torch.stack(sums)


@dataclass(frozen=True)
class Dense:
    """The gradients themselves, (m, rows, ...)."""

    g: Tensor

    row_step = 1

    @cached_property
    def matrix(self) -> Tensor:
        return self.g.flatten(1)

    def squared_norms(self) -> Tensor:
        return _square_rows(self.matrix)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.g[:, start:stop].flatten(2) if self.g.ndim > 2 else self.g[:, start:stop, None]

    def dot(self, matrix: Tensor) -> Tensor:
        return self.matrix @ matrix.flatten()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return weights.T @ self.matrix


Part = Outer | Lookup | Dense


class PerSample:
    """The gradients of m samples with respect to one parameter of shape `shape`, as a sum of parts."""

    def __init__(self, parts: Sequence[Part], shape: torch.Size) -> None:
        self.shape = shape
        self.parts = _merge(parts)

    @classmethod
    def of(cls, gradients: Tensor) -> "PerSample":
        """From the gradients as they stand, (m, *parameter)."""
        shape = gradients.shape[1:]
        return cls([Dense(gradients.reshape(len(gradients), *(shape or (1,))))], shape)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """a (m, I) and d (m, O) if each gradient is the one product d_i a_i^T."""
        part = self.parts[0]
        return part.flat if len(self.parts) == 1 and isinstance(part, Outer) and part.is_flat else None

    def consists_of(self, d: Tensor) -> bool:
        """Whether the gradients are this very tensor, (m, O), as those of a dense layer's bias are."""
        part = self.parts[0]
        if len(self.parts) > 1 or not isinstance(part, Dense):
            return False
        return part.g.data_ptr() == d.data_ptr() and part.g.shape == d.shape

    def squared_norms(self) -> Tensor:
        """||g_i||^2, shape (m,)."""
        if len(self.parts) == 1:
            return self.parts[0].squared_norms()
        pairs = [(x, y) for k, x in enumerate(self.parts) for y in self.parts[:k]]
        return _sum(part.squared_norms() for part in self.parts) + 2 * _sum(self._inner(x, y) for x, y in pairs)

    def gram(self, other: "PerSample | None" = None) -> Tensor:
        """g_i . h_j for the gradients h of `other` (default: these), shape (m, m')."""
        other = self if other is None else other
        if len(self.parts) == len(other.parts) == 1:
            if self.factors and other.factors:
                (a, d), (b, e) = self.factors, other.factors
                return (a @ b.T).mul_(d @ e.T)
            x, y = self.parts[0], other.parts[0]
            if isinstance(x, Dense) and isinstance(y, Dense):
                return x.matrix @ y.matrix.T
        rows = min(self._block_rows, other._block_rows)
        return _sum(
            mine.flatten(1) @ theirs.flatten(1).T
            for mine, theirs in zip(self._blocks(rows), other._blocks(rows), strict=True)
        )

    def sum_of_squares(self) -> Tensor:
        """sum_i g_i^2 entry by entry, in the parameter's shape."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Outer):
            return self.parts[0].sum_of_squares().reshape(self.shape)
        return torch.cat([block.square().sum(0) for block in self._blocks()]).reshape(self.shape)

    def add_sum_of_squares(self, to: Tensor, beta: float, alpha: float) -> None:
        """to <- beta to + alpha sum_i g_i^2 in place, `to` in the parameter's shape; one product where it can be."""
        if self.factors and to.is_contiguous():
            a, d = self.factors
            to.view(len(to), -1).addmm_(d.square().T, a.square(), beta=beta, alpha=alpha)
        else:
            to.mul_(beta).add_(self.sum_of_squares(), alpha=alpha)

    def dot(self, direction: Tensor) -> Tensor:
        """g_i . direction for a tensor of the parameter's shape, shape (m,)."""
        matrix = _as_rows(direction)
        return _sum(part.dot(matrix) for part in self.parts)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """sum_i weights_ik g_i for weights (m, k), shape (k, *parameter)."""
        k = weights.shape[1]
        return _sum(part.weighted_sum(weights).reshape(k, -1) for part in self.parts).reshape(k, *self.shape)

    def total(self) -> Tensor:
        """sum_i g_i, in the parameter's shape."""
        if self.factors:
            a, d = self.factors
            return (d.T @ a).reshape(self.shape)
        return self.weighted_sum(self._captured.new_ones(self.samples, 1))[0]

    def explicit(self) -> Tensor:
        """All gradients written out, (m, *parameter)."""
        blocks = torch.cat(list(self._blocks()), 1)
        return blocks.reshape(len(blocks), *self.shape)

    def _inner(self, x: Part, y: Part) -> Tensor:
        """<x_i, y_i> for two parts of different kinds, shape (m,)."""
        if isinstance(x, Lookup) and isinstance(y, Outer) and y.groups == 1:
            # Row k_it of sum_s d_is a_is^T, times d_it: only the rows that were looked up are touched.
            picked = y.d[:, 0].gather(1, x.index[:, :, None].expand(-1, -1, y.positions))  # (m, T, S)
            a = y.a.reshape(len(y.d), y.row_length, y.positions)
            return (picked * (x.d @ a)).sum((1, 2))
        spans = self._spans(self._block_rows)
        return _sum((x.rows(*span) * y.rows(*span)).sum((1, 2)) for span in spans)

    @property
    def checksum(self) -> Tensor:
        """One number that is not finite if an output gradient is not."""
        return _sum((part.g if isinstance(part, Dense) else part.d).sum() for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Memory of the recorded inputs and output gradients."""
        tensors = [t for part in self.parts for t in vars(part).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def samples(self) -> int:
        return len(self._captured)

    @property
    def _captured(self) -> Tensor:
        part = self.parts[0]
        return part.g if isinstance(part, Dense) else part.d

    @property
    def _block_rows(self) -> int:
        step = lcm(*(part.row_step for part in self.parts))
        row_bytes = self.samples * max(1, self.shape.numel() // max(1, _row_count(self.shape))) * 4
        return max(step, BLOCK_BYTES // row_bytes // step * step)

    def _blocks(self, rows: int | None = None) -> Iterator[Tensor]:
        """The gradients, some rows of the parameter at a time: (m, rows, row length)."""
        for start, stop in self._spans(rows or self._block_rows):
            yield _sum(part.rows(start, stop) for part in self.parts)

    def _spans(self, rows: int) -> list[tuple[int, int]]:
        count = _row_count(self.shape)
        return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def _merge(parts: Sequence[Part]) -> list[Part]:
    """Uses of the same kind joined along their positions, so that their cross terms come by themselves."""
    if len(parts) == 1:
        return list(parts)
    merged: list[Part] = []
    outer = [p for p in parts if isinstance(p, Outer)]
    for groups in {p.groups: None for p in outer}:
        alike = [p for p in outer if p.groups == groups]
        merged.append(alike[0] if len(alike) == 1 else _join(alike))
    if lookup := [p for p in parts if isinstance(p, Lookup)]:
        index, d = torch.cat([p.index for p in lookup], 1), torch.cat([p.d for p in lookup], 1)
        merged.append(Lookup(index, d, lookup[0].size))
    if dense := [p for p in parts if isinstance(p, Dense)]:
        merged.append(Dense(_sum(p.g for p in dense)))
    return merged


def _join(parts: Sequence[Outer]) -> Outer:
    inputs = [p.a.reshape(len(p.d), p.groups, p.row_length, p.positions) for p in parts]
    return Outer(torch.cat(inputs, 3), torch.cat([p.d for p in parts], 3))


def _square_rows(matrix: Tensor) -> Tensor:
    """The squared norm of each row; twice as fast as products of the rows with themselves."""
    return torch.linalg.vector_norm(matrix, dim=1).square()


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(_row_count(tensor.shape), -1)


def _row_count(shape: torch.Size) -> int:
    return shape[0] if len(shape) else 1


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return reduce(torch.Tensor.add, tensors)
