"""Reads named arrays out of the bytes of an .npz archive, never unpickling anything."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import DataError

# What NumPy and zipfile raise for damaged archives; RuntimeError is for zip features that they do not know.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, RuntimeError)


def read_npz(content: bytes, names: Sequence[str], *, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of these names; DataError when the archive is damaged, lacks one or holds Python objects."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            absent = [name for name in names if name not in archive]
            if absent:
                raise DataError(
                    f"{where} has no array {', '.join(absent)}; it has {', '.join(archive.files) or 'nothing'}."
                )
            return {name: archive[name] for name in names}
    except _UNREADABLE as error:
        raise DataError(
            f"{where} ({len(content)} bytes) cannot be read as an .npz archive of plain arrays: {error}. "
            "It is truncated, damaged or holds Python objects; get the file again."
        ) from error
