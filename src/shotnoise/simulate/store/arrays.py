"""The arrays of a store: one folder in the Zarr format, version 3, in which a piece has a chunk file of its own."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from shotnoise.errors import DataError
from shotnoise.simulate.layout import FILL, Layout, Piece
from shotnoise.simulate.store.files import sync


def create_arrays(
    path: Path, layout: Layout, attributes: Mapping[str, Any], variable_attributes: Mapping[str, Mapping[str, Any]]
) -> None:
    """A new group at `path` with the coordinates written and the fields empty."""
    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for name, values in {**layout.cells, "run": range(layout.runs), **layout.coordinates}.items():
        data, own = np.asarray(values), dict(variable_attributes.get(name, {}))
        kind: Any = str if data.dtype.kind == "U" else data.dtype  # str is the text that other readers know, too
        array = group.create_array(name, shape=data.shape, dtype=kind, dimension_names=(name,), attributes=own)
        array[:] = data
    for name, field in layout.fields.items():
        group.create_array(
            name,
            shape=layout.shape(name),
            chunks=layout.chunk_shape(name),
            dtype=field.dtype,
            fill_value=FILL[field.dtype],
            compressors=ZstdCodec(checksum=True),  # a flipped bit is an error when read, seldom another number
            chunk_key_encoding={"name": "default", "separator": "."},  # one flat folder per field
            dimension_names=layout.dims(name),
            attributes=dict(variable_attributes.get(name, {})),
        )


def chunk_name(piece: Piece, dims: int) -> str:
    """The file of a piece in the folder of a field that has `dims` dimensions of its own."""
    return ".".join(["c", *map(str, piece.cell.values()), str(piece.block_index), *["0"] * dims])


def chunk_positions(name: str, layout: Layout) -> list[int]:
    """The place of a chunk file in the grid of pieces: the inverse of `chunk_name`."""
    return [int(position) for position in name.split(".")[1 : len(layout.grid) + 1]]


def checksum(values: NDArray[Any]) -> str:
    """SHA-256 of data type, shape and bytes."""
    digest = hashlib.sha256(f"{values.dtype.name}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).data)
    return digest.hexdigest()


class Arrays:
    """The fields of the store at `path`, read and written by the piece."""

    def __init__(self, path: Path, layout: Layout, mode: Literal["r", "r+"]) -> None:
        self._path, self._layout = path, layout
        try:
            arrays = {name: zarr.open_array(path / name, mode=mode, zarr_format=3) for name in layout.fields}
        except Exception as error:  # zarr raises what comes
            raise DataError(f"the arrays in {path} cannot be opened ({error!r}): the store is damaged") from error
        # By default zarr writes no chunk in which every value is the fill value. Here a chunk that is not there is not
        # computed, or lost.
        self._arrays = {name: array.with_config({"write_empty_chunks": True}) for name, array in arrays.items()}

    def folders(self) -> Iterator[Path]:
        return (self._path / name for name in self._layout.fields)

    def write(self, piece: Piece, content: Mapping[str, NDArray[Any]]) -> None:
        """Write all fields of a piece; when this returns they are on the disk."""
        for name, values in content.items():
            self._arrays[name][self._layout.region(name, piece)] = values
        for name in content:
            sync(self._file(name, piece))
            sync(self._path / name)

    def read(self, name: str, piece: Piece) -> NDArray[Any]:
        return np.asarray(self._arrays[name][self._layout.region(name, piece)])

    def intact(self, piece: Piece, checksums: Mapping[str, str] | None) -> bool:
        """Whether the piece can be read and has these checksums."""
        try:
            return checksums is not None and all(
                self._file(name, piece).is_file() and checksum(self.read(name, piece)) == checksums[name]
                for name in self._layout.fields
            )
        except Exception:  # zarr and its codecs raise what comes
            return False

    def _file(self, name: str, piece: Piece) -> Path:
        return self._path / name / chunk_name(piece, len(self._layout.fields[name].dims))
