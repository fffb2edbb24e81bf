"""`Data`, the record that every loader returns, and the checks that every data set passes at the door."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from shotnoise.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs and targets of a training set, perhaps of a test set, and where they come from.

    inputs         float32 (n, ...), first axis = samples
    targets        classification: int64 (n,) in 0..classes-1; regression: float32 (n, outputs)
    classes        number of classes, None for regression
    test_inputs, test_targets    the same for held-out samples, or None where the set has no such split
    feature_names  one name per input column, empty where inputs are images or synthetic
    Raises DataError when lengths, kinds, ranges or finiteness do not fit this description.

    >>> import torch
    >>> Data("line", torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]), task="regression")
    Data('line': 2 samples of shape (1,), regression)
    """

    name: str
    inputs: Tensor
    targets: Tensor
    task: Literal["classification", "regression"]
    classes: int | None = None
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    feature_names: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if (self.task == "classification") != (self.classes is not None):
            raise DataError(
                f"{self.name}: task is {self.task!r} with classes={self.classes}; give classes for "
                "classification, and only there."
            )
        _check_split(self, self.inputs, self.targets, "training")
        if self.test_inputs is None and self.test_targets is None:
            return
        if self.test_inputs is None or self.test_targets is None:
            raise DataError(f"{self.name}: test_inputs and test_targets go together; one of them is None.")
        _check_split(self, self.test_inputs, self.test_targets, "test")
        if self.test_inputs.shape[1:] != self.inputs.shape[1:]:
            raise DataError(
                f"{self.name}: test samples have shape {tuple(self.test_inputs.shape[1:])}, "
                f"training samples {tuple(self.inputs.shape[1:])}; they must agree."
            )

    def __len__(self) -> int:
        """Number of training samples."""
        return len(self.inputs)

    def __repr__(self) -> str:
        kind = "regression" if self.classes is None else f"{self.classes} classes"
        return f"Data({self.name!r}: {len(self)} samples of shape {tuple(self.inputs.shape[1:])}, {kind})"

    def flat(self) -> "Data":
        """The same data with every sample flattened to a vector, for networks that begin with a Linear layer.

        >>> from shotnoise.datasets import load
        >>> load("digits").flat().inputs.shape
        torch.Size([1797, 64])
        """
        test_inputs = None if self.test_inputs is None else self.test_inputs.flatten(1)
        return replace(self, inputs=self.inputs.flatten(1), test_inputs=test_inputs)


def _check_split(data: Data, inputs: Tensor, targets: Tensor, split: str) -> None:
    where = f"{data.name} ({split} set)"
    if inputs.ndim < 2 or len(inputs) == 0:
        raise DataError(f"{where}: inputs have shape {tuple(inputs.shape)}; expected (n, ...) with n >= 1.")
    if len(inputs) != len(targets):
        raise DataError(f"{where}: {len(inputs)} inputs but {len(targets)} targets; expected one target per input.")
    _check_finite(inputs, f"{where}: inputs")
    if data.classes is None:
        if targets.ndim != 2:
            raise DataError(f"{where}: targets have shape {tuple(targets.shape)}; regression needs (n, outputs).")
        _check_finite(targets, f"{where}: targets")
    else:
        _check_labels(targets, data.classes, where)


def _check_finite(values: Tensor, where: str) -> None:
    if values.dtype != torch.float32:
        raise DataError(f"{where} are {values.dtype}; expected torch.float32.")
    if not bool(values.isfinite().all()):
        sample = int((~values.isfinite().flatten(1).all(1)).nonzero()[0])
        raise DataError(f"{where} of sample {sample} hold a NaN or an infinity; remove or repair that sample.")


def _check_labels(labels: Tensor, classes: int, where: str) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(
            f"{where}: class labels are {labels.dtype} of shape {tuple(labels.shape)}; expected torch.int64 (n,)."
        )
    outside = (labels < 0) | (labels >= classes)
    if bool(outside.any()):
        sample = int(outside.nonzero()[0])
        raise DataError(
            f"{where}: sample {sample} has label {int(labels[sample])}; labels must lie in 0..{classes - 1}."
        )
