"""CIFAR-10: complete from its six Python batches, or the stratified subset of 10,000 + 2,000 in one .npz."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.datasets.checksums import UNVERIFIED, require_digest
from shotnoise.datasets.data import Data
from shotnoise.datasets.folders import data_folder, missing_files, read_bytes, search_folders
from shotnoise.datasets.npz import read_npz
from shotnoise.datasets.plain_pickle import read_plain_pickle
from shotnoise.errors import DataError

_BATCHES_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_SUBSET = "cifar10_10k_2k.npz"
_SUBSET_SHA256 = "1eb5121852f781d98ae044669fabd7831519571ef7d2737cab893278a5c4be65"
_SUBSET_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_SUBFOLDERS = ("cifar-10-batches-py", "cifar10_subset")
_HOW_TO_GET = (
    "The batches are in the archive cifar-10-python.tar.gz from the CIFAR page of A. Krizhevsky (University "
    "of Toronto), which unpacks to a folder cifar-10-batches-py; deep-learning libraries that download "
    f"CIFAR-10 leave the same folder behind. Instead of the batches, the subset {_SUBSET} does."
)
# of the complete training set, per channel (red, green, blue), on the scale 0..1
MEAN = (0.49139968, 0.48215841, 0.44653091)
STANDARD_DEVIATION = (0.24703223, 0.24348513, 0.26158784)
_CLASSES = 10

_Split = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (n, 3, 32, 32), labels (n,)


def load_cifar10(data_dir: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Data:
    """CIFAR-10: inputs (n, 3, 32, 32), ten classes; n = 50,000 from the batches, 10,000 from the subset.

    Pixels are divided by 255; then the mean of the channel over the complete training set is subtracted and
    the result divided by its standard deviation (MEAN and STANDARD_DEVIATION in this module), in the training
    and in the test set alike. Where both the batches and the subset are there, the batches are read.

    data_dir   folder that holds the files itself, or in `cifar-10-batches-py` or `cifar10_subset`; None takes
               SHOTNOISE_DATA
    verify     False accepts other files of this layout, unchecked by digest; they are still never unpickled
    Raises DataError for files that are missing, damaged, altered or that ask for code to be run.
    """
    folders = search_folders(data_folder(data_dir, wanted_for="cifar10", how_to_get=_HOW_TO_GET), _SUBFOLDERS)
    with_batches = [folder for folder in folders if any((folder / name).is_file() for name in _BATCHES_MD5)]
    with_subset = [folder for folder in folders if (folder / _SUBSET).is_file()]
    if with_batches:
        train, test = _read_batches(with_batches[0], verify)
        origin = f"complete set, batches in {with_batches[0].name}"
    elif with_subset:
        train, test = _read_subset(with_subset[0] / _SUBSET, verify)
        origin = f"stratified subset {_SUBSET}"
    else:
        raise missing_files("cifar10", _BATCHES_MD5, folders, _HOW_TO_GET)
    return _as_data(train, test, origin if verify else f"{origin}, digests not checked")


def _as_data(train: _Split, test: _Split, origin: str) -> Data:
    return Data(
        name="cifar10",
        inputs=_scaled(train[0]),
        targets=torch.from_numpy(train[1]),
        task="classification",
        classes=_CLASSES,
        test_inputs=_scaled(test[0]),
        test_targets=torch.from_numpy(test[1]),
        source=f"A. Krizhevsky, Learning multiple layers of features from tiny images, 2009 ({origin})",
        licence="no licence stated by the authors, who ask for citation",
    )


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    mean, sd = (torch.tensor(constants).view(1, 3, 1, 1) for constants in (MEAN, STANDARD_DEVIATION))
    return torch.from_numpy(images.astype(np.float32, order="C")).div_(255).sub_(mean).div_(sd)


def _read_batches(folder: Path, verify: bool) -> tuple[_Split, _Split]:
    missing = [name for name in _BATCHES_MD5 if not (folder / name).is_file()]
    if missing:
        raise missing_files("cifar10 (some of the batches)", missing, [folder], _HOW_TO_GET)
    *parts, test = (_read_batch(folder / name, verify) for name in _BATCHES_MD5)
    images, labels = zip(*parts, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


def _read_batch(path: Path, verify: bool) -> _Split:
    content = read_bytes(path)
    batch = read_plain_pickle(content, where=str(path))
    split = _checked(batch, "data", "labels", (3072,), str(path))
    if verify:
        require_digest(content, "md5", _BATCHES_MD5[path.name], where=str(path), advice=UNVERIFIED)
    return split[0].reshape(-1, 3, 32, 32), split[1]


def _read_subset(path: Path, verify: bool) -> tuple[_Split, _Split]:
    content = read_bytes(path)
    arrays = read_npz(content, _SUBSET_ARRAYS, where=str(path))
    if verify:
        require_digest(content, "sha256", _SUBSET_SHA256, where=str(path), advice=UNVERIFIED)
    train, test = (_checked(arrays, f"x_{part}", f"y_{part}", (32, 32, 3), str(path)) for part in ("train", "test"))
    return (train[0].transpose(0, 3, 1, 2), train[1]), (test[0].transpose(0, 3, 1, 2), test[1])


def _checked(fields: dict[str, Any], images_key: str, labels_key: str, sample: tuple[int, ...], where: str) -> _Split:
    """Images (n, *sample) and labels (n,) out of a file's fields; a DataError says what does not fit."""
    absent = [key for key in (images_key, labels_key) if key not in fields]
    if absent:
        raise DataError(f"{where} has no {', '.join(absent)}; it has {', '.join(fields) or 'nothing'}.")
    images = fields[images_key]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != sample:
        raise DataError(
            f"{where}: {images_key} is {_described(images)}; expected uint8 (n, {', '.join(map(str, sample))})."
        )
    return images, _checked_labels(fields[labels_key], labels_key, len(images), where)


def _checked_labels(labels: Any, key: str, count: int, where: str) -> NDArray[np.int64]:
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.asarray(labels)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{where}: {key} is {_described(labels)}; expected {count} whole numbers, one per image.")
    outside = (labels < 0) | (labels >= _CLASSES)
    if outside.any():
        sample = int(np.argmax(outside))
        raise DataError(f"{where}: label {labels[sample]} of image {sample} is outside 0..9.")
    return labels.astype(np.int64)


def _described(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
