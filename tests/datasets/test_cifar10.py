import hashlib
import pickle

import numpy as np
import pytest
import torch

from shotnoise.datasets import cifar10, load
from shotnoise.errors import DataError

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
RNG = np.random.default_rng(0)


def batch(n=4, **changes):
    content = {
        "batch_label": "toy",
        "labels": RNG.integers(10, size=n).tolist(),
        "data": RNG.integers(256, size=(n, 3072), dtype=np.uint8),
        "filenames": [f"{i}.png" for i in range(n)],
    }
    return content | changes


def write_batches(folder, contents=None, protocol=4):
    folder.mkdir(parents=True, exist_ok=True)
    contents = contents or {}
    written = {name: contents.get(name) or batch() for name in BATCHES}
    for name, content in written.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return written


def subset_arrays(**changes):
    arrays = {
        "x_train": RNG.integers(256, size=(6, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "x_test": RNG.integers(256, size=(2, 32, 32, 3), dtype=np.uint8),
        "y_test": np.array([9, 0], np.uint8),
    }
    return arrays | changes


def standardised_by_loop(images):
    """(n, 3, 32, 32) uint8 to what the docstring promises, one channel at a time."""
    channels = [
        (images[:, c].astype(np.float64) / 255 - cifar10.MEAN[c]) / cifar10.STANDARD_DEVIATION[c] for c in range(3)
    ]
    return np.stack(channels, axis=1)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_batches_in_order_scaled_per_channel(tmp_path, subfolder, protocol):
    written = write_batches(tmp_path / subfolder, protocol=protocol)
    data = load("cifar10", data_dir=tmp_path, verify=False)
    images = np.concatenate([written[name]["data"] for name in BATCHES[:5]]).reshape(-1, 3, 32, 32)
    np.testing.assert_allclose(data.inputs.numpy(), standardised_by_loop(images), rtol=1e-4, atol=1e-5)
    assert data.targets.tolist() == [label for name in BATCHES[:5] for label in written[name]["labels"]]
    assert data.test_inputs.shape == (4, 3, 32, 32) and data.test_targets.dtype == torch.int64
    assert data.flat().inputs.shape == (20, 3072) and "not checked" in data.source


@pytest.mark.parametrize("subfolder", ["", "cifar10_subset"])
def test_subset_has_its_channels_moved_to_the_front(tmp_path, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    arrays = subset_arrays()
    np.savez(tmp_path / subfolder / "cifar10_10k_2k.npz", **arrays)
    data = load("cifar10", data_dir=tmp_path, verify=False)
    expected = standardised_by_loop(arrays["x_train"].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(data.inputs.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert data.inputs.is_contiguous() and data.test_targets.tolist() == [9, 0]


def test_batches_go_before_the_subset(tmp_path):
    write_batches(tmp_path / "cifar-10-batches-py")
    np.savez(tmp_path / "cifar10_10k_2k.npz", **subset_arrays())
    assert "complete set" in load("cifar10", data_dir=tmp_path, verify=False).source


def test_unknown_digests_are_refused_and_known_ones_accepted(tmp_path, monkeypatch):
    write_batches(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1 is not the well-known file: md5 .*verify=False"):
        load("cifar10", data_dir=tmp_path)
    for name in BATCHES:
        digest = hashlib.md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(cifar10._BATCHES_MD5, name, digest)
    assert "not checked" not in load("cifar10", data_dir=tmp_path).source


def test_unknown_subset_is_refused(tmp_path):
    np.savez(tmp_path / "cifar10_10k_2k.npz", **subset_arrays())
    with pytest.raises(DataError, match=r"cifar10_10k_2k\.npz is not the well-known file: sha256"):
        load("cifar10", data_dir=tmp_path)


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar10", data_dir=tmp_path)
    for expected in ("data_batch_1", "test_batch", str(tmp_path), "cifar-10-python.tar.gz", "SHOTNOISE_DATA"):
        assert expected in str(caught.value)


def test_one_missing_batch_is_named_even_where_the_subset_is_there(tmp_path):
    write_batches(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    np.savez(tmp_path / "cifar10_10k_2k.npz", **subset_arrays())
    with pytest.raises(DataError, match=r"some of the batches\): missing\n  data_batch_3\nlooked"):
        load("cifar10", data_dir=tmp_path, verify=False)


class CallsPrint:
    def __reduce__(self):
        return print, ("this must never be seen",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch(data=np.zeros((4, 3071), np.uint8)), r"data is uint8 \(4, 3071\); expected uint8 \(n, 3072\)"),
        (batch(data=np.zeros((4, 3072), np.int64)), r"data is int64 \(4, 3072\)"),
        (batch(data=[1, 2]), "data is a list"),
        (batch(labels=[1, 2, 3]), r"labels is int64 \(3,\); expected 4 whole numbers"),
        (batch(labels=[1, 2, 3, 10]), r"label 10 of image 3 is outside 0\.\.9"),
        (batch(labels=[1, 2, 3, -1]), r"label -1 of image 3 is outside 0\.\.9"),
        (batch(labels=["a", "b", "c", "d"]), "labels is a list; expected 4 whole numbers"),
        (batch(labels=[[1], [2, 3], [], [4]]), "labels is a list; expected 4 whole numbers"),
        ({"data": np.zeros((4, 3072), np.uint8)}, "has no labels; it has data"),
        (batch(filenames=CallsPrint()), r"refused: contains a call to builtins\.print"),
    ],
)
def test_batches_with_wrong_content(tmp_path, capsys, content, message):
    write_batches(tmp_path, {"data_batch_2": content})
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", data_dir=tmp_path, verify=False)
    assert "data_batch_2" in str(caught.value) and capsys.readouterr().out == ""


def test_labels_may_be_an_array(tmp_path):
    write_batches(tmp_path, {"test_batch": batch(labels=np.array([1, 2, 3, 4]))})
    assert load("cifar10", data_dir=tmp_path, verify=False).test_targets.tolist() == [1, 2, 3, 4]


def test_truncated_batch(tmp_path):
    write_batches(tmp_path)
    path = tmp_path / "data_batch_4"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"data_batch_4 \(5000 bytes\) is truncated or damaged"):
        load("cifar10", data_dir=tmp_path, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((6, 3, 32, 32), np.uint8)}, r"x_train is uint8 \(6, 3, 32, 32\)"),
        ({"y_test": np.array([1], np.uint8)}, r"y_test is uint8 \(1,\); expected 2"),
        ({"y_test": np.array([1, 12], np.uint8)}, "label 12 of image 1"),
        ({"y_test": np.array([0.5, 1.0])}, "y_test is float64"),
    ],
)
def test_subset_with_wrong_content(tmp_path, changes, message):
    np.savez(tmp_path / "cifar10_10k_2k.npz", **subset_arrays(**changes))
    with pytest.raises(DataError, match=message):
        load("cifar10", data_dir=tmp_path, verify=False)


def test_the_real_subset(real_data):
    data = load("cifar10", data_dir=real_data)
    if "subset" not in data.source:
        pytest.skip("the complete set is there and goes before the subset")
    assert data.inputs.shape == (10_000, 3, 32, 32) and data.test_inputs.shape == (2_000, 3, 32, 32)
    assert data.targets.bincount().tolist() == [1000] * 10 and data.test_targets.bincount().tolist() == [200] * 10
    assert data.inputs.mean((0, 2, 3)).abs().max() < 0.02 and (data.inputs.std((0, 2, 3)) - 1).abs().max() < 0.02
