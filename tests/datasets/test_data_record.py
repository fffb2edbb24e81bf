from dataclasses import FrozenInstanceError

import pytest
import torch

from shotnoise.datasets import Data
from shotnoise.errors import DataError


def classification(**changes):
    fields = {
        "name": "toy",
        "inputs": torch.zeros(4, 1, 2, 3),
        "targets": torch.tensor([0, 1, 2, 0]),
        "task": "classification",
        "classes": 3,
        "test_inputs": torch.ones(2, 1, 2, 3),
        "test_targets": torch.tensor([2, 2]),
    }
    return Data(**(fields | changes))


def test_flat_flattens_training_and_test_inputs_and_nothing_else():
    data = classification()
    flat = data.flat()
    assert flat.inputs.shape == (4, 6) and flat.test_inputs.shape == (2, 6)
    assert flat.targets is data.targets and data.inputs.shape == (4, 1, 2, 3)
    assert classification(test_inputs=None, test_targets=None).flat().test_inputs is None


def test_record_is_frozen_and_prints_on_one_line():
    data = classification()
    assert repr(data) == "Data('toy': 4 samples of shape (1, 2, 3), 3 classes)" and len(data) == 4
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


NAN = torch.tensor([[0.0], [float("nan")]])
REGRESSION = {"name": "toy", "inputs": torch.zeros(2, 1), "targets": torch.zeros(2, 1), "task": "regression"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.tensor([0, 1, 2])}, "4 inputs but 3 targets"),
        ({"targets": torch.tensor([0, 1, 3, 0])}, r"sample 2 has label 3; labels must lie in 0\.\.2"),
        ({"test_targets": torch.tensor([0, -1])}, r"toy \(test set\): sample 1 has label -1"),
        ({"targets": torch.zeros(4)}, r"class labels are torch.float32 of shape \(4,\)"),
        (
            {"inputs": torch.zeros(4, 6, dtype=torch.float64)},
            "inputs are torch.float64; expected torch.float32",
        ),
        ({"inputs": torch.zeros(4)}, r"inputs have shape \(4,\); expected"),
        ({"inputs": torch.zeros(0, 2), "targets": torch.zeros(0)}, "expected .* with n >= 1"),
        ({"classes": None}, "give classes for classification"),
        ({"test_targets": None}, "go together"),
        ({"test_inputs": torch.ones(2, 6)}, r"test samples have shape \(6,\), training samples \(1, 2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        classification(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": NAN}, "inputs of sample 1 hold a NaN or an infinity"),
        ({"targets": NAN}, "targets of sample 1 hold a NaN or an infinity"),
        ({"targets": torch.zeros(2)}, r"regression needs \(n, outputs\)"),
    ],
)
def test_regression_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        Data(**(REGRESSION | changes))
