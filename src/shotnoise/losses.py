"""Losses that give one value per sample, and the checks that keep them so.

"cross_entropy"  -log softmax(outputs)[target]; with further axes (outputs (n, classes, d1, ...)) the mean over
                 d1, ..., so that the mean over samples is what `torch.nn.CrossEntropyLoss` reports
"mse"            1/2 ||outputs - targets||^2, summed over all outputs of a sample: the papers' convention, which is
                 half of `torch.nn.MSELoss(reduction="sum")` and has no division by the number of outputs
"logistic"       log(1 + e^f) - y f for one output f per sample (the logit of label 1) and labels y in {0, 1}, which is
                 `torch.nn.BCEWithLogitsLoss(reduction="none")`; for labels of +-1 it is log(1 + e^(-y f))
a callable       loss(outputs, targets) -> tensor (n,), one value per sample
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from shotnoise.errors import DataError, InputError

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Loss:
    """A per-sample loss: `per_sample(outputs, targets)` gives (n,); `check` looks at them first and raises.

    check_targets: what can be said of the targets before there are outputs. Losses are equal that have the same name,
    also in another process, where their functions may be copies; one of the user's never has that of a named loss.
    """

    name: str
    per_sample: LossFunction = field(compare=False)
    check: Callable[[Any, Any], None] = field(compare=False)
    check_targets: Callable[[Any], None] = field(default=lambda targets: None, compare=False)


def resolve(loss: str | LossFunction) -> Loss:
    """A loss given by name or as a callable."""
    if isinstance(loss, str):
        if loss not in NAMED:
            raise InputError(
                f"loss={loss!r} is not known; use one of {', '.join(map(repr, NAMED))}, "
                "or a callable loss(outputs, targets) that returns one value per sample"
            )
        return NAMED[loss]
    reduction = getattr(loss, "reduction", "none")
    if reduction != "none":
        raise InputError(
            f"loss={type(loss).__name__}(reduction={reduction!r}) returns one number for the whole batch; "
            f'build it with reduction="none", or pass one of {", ".join(map(repr, NAMED))}'
        )
    if callable(loss):
        name = getattr(loss, "__name__", type(loss).__name__)
        return Loss(f"own {name}" if name in NAMED else name, loss, lambda outputs, targets: None)
    raise InputError(f"loss must be a name or a callable loss(outputs, targets), not {type(loss).__name__}")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (n, classes, ...) with class indices (n, ...) or probabilities, per sample (n,)."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, summed over the outputs of each sample: (n,)."""
    squares = 0.5 * (outputs - targets).square()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """log(1 + e^-m), the margin m being the logit of label 1 where that is the label and its negative else: (n,)."""
    return -F.logsigmoid(outputs.flatten() * (2 * targets.flatten().to(outputs) - 1))


def check_cross_entropy(outputs: Any, targets: Any) -> None:
    _require_tensors(outputs, targets, "cross_entropy")
    if outputs.ndim < 2:
        raise InputError(
            f"cross_entropy needs logits of shape (n, classes, ...), but the model returned {tuple(outputs.shape)}"
        )
    if targets.is_floating_point():
        _require_shape(outputs, targets, "cross_entropy with class probabilities")
    else:
        _require_classes(outputs, targets)


def check_mse(outputs: Any, targets: Any) -> None:
    _require_tensors(outputs, targets, "mse")
    _require_shape(outputs, targets, "mse")


def check_logistic(outputs: Any, targets: Any) -> None:
    _require_tensors(outputs, targets, "logistic")
    n = len(targets)
    if tuple(outputs.shape) not in ((n,), (n, 1)):
        hint = "; for scores of two or more classes take cross_entropy" if outputs.ndim == 2 else ""
        raise InputError(
            f"logistic needs one output per sample, the logit of label 1, of shape ({n},) or ({n}, 1), but the model "
            f"returned {tuple(outputs.shape)}{hint}"
        )
    check_labels(targets)


def check_labels(targets: Any) -> None:
    """Raise unless the targets are labels 0 and 1 (whole numbers, floats or booleans), (n,) or (n, 1)."""
    if not isinstance(targets, Tensor):
        raise InputError(f"loss='logistic' needs labels 0 and 1, one per sample, but got {type(targets).__name__}")
    if targets.shape[1:] not in ((), (1,)):
        raise InputError(
            f"logistic needs one label per sample, targets (n,) or (n, 1), but they have shape {tuple(targets.shape)}"
        )
    one = targets == 1
    if bool((one | (targets == 0)).all()):
        return
    if bool((one | (targets == -1)).all()):
        raise DataError("logistic takes labels 0 and 1, but the targets are -1 and 1; pass (targets + 1) / 2")
    seen = targets[~(one | (targets == 0))][:3].flatten().tolist()
    raise DataError(
        f"logistic takes labels 0 and 1, but among the targets are {', '.join(f'{t:g}' for t in seen)}; for several "
        "classes take cross_entropy, for probabilities torch.nn.BCEWithLogitsLoss(reduction='none')"
    )


def right(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Which of the n samples are classified right, (runs, n), by outputs (runs, n, classes) or logits (runs, n[, 1]).

    For "logistic", where a logit above 0 stands for label 1, and "cross_entropy" with class indices.
    """
    if loss == NAMED["logistic"]:
        labels = targets.flatten() > 0
        return (outputs.reshape(-1, len(labels)) > 0) == labels
    return outputs.argmax(-1) == targets


NAMED = {
    "cross_entropy": Loss("cross_entropy", cross_entropy, check_cross_entropy),
    "mse": Loss("mse", mse, check_mse),
    "logistic": Loss("logistic", logistic, check_logistic, check_labels),
}


def require_per_sample(losses: Any, n: int, name: str) -> Tensor:
    """`losses` if it is one value per sample, else an error that says what it was."""
    if not isinstance(losses, Tensor):
        raise InputError(f"the loss {name} returned {type(losses).__name__}, not a tensor of one value per sample")
    if losses.ndim == 0:
        raise InputError(
            f"the loss {name} returned a single number for {n} samples (a mean or a sum); "
            f'shotnoise needs one value per sample, shape ({n},): use reduction="none"'
        )
    if losses.shape != (n,):
        raise InputError(
            f"the loss {name} returned shape {tuple(losses.shape)} for {n} samples; expected ({n},): "
            "reduce every axis but the first, for instance with losses.flatten(1).mean(1)"
        )
    if not losses.is_floating_point():
        raise InputError(f"the loss {name} returned type {losses.dtype}; expected real floating-point numbers")
    return losses


def _require_tensors(outputs: Any, targets: Any, name: str) -> None:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the model returned {type(outputs).__name__}, but loss={name!r} needs one tensor; "
            "pass a callable loss that picks what it needs, e.g. lambda out, y: per_sample_loss(out.logits, y)"
        )
    if not isinstance(targets, Tensor):
        raise InputError(f"loss={name!r} needs targets, one per sample, but got {type(targets).__name__}")


def _require_shape(outputs: Tensor, targets: Tensor, name: str) -> None:
    if outputs.shape != targets.shape:
        hint = "; add the missing axis with targets.unsqueeze(1)" if targets.ndim == outputs.ndim - 1 else ""
        raise InputError(
            f"{name} compares equal shapes, but the model returned {tuple(outputs.shape)} "
            f"for targets {tuple(targets.shape)}{hint}"
        )


def _require_classes(outputs: Tensor, targets: Tensor) -> None:
    expected = (outputs.shape[0], *outputs.shape[2:])
    if targets.shape != expected:
        swapped = outputs.ndim > 2 and targets.shape == outputs.shape[:-1]
        hint = "; the classes seem to be on the last axis: move them to axis 1" if swapped else ""
        raise InputError(
            f"cross_entropy with logits {tuple(outputs.shape)} expects class indices of shape {expected}, "
            f"but the targets have shape {tuple(targets.shape)}{hint}"
        )
    low, high, classes = int(targets.min()), int(targets.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        raise DataError(
            f"targets run from {low} to {high}, but the model has {classes} outputs, so classes 0 to {classes - 1}; "
            "check the labels, or widen the last layer (padding with -100 needs a callable loss that masks it)"
        )
