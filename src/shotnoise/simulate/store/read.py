"""Reading a store, finished or not, while others may be writing to it."""

import os
from pathlib import Path
from typing import Self

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from shotnoise.errors import DataError
from shotnoise.simulate.layout import Layout
from shotnoise.simulate.store.arrays import chunk_positions
from shotnoise.simulate.store.manifest import read_manifest
from shotnoise.simulate.store.records import Records


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """What is finished of the results in the store at `path`, opened lazily with one Dask chunk per piece.

    Values of pieces that were not finished at the time of the call are NaN (floats) or -2 (integers). Beside the
    attributes of the store there are `pieces_finished` and `pieces`. Raises DataError where there is no store or a
    damaged one; and when values are computed, if a file of a finished piece is lost.
    """
    path = Path(path).resolve()
    layout = read_manifest(path).layout
    finished = Records(path, layout).finished()
    try:
        opened = xr.open_zarr(FinishedPieces(path, layout, frozenset(finished)), consolidated=False, chunks={})
        coordinates = {
            name: _fixed_text(opened.variables[name]) for name in (*layout.cells, "run", *layout.coordinates)
        }
        fields = {name: opened.variables[name] for name in layout.fields}
    except Exception as error:  # zarr raises what comes
        raise DataError(f"the arrays in {path} cannot be opened ({error!r}): the store is damaged") from error
    counts = {"pieces_finished": len(finished), "pieces": layout.pieces}
    return xr.Dataset(fields, coordinates, {**opened.attrs, **counts})


def _fixed_text(coordinate: xr.Variable) -> xr.Variable:
    """NumPy's text of variable length, which zarr gives, as that of fixed length, which everything takes."""
    if coordinate.dtype.kind != "T":
        return coordinate
    return xr.Variable(coordinate.dims, np.array(coordinate.values.tolist()), coordinate.attrs)


class FinishedPieces(LocalStore):
    """The folder of a store as if it had no chunks but those of finished pieces.

    Without this a piece that is half-written, or left so by a kill, would be read like a finished one.
    """

    def __init__(self, root: Path, layout: Layout, finished: frozenset[int]) -> None:
        super().__init__(root, read_only=True)
        self._layout, self._finished = layout, finished

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, self._layout, self._finished)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return None if self._hidden(key) else await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return None if self._hidden(key) else super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _hidden(self, key: str) -> bool:
        """Whether the key is a chunk of an unfinished piece; DataError for a finished one whose file is lost."""
        name, slash, chunk = key.partition("/")
        if name not in self._layout.fields or not slash or not chunk.startswith("c."):
            return False
        piece = self._layout.piece_at(chunk_positions(chunk, self._layout))
        if piece not in self._finished:
            return True
        if not (self.root / key).is_file():  # zarr would take it for a chunk of fill values
            raise DataError(
                f"{self.root / key} is lost: piece {piece} is damaged. Verify the store and compute it again"
            )
        return False
