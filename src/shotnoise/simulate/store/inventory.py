"""What a store holds and what is still to do, without changing it."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shotnoise.simulate.layout import Layout
from shotnoise.simulate.store.arrays import Arrays
from shotnoise.simulate.store.claims import Worker, live_workers
from shotnoise.simulate.store.manifest import read_manifest
from shotnoise.simulate.store.records import Records

SHOWN = 5  # cells that a sentence names


@dataclass(frozen=True)
class Gap:
    """Runs of one cell that are not there, as ranges `start` <= run < `stop`."""

    cell: dict[str, Any]
    ranges: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        where = ", ".join(f"{dim}={value}" for dim, value in self.cell.items())
        runs = ", ".join(f"{start}-{stop - 1}" for start, stop in self.ranges)
        return f"{where} runs {runs}" if where else f"runs {runs}"


@dataclass(frozen=True)
class Inventory:
    """The `pieces` of a store: `finished` and intact, `damaged` (their numbers), and the rest, by cell in `missing`.

    `workers` are the processes that have the store open.
    """

    pieces: int
    finished: int
    damaged: tuple[int, ...]
    missing: tuple[Gap, ...]
    workers: tuple[Worker, ...]

    @property
    def complete(self) -> bool:
        return self.finished == self.pieces

    @property
    def sentence(self) -> str:
        parts = [f"{self.finished} of {self.pieces} pieces are finished and intact"]
        if self.damaged:
            parts.append(f"damaged: {_listed(map(str, self.damaged))}")
        if self.missing:
            parts.append(f"missing: {_listed(map(str, self.missing))}")
        if self.workers:
            parts.append(f"at work: {_listed(map(str, self.workers))}")
        return "; ".join(parts)


def inventory(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Inventory:
    """Take stock of the store at `path`: reads every finished piece and compares it with its record.

    `progress` is told how many pieces are done, of how many. Raises DataError where there is no store.
    """
    path = Path(path).resolve()
    layout = read_manifest(path).layout
    records, arrays = Records(path, layout), Arrays(path, layout, "r")
    finished = sorted(records.finished())
    damaged = []
    for done, piece in enumerate(finished, 1):
        if not arrays.intact(layout.piece(piece), records.checksums(piece)):
            damaged.append(piece)
        if progress is not None:
            progress(done, len(finished))
    gaps = _gaps(layout, sorted(set(range(layout.pieces)) - set(finished)))
    return Inventory(layout.pieces, len(finished) - len(damaged), tuple(damaged), gaps, live_workers(path))


def _gaps(layout: Layout, missing: Iterable[int]) -> tuple[Gap, ...]:
    ranges: dict[int, list[tuple[int, int]]] = {}
    for piece in map(layout.piece, missing):
        cell = ranges.setdefault(piece.index - piece.block_index, [])
        start = cell.pop()[0] if cell and cell[-1][1] == piece.start else piece.start
        cell.append((start, piece.stop))
    return tuple(Gap(layout.cell_values(layout.piece(first)), tuple(cell)) for first, cell in ranges.items())


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
