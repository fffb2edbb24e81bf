"""Reads the idx files of MNIST, packed with gzip or not, and checks every count they announce.

An idx file of unsigned bytes is: 00 00 08 d, then d big-endian 32-bit sizes, then the bytes themselves.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from shotnoise.datasets.checksums import UNVERIFIED, require_digest
from shotnoise.errors import DataError

_CHUNK = 1 << 20


def read_idx(path: Path, dimensions: int, sha256: str | None) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    dimensions   how many axes the file must have (3 for images, 1 for labels)
    sha256       expected digest of the unpacked content, so that repacked files pass; None to skip the check
    Raises DataError when the file is truncated, damaged, of another kind or has another digest.
    """
    content = _read_unpacked(path)
    shape = _read_header(content, dimensions, path)
    start, count = 4 + 4 * dimensions, math.prod(shape)
    if len(content) != start + count:
        raise DataError(
            f"{path}: {len(content) - start} bytes of data arrived, but the header announces {count} "
            f"(sizes {shape}). The file is truncated or damaged; get it again."
        )
    if sha256 is not None:
        require_digest(content, "sha256", sha256, where=f"{path} (unpacked)", advice=UNVERIFIED)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_unpacked(path: Path) -> bytes:
    packed = path.suffix == ".gz"
    chunks: list[bytes] = []
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb")) as file:
            while chunk := file.read(_CHUNK):
                chunks.append(chunk)
    except EOFError as error:
        arrived = sum(map(len, chunks))
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) is truncated: the gzip stream ends after about {arrived} "
            "unpacked bytes, before its end mark. Get the file again."
        ) from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Get the file again.") from error
    return b"".join(chunks)


def _read_header(content: bytes, dimensions: int, path: Path) -> tuple[int, ...]:
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise DataError(
            f"{path} begins with the bytes {content[:4].hex(' ') or '(none)'}, expected {expected.hex(' ')}: "
            f"an idx file of unsigned bytes with {dimensions} dimension(s). Is it another file of this name?"
        )
    header = content[4 : 4 + 4 * dimensions]
    if len(header) < 4 * dimensions:
        raise DataError(f"{path} ends inside its header after {len(content)} bytes; get the file again.")
    return struct.unpack(f">{dimensions}I", header)
