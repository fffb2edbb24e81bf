"""The embedded sets: equal to scikit-learn's, scaled as documented, and refused when altered."""

import numpy as np
import pytest
import torch

from shotnoise.datasets import embedded_files, load
from shotnoise.datasets.embedded_files import read_embedded
from shotnoise.errors import DataError


def test_digits():
    data = load("digits")
    assert data.inputs.shape == (1797, 1, 8, 8) and data.inputs.dtype == torch.float32
    assert data.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert set((16 * data.inputs).unique().tolist()) == set(range(17))
    assert (data.task, data.classes) == ("classification", 10) and "CC BY 4.0" in data.licence


def test_diabetes_is_standardised():
    data = load("diabetes")
    assert data.inputs.shape == (442, 10) and data.targets.shape == (442, 1)
    for columns in (data.inputs.double(), data.targets.double()):
        assert columns.mean(0).abs().max() < 1e-7
        assert (columns.std(0, correction=0) - 1).abs().max() < 1e-6
    assert data.feature_names[2] == "bmi" and data.task == "regression" and data.classes is None


def test_digits_equal_those_of_scikit_learn():
    sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs, ours = sklearn_datasets.load_digits(), read_embedded("digits.npz")
    np.testing.assert_array_equal(ours["images"], theirs.images)
    np.testing.assert_array_equal(ours["targets"], theirs.target)


def test_diabetes_equal_those_of_scikit_learn():
    sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs, ours = sklearn_datasets.load_diabetes(scaled=False), read_embedded("diabetes.npz")
    np.testing.assert_array_equal(ours["features"], theirs.data)
    np.testing.assert_array_equal(ours["targets"], theirs.target)
    assert list(load("diabetes").feature_names) == list(theirs.feature_names)


def test_target_moments_stated_in_the_docstring():
    targets = read_embedded("diabetes.npz")["targets"]
    assert (round(targets.mean(), 3), round(targets.std(), 3)) == (152.133, 77.006)


def test_altered_file_is_refused(monkeypatch):
    monkeypatch.setitem(embedded_files._SHA256, "digits.npz", "0" * 64)
    with pytest.raises(DataError, match=r"digits\.npz is not the well-known file: sha256 .* install it again"):
        load("digits")
