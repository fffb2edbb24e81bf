"""How an ensemble of trainings is cut into pieces of work, and which arrays hold its results.

An experiment has cells, the product of a few leading dimensions (batch sizes, learning rates). Every cell has the
same number of runs, cut into blocks of consecutive runs; the last block may be smaller. A piece is one block of one
cell: computed as a whole, written once, and one chunk in every array. Pieces are numbered 0, 1, ... cell by cell,
the last of the cells' dimensions varying fastest, and within a cell from the first run to the last.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shotnoise.errors import InputError

FILL = {"float32": math.nan, "float64": math.nan, "int32": -2}  # by data type: what is not computed yet
RESERVED = {"run", "block", "manifest"}  # two dimensions and a folder that every store has


@dataclass(frozen=True)
class Field:
    """One array of the result: its dimensions after those of the cells and of the runs, and what it holds per piece.

    `per` is "run" for one value per run, or "block" for one value per block (statistics over the block's runs).
    """

    dims: tuple[str, ...]
    dtype: str
    per: Literal["run", "block"]


@dataclass(frozen=True)
class Piece:
    """Runs `start` <= run < `stop` of one cell, given by its position along each of the cells' dimensions."""

    index: int
    cell: dict[str, int]
    start: int
    stop: int
    block_index: int


@dataclass(frozen=True)
class Layout:
    """The cells, the runs per cell and their blocks, and the arrays of the result.

    `cells` and `coordinates` give the values (all numbers or all text) along the leading and the trailing dimensions.
    Raises InputError for what cannot be laid out: no runs, a dimension without values or with a value twice, a field
    along a dimension that is not described, a name that is taken.

    >>> fields = {"loss": Field(("step",), "float64", "run")}
    >>> layout = Layout({"batch_size": [5, 50]}, runs=7, block=3, coordinates={"step": [0, 10]}, fields=fields)
    >>> layout.pieces
    6
    >>> layout.piece(5)
    Piece(index=5, cell={'batch_size': 1}, start=6, stop=7, block_index=2)
    >>> layout.shape("loss"), layout.piece_shape("loss", layout.piece(5))
    ((2, 7, 2), (1, 2))
    """

    cells: Mapping[str, Sequence[Any]]
    runs: int
    block: int
    coordinates: Mapping[str, Sequence[Any]]
    fields: Mapping[str, Field]

    def __post_init__(self) -> None:
        for name in ("cells", "coordinates"):
            plain = {dim: _values(dim, values) for dim, values in getattr(self, name).items()}
            object.__setattr__(self, name, plain)
        for name in ("runs", "block"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        fields = {name: Field(tuple(field.dims), field.dtype, field.per) for name, field in self.fields.items()}
        object.__setattr__(self, "fields", fields)
        _check_names([*self.cells, *self.coordinates, *self.fields])
        if not self.fields:
            raise InputError("a layout without fields holds no results; name at least one field")
        for name, field in self.fields.items():
            self._check_field(name, field)

    @property
    def blocks(self) -> int:
        """Blocks per cell."""
        return math.ceil(self.runs / self.block)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many pieces lie along each of the cells' dimensions and, last, along the blocks."""
        return (*(len(values) for values in self.cells.values()), self.blocks)

    @property
    def pieces(self) -> int:
        return math.prod(self.grid)

    @property
    def nbytes(self) -> int:
        """Bytes of all fields together, before compression."""
        return sum(math.prod(self.shape(n)) * np.dtype(f.dtype).itemsize for n, f in self.fields.items())

    def piece(self, index: int) -> Piece:
        if not 0 <= index < self.pieces:
            raise InputError(f"there is no piece {index}: this layout has the pieces 0 to {self.pieces - 1}")
        *cell, block = (int(position) for position in np.unravel_index(index, self.grid))
        start = block * self.block
        return Piece(index, dict(zip(self.cells, cell, strict=True)), start, min(start + self.block, self.runs), block)

    def piece_at(self, positions: Sequence[int]) -> int:
        """The number of the piece at this place in `grid`."""
        return int(np.ravel_multi_index(tuple(positions), self.grid))

    def cell_values(self, piece: Piece) -> dict[str, Any]:
        """The coordinate values of the cell of a piece, by dimension."""
        return {dim: self.cells[dim][position] for dim, position in piece.cell.items()}

    def shard(self, index: int, count: int) -> list[int]:
        """The pieces of one of `count` shards, which share the pieces evenly: those with number % count == index."""
        if not 0 <= index < count:
            raise InputError(f"there is no shard {index} of {count}; shards are numbered 0 to {count - 1}")
        return list(range(index, self.pieces, count))

    def dims(self, name: str) -> tuple[str, ...]:
        """The dimensions of a field's array: the cells', then "run" or "block", then the field's own."""
        field = self.fields[name]
        return (*self.cells, field.per, *field.dims)

    def shape(self, name: str) -> tuple[int, ...]:
        along = self.runs if self.fields[name].per == "run" else self.blocks
        return (*self.grid[:-1], along, *self._trailing(name))

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """The part of a field's array that holds exactly one piece (at the end of a cell it may reach beyond)."""
        along = min(self.block, self.runs) if self.fields[name].per == "run" else 1
        return (*(1 for _ in self.cells), along, *self._trailing(name))

    def piece_shape(self, name: str, piece: Piece) -> tuple[int, ...]:
        """The shape of what a piece contributes: (runs, *field.dims), or (*field.dims) for a value per block."""
        along = (piece.stop - piece.start,) if self.fields[name].per == "run" else ()
        return (*along, *self._trailing(name))

    def region(self, name: str, piece: Piece) -> tuple[int | slice, ...]:
        """Where in a field's array the contribution of a piece lies."""
        along = slice(piece.start, piece.stop) if self.fields[name].per == "run" else piece.block_index
        return (*piece.cell.values(), along, *(slice(None) for _ in self.fields[name].dims))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values. The order of the cells' dimensions counts, that of others does not."""
        return {
            "cell_dims": list(self.cells),
            "cells": {dim: list(values) for dim, values in self.cells.items()},
            "runs": self.runs,
            "block": self.block,
            "coordinates": {dim: list(values) for dim, values in self.coordinates.items()},
            "fields": {n: {"dims": list(f.dims), "dtype": f.dtype, "per": f.per} for n, f in self.fields.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        cells = {dim: content["cells"][dim] for dim in content["cell_dims"]}
        fields = {name: Field(tuple(f["dims"]), f["dtype"], f["per"]) for name, f in content["fields"].items()}
        return cls(cells, content["runs"], content["block"], content["coordinates"], fields)

    def _trailing(self, name: str) -> tuple[int, ...]:
        return tuple(len(self.coordinates[dim]) for dim in self.fields[name].dims)

    def _check_field(self, name: str, field: Field) -> None:
        if field.dtype not in FILL:
            raise InputError(f"field {name} has dtype {field.dtype!r}; expected one of {', '.join(FILL)}")
        if field.per not in ("run", "block"):
            raise InputError(f'field {name} is per {field.per!r}; expected "run" or "block"')
        unknown = [dim for dim in field.dims if dim not in self.coordinates]
        if unknown or len(set(field.dims)) < len(field.dims):
            known = ", ".join(self.coordinates) or "none"
            raise InputError(
                f"field {name} has the dimensions {field.dims}; expected different ones that have coordinates ({known})"
            )


def _values(dim: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise InputError(f"{dim} is the text {values!r}; expected a sequence of values, such as [{values!r}]")
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in plain)
    if not plain or not (numbers or all(isinstance(value, str) for value in plain)):
        raise InputError(f"{dim} is {str(values)[:200]}; expected at least one value, all finite numbers or all text")
    if len(set(plain)) < len(plain):
        twice = Counter(plain).most_common(1)[0][0]
        raise InputError(f"{dim} has the value {twice!r} more than once; values along a dimension must differ")
    return plain


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least 1")
    return int(value)


def _check_names(names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if name in RESERVED or not name.isidentifier():
            raise InputError(
                f"{name!r} cannot name a dimension or field; take letters, digits and _, and none of "
                f"{', '.join(sorted(RESERVED))}"
            )
        if times > 1:
            raise InputError(f"{name!r} names {times} dimensions or fields; give each a name of its own")
