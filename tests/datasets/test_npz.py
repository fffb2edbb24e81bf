import io

import numpy as np
import pytest

from shotnoise.datasets.npz import read_npz
from shotnoise.errors import DataError


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD = npz_bytes(x=np.arange(1000), y=np.zeros(3))
VERSION = GOOD.index(b"PK\x01\x02") + 6  # where the archive says which version of zip can read it


def test_named_arrays_come_back():
    assert list(read_npz(GOOD, ["y"], where="toy.npz")) == ["y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:300], r"toy\.npz \(300 bytes\) cannot be read"),
        (b"", r"toy\.npz \(0 bytes\) cannot be read"),
        (b"text", "cannot be read"),
        (npy_bytes(np.zeros(3)), "cannot be read as an .npz archive"),
        (GOOD[:VERSION] + b"\xff" + GOOD[VERSION + 1 :], "zip file version 25.5"),
        (GOOD.replace(GOOD[100:140], bytes(40)), "truncated, damaged"),
        (npz_bytes(x=np.array([{}], dtype=object)), "Object arrays cannot be loaded .* holds Python objects"),
        (npz_bytes(z=np.zeros(1)), "has no array x; it has z"),
    ],
)
def test_unusable_archives(content, message):
    with pytest.raises(DataError, match=message):
        read_npz(content, ["x"], where="toy.npz")
