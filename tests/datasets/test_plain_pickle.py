"""The reader takes what CIFAR batches hold, at every protocol, and runs nothing."""

import os
import pickle
import struct

import numpy as np
import pytest

from shotnoise.datasets.plain_pickle import read_plain_pickle
from shotnoise.errors import DataError

IMAGES = np.random.default_rng(0).integers(256, size=(4, 3072), dtype=np.uint8)


def short(text):
    """A Python 2 str of at most 255 bytes."""
    return b"U" + bytes([len(text)]) + text


def python2_batch(images, labels, *, fortran=False):
    """The bytes that cPickle of Python 2 wrote for the official batches (protocol 2), by hand."""
    rows, columns = images.shape
    raw = images.tobytes(order="F" if fortran else "C")
    shape = b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
    dtype = b"cnumpy\ndtype\nq\x01" + short(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    order = b"\x88" if fortran else b"\x89"
    array += b"(K\x01" + shape + dtype + order + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"]q\x02(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = short(b"data") + b"q\x03" + array + short(b"labels") + numbers
    return b"\x80\x02}q\x00(" + items + short(b"batch_label") + short(b"batch 1") + b"u."


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("keys", [("data", "labels"), (b"data", b"labels")])
def test_batches_written_by_python_3(protocol, keys):
    content = pickle.dumps(dict(zip(keys, (IMAGES, [3, 0, 9, 1]), strict=True)), protocol=protocol)
    batch = read_plain_pickle(content, where="toy")
    np.testing.assert_array_equal(batch["data"], IMAGES)
    assert batch["data"].dtype == np.uint8 and batch["labels"] == [3, 0, 9, 1]


@pytest.mark.parametrize("fortran", [False, True])
def test_batches_written_by_python_2(fortran):
    content = python2_batch(IMAGES, [3, 0, 9, 1], fortran=fortran)
    theirs = pickle.loads(content, encoding="latin1")  # our own bytes: is the hand-made file a real pickle?
    np.testing.assert_array_equal(theirs["data"], IMAGES)
    ours = read_plain_pickle(content, where="toy")
    np.testing.assert_array_equal(ours["data"], IMAGES)
    assert ours["labels"] == [3, 0, 9, 1] and ours["batch_label"] == b"batch 1"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"x": [1, -1, 300, 70_000, -(2**40), 2**3000], "flag": [True, False, None]},
        {"x": (), "y": (1,), "z": (1, 2), "w": (1, 2, 3, 4), "one": [7], "empty": {}},
        {"shared": [long_list := list(range(3000)), long_list], "text": "ä" * 300, "bytes": b"\xff" * 300},
        {"nested": {"a": {"b": [b"c"]}}},
    ],
)
def test_plain_values_agree_with_pickle(protocol, value):
    assert read_plain_pickle(pickle.dumps(value, protocol=protocol), where="toy") == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u2", "i1"])
@pytest.mark.parametrize("view", [np.asarray, np.transpose, lambda array: array[:, ::2]])
def test_integer_arrays_of_any_layout(protocol, dtype, view):
    array = view(np.arange(12).reshape(3, 4).astype(dtype))
    read = read_plain_pickle(pickle.dumps({"x": array}, protocol=protocol), where="toy")["x"]
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_malicious_pickle_is_refused_and_not_run(protocol, tmp_path):
    witness = tmp_path / "was-run"
    content = pickle.dumps({"data": Malicious(witness)}, protocol=protocol)
    message = f"toy refused: contains a call to {os.system.__module__}.system .*Nothing in it was run"
    with pytest.raises(DataError, match=message):
        read_plain_pickle(content, where="toy")
    assert not witness.exists()
    pickle.loads(content)  # proof that the file would have done harm
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cos\nsystem\n" + short(b"true") + b"\x85R.", r"a call to os\.system \(at byte 2\)"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", r"a call to os\.system"),
        (b"\x80\x02c__builtin__\neval\n" + short(b"1") + b"\x85R.", r"a call to __builtin__\.eval"),
        (b"(" + short(b"true") + b"ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "not a constructor of arrays or strings"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02" + short(b"x") + b"Q.", "the instruction BINPERSID"),
        (b"\x80\x04]]\x93.", "a list where a string belongs"),
        (b"\x80\x02}K\x01b.", "a state for a dict"),
        (b"\x80\x02}K\x01a.", "an append to a dict"),
        (b"\x80\x02]K\x01K\x02s.", "an item set in a list"),
        (b"\x80\x02}K\x01K\x02s.", "a int where a string belongs"),
        (
            b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
            "encoding other than latin1",
        ),
        (pickle.dumps({"x": np.array([1], dtype=object)}, protocol=2), "an array of dtype 'O8'"),
        (pickle.dumps({"x": np.ones(2)}, protocol=4), "an array of dtype 'f8'"),
    ],
)
def test_everything_else_is_refused(content, message):
    with pytest.raises(DataError, match=f"toy refused: contains .*{message}"):
        read_plain_pickle(content, where="toy")


WHOLE = python2_batch(IMAGES, [3, 0, 9, 1])


@pytest.mark.parametrize("length", [0, 1, 5, 60, 100, 200, 5000, len(WHOLE) - 1])
def test_truncated_files(length):
    with pytest.raises(DataError, match=rf"toy \({length} bytes\) is truncated or damaged"):
        read_plain_pickle(WHOLE[:length], where="toy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a pickle at all", "truncated or damaged"),
        (b"\x80\x02.", "truncated or damaged"),
        (b"\x80\x02K\x01t.", "truncated or damaged"),
        (b"\x80\x02h\x05.", "truncated or damaged"),
        (WHOLE.replace(struct.pack("<H", 3072), struct.pack("<H", 3073)), "cannot reshape"),
        (pickle.dumps([1, 2]), "holds a list; expected a dictionary"),
    ],
)
def test_damaged_files(content, message):
    with pytest.raises(DataError, match=message):
        read_plain_pickle(content, where="toy")


def test_random_damage_gives_a_value_or_a_data_error_and_nothing_else():
    rng = np.random.default_rng(0)
    small = python2_batch(IMAGES[:2, :3], [1, 2])
    for _ in range(5000):
        damaged = bytearray(small)
        damaged[rng.integers(len(small))] = rng.integers(256)
        try:
            read_plain_pickle(bytes(damaged), where="toy")
        except DataError:
            continue
