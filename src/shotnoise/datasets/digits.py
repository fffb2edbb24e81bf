"""The embedded handwritten digits: 1797 grey images of 8 x 8 pixels, the test set of UCI's optical digits."""

import numpy as np
import torch

from shotnoise.datasets.data import Data
from shotnoise.datasets.embedded_files import read_embedded

_BRIGHTEST = 16  # a pixel counts the black dots, 0..16, of a 4 x 4 block of the scan


def load_digits() -> Data:
    """Digits: inputs (1797, 1, 8, 8), pixels divided by 16 so that they lie in [0, 1]; ten classes.

    >>> data = load_digits()
    >>> data.inputs.min().item(), data.inputs.max().item()
    (0.0, 1.0)
    """
    arrays = read_embedded("digits.npz")
    images = arrays["images"].astype(np.float32)[:, None] / _BRIGHTEST
    return Data(
        name="digits",
        inputs=torch.from_numpy(images),
        targets=torch.from_numpy(arrays["targets"].astype(np.int64)),
        task="classification",
        classes=10,
        source="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (test set), "
        "UCI Machine Learning Repository 1998, as redistributed by scikit-learn",
        licence="CC BY 4.0 (UCI); scikit-learn's copy BSD-3-Clause",
    )
