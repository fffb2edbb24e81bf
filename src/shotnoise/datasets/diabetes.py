"""The embedded diabetes data: 442 patients, ten measurements each, disease progression after a year."""

import numpy as np

from shotnoise.datasets.data import Data
from shotnoise.datasets.embedded_files import read_embedded
from shotnoise.datasets.standardise import column_tensor, standardised

_FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def load_diabetes() -> Data:
    """Diabetes: inputs (442, 10), targets (442, 1); each column has mean 0 and standard deviation 1.

    The target is standardised as well (divisor n throughout). The mean and the standard deviation of the raw
    target are 152.133 and 77.006, which turn a residual back into the units of the original score.

    >>> data = load_diabetes()
    >>> round(data.targets.square().mean().item(), 4)
    1.0
    """
    arrays = read_embedded("diabetes.npz")
    features, targets = arrays["features"].astype(np.float64), arrays["targets"].astype(np.float64)
    where = "The embedded file diabetes.npz"
    return Data(
        name="diabetes",
        inputs=column_tensor(standardised(features, _FEATURES, where=where)),
        targets=column_tensor(standardised(targets[:, None], ("progression",), where=where)),
        task="regression",
        feature_names=_FEATURES,
        source="B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, Least angle regression, "
        "Annals of Statistics 32 (2004) 407-499, as redistributed by scikit-learn",
        licence="no licence stated by the authors; scikit-learn's copy BSD-3-Clause",
    )
