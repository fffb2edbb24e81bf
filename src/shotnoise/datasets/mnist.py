"""MNIST from its four idx files, packed or not, under either spelling of their names."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.datasets.data import Data
from shotnoise.datasets.folders import data_folder, missing_files, search_folders
from shotnoise.datasets.idx import read_idx
from shotnoise.errors import DataError

# name without ending -> (number of dimensions, sha256 of the unpacked original)
_FILES = {
    "train-images": (3, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels": (1, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images": (3, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels": (1, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
_SUBFOLDERS = ("mnist", "MNIST/raw")
_HOW_TO_GET = (
    "The originals are the four files of the MNIST page of Y. LeCun, C. Cortes and C. J. C. Burges; "
    "deep-learning libraries that download MNIST leave the same files behind (often in a folder MNIST/raw). "
    "Either packed (.gz) or unpacked files do."
)
MEAN, STANDARD_DEVIATION = 0.1307, 0.3081  # of the training pixels on the scale 0..1
_SIDE, _CLASSES = 28, 10


def load_mnist(data_dir: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Data:
    """MNIST: inputs (60000, 1, 28, 28) and 10,000 test images, ten classes.

    Pixels are divided by 255, then 0.1307 is subtracted and the result divided by 0.3081 (mean and standard
    deviation of the training pixels), in the training and in the test set alike.

    data_dir   folder that holds the files itself or in `mnist` or `MNIST/raw`; None takes SHOTNOISE_DATA
    verify     False accepts other files of this layout (Fashion-MNIST, a shortened MNIST) without checking
               their digests
    Raises DataError for files that are missing, damaged, altered or do not fit together.
    """
    folders = search_folders(data_folder(data_dir, wanted_for="mnist", how_to_get=_HOW_TO_GET), _SUBFOLDERS)
    paths = {stem: _find(stem, folders) for stem in _FILES}
    missing = [f"{_spellings(stem)[0]}[.gz]" for stem, path in paths.items() if path is None]
    if missing:
        raise missing_files("mnist", missing, folders, _HOW_TO_GET)
    found = {stem: path for stem, path in paths.items() if path is not None}
    inputs, targets = _read_split(found, "train", verify)
    test_inputs, test_targets = _read_split(found, "t10k", verify)
    return Data(
        name="mnist",
        inputs=inputs,
        targets=targets,
        task="classification",
        classes=_CLASSES,
        test_inputs=test_inputs,
        test_targets=test_targets,
        source="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits"
        if verify
        else f"idx files in {found['train-images'].parent}, digests not checked",
        licence="CC BY-SA 3.0 (as stated in the documentation of Keras)" if verify else "unknown",
    )


def _spellings(stem: str) -> tuple[str, ...]:
    ending = f"idx{_FILES[stem][0]}-ubyte"
    return (f"{stem}-{ending}", f"{stem}.{ending}")


def _find(stem: str, folders: tuple[Path, ...]) -> Path | None:
    candidates = (
        folder / f"{name}{suffix}" for folder in folders for name in _spellings(stem) for suffix in ("", ".gz")
    )
    return next((path for path in candidates if path.is_file()), None)


def _read_split(found: dict[str, Path], split: str, verify: bool) -> tuple[Tensor, Tensor]:
    images, labels = found[f"{split}-images"], found[f"{split}-labels"]
    pixels, classes = (_read(found, f"{split}-{kind}", verify) for kind in ("images", "labels"))
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise DataError(f"{images}: images of {pixels.shape[1]} x {pixels.shape[2]} pixels; expected 28 x 28.")
    if len(pixels) != len(classes):
        raise DataError(
            f"{labels} holds {len(classes)} labels but {images} holds {len(pixels)} images; "
            "the two files do not belong together."
        )
    if classes.max(initial=0) >= _CLASSES:
        sample = int(np.argmax(classes >= _CLASSES))
        raise DataError(f"{labels}: label {classes[sample]} of sample {sample} is outside 0..9.")
    scaled = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1).div_(255)
    return scaled.sub_(MEAN).div_(STANDARD_DEVIATION), torch.from_numpy(classes.astype(np.int64))


def _read(found: dict[str, Path], stem: str, verify: bool) -> NDArray[np.uint8]:
    dimensions, sha256 = _FILES[stem]
    return read_idx(found[stem], dimensions, sha256 if verify else None)
