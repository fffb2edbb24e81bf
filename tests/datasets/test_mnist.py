import gzip
import struct

import numpy as np
import pytest
import torch

from shotnoise.datasets import load
from shotnoise.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(256, size=(12, 28, 28)), "t10k": RNG.integers(256, size=(5, 28, 28))}
LABELS = {"train": np.arange(12) % 10, "t10k": np.arange(5)}


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_set(folder, *, separator="-", packed=True, **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        for kind, ending, arrays in (("images", "idx3", IMAGES), ("labels", "idx1", LABELS)):
            array = replaced.get(f"{split}_{kind}", arrays[split])
            content = gzip.compress(idx_bytes(array)) if packed else idx_bytes(array)
            name = f"{split}-{kind}{separator}{ending}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("subfolder", ["", "mnist", "MNIST/raw"])
def test_all_usual_names_and_places(tmp_path, separator, packed, subfolder):
    write_set(tmp_path / subfolder, separator=separator, packed=packed)
    data = load("mnist", data_dir=tmp_path, verify=False)
    expected = (IMAGES["train"][:, None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.inputs.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert data.targets.tolist() == LABELS["train"].tolist() and data.targets.dtype == torch.int64
    assert data.test_inputs.shape == (5, 1, 28, 28) and data.test_targets.tolist() == [0, 1, 2, 3, 4]
    assert "not checked" in data.source


def test_unknown_digest_is_refused_unless_told_otherwise(tmp_path):
    write_set(tmp_path)
    with pytest.raises(DataError, match=r"train-images.*is not the well-known file: sha256 .*verify=False"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": np.arange(11) % 10}, "holds 11 labels but .* holds 12 images"),
        (
            {"train_labels": np.arange(12)},
            r"train-labels-idx1-ubyte.gz: label 10 of sample 10 is outside 0\.\.9",
        ),
        ({"t10k_images": np.zeros((5, 20, 28))}, "images of 20 x 28 pixels; expected 28 x 28"),
        ({"t10k_labels": np.zeros((5, 1))}, "begins with the bytes 00 00 08 02, expected 00 00 08 01"),
        ({"train_images": np.zeros((0, 28, 28)), "train_labels": np.zeros(0)}, "with n >= 1"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, replaced, message):
    write_set(tmp_path, **replaced)
    with pytest.raises(DataError, match=message):
        load("mnist", data_dir=tmp_path, verify=False)


def test_missing_files_are_listed_with_the_places_searched(tmp_path):
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", data_dir=tmp_path)
    text = str(caught.value)
    assert "t10k-labels-idx1-ubyte[.gz]" in text and "train-images" not in text
    assert str(tmp_path / "mnist") in text and "--data-dir" in text and "MNIST page" in text


def test_the_real_files(real_data):
    data = load("mnist", data_dir=real_data)
    assert data.inputs.shape == (60_000, 1, 28, 28) and data.test_inputs.shape == (10_000, 1, 28, 28)
    assert data.targets.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test_targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(data.inputs.mean().item()) < 1e-3 and abs(data.inputs.std().item() - 1) < 1e-3
