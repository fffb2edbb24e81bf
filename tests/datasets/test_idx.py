import gzip
import struct

import numpy as np
import pytest

from shotnoise.datasets.idx import read_idx
from shotnoise.errors import DataError

ARRAY = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def write(tmp_path):
    def write(content, name="images.gz"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_packed_and_raw_files_give_the_array(write):
    content = idx_bytes(ARRAY)
    for path in (write(gzip.compress(content)), write(content, "images")):
        np.testing.assert_array_equal(read_idx(path, 3, None), ARRAY)


@pytest.mark.parametrize("level", [1, 9])
def test_digest_is_that_of_the_content_however_it_is_packed(write, level):
    digest = "5d1ca8d3a3d4e6df6ab4ccd2bd9bd3d4e2c0f1c4fb6b5f0c4c1e1b5a5e1b0a11"
    with pytest.raises(DataError, match="not the well-known file: sha256 of its 3936 bytes is") as caught:
        read_idx(write(gzip.compress(idx_bytes(ARRAY), level)), 3, digest)
    assert "verify=False" in str(caught.value)
    arrived = str(caught.value).split("bytes is ")[1][:64]
    assert read_idx(write(gzip.compress(idx_bytes(ARRAY), level)), 3, arrived).shape == (5, 28, 28)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


PACKED = gzip.compress(idx_bytes(ARRAY), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "images.gz",
            PACKED[:2000],
            r"images\.gz \(2000 bytes\) is truncated: the gzip stream ends after about",
        ),
        ("images.gz", flipped(PACKED, len(PACKED) - 6), "cannot be read: CRC check failed"),
        ("images.gz", flipped(PACKED, 10), "cannot be read: .*invalid"),
        ("images.gz", b"<html>not found</html>", "cannot be read: Not a gzipped file"),
        ("images.gz", b"", r"begins with the bytes \(none\)"),
        ("images", idx_bytes(ARRAY)[:-9], r"3911 bytes of data arrived, but the header announces 3920"),
        ("images", idx_bytes(ARRAY) + b"x", r"3921 bytes of data arrived, but the header announces 3920"),
        ("images", idx_bytes(ARRAY[0, 0]), "begins with the bytes 00 00 08 01, expected 00 00 08 03"),
        ("images", idx_bytes(ARRAY)[:10], "ends inside its header after 10 bytes"),
    ],
)
def test_damaged_files(write, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_idx(write(content, name), 3, None)
    assert name in str(caught.value)


def test_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, 3, None)
