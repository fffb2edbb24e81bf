"""Losses and gradients that are NaN or infinite, named by sample and layer."""

from collections.abc import Iterable, Mapping
from math import isfinite

import torch
from torch import Tensor

from shotnoise.errors import NonFiniteError
from shotnoise.per_sample.structure import PerSample


def layer_of(parameter: str) -> str:
    """The module that owns the parameter; the root is called "(model)"."""
    return parameter.rpartition(".")[0] or "(model)"


def require_losses(losses: Tensor, indices: Tensor) -> None:
    """Raise NonFiniteError for the first loss that is not finite; indices (m,): which samples these are."""
    if isfinite(losses.detach().sum()):
        return
    bad = (~torch.isfinite(losses.detach())).nonzero()
    if len(bad):
        first = int(bad[0])
        raise NonFiniteError(
            f"the loss of sample {int(indices[first])} is {float(losses[first].detach())} "
            f"({len(bad)} of these {len(losses)} samples are not finite); look at this sample's input and at the "
            "weights, which may have diverged"
        )


def require_gradients(per_sample: Mapping[str, PerSample], summed: Mapping[str, Tensor], indices: Tensor) -> None:
    """Raise NonFiniteError for a gradient that is not finite. summed: the sums over the samples, where known."""
    if all_finite([*(g.checksum for g in per_sample.values()), *(g.sum() for g in summed.values())]):
        return
    for name, gradients in per_sample.items():
        bad = (~torch.isfinite(gradients.squared_norms())).nonzero()
        if len(bad):
            raise not_finite(int(indices[int(bad[0])]), layer_of(name))
    require_sums(summed, "gradient")


def not_finite(sample: int, layer: str) -> NonFiniteError:
    """The error for a sample whose gradient is not finite in this layer."""
    return NonFiniteError(
        f"the gradient of sample {sample} in layer {layer!r} is NaN or infinite although its loss is finite; "
        "look for a square root, division or power at zero there, or for overflow in single precision"
    )


def require_sums(summed: Mapping[str, Tensor], what: str) -> None:
    """Raise NonFiniteError where a sum over samples is not finite and no single sample is to blame."""
    for name, total in summed.items():
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(
                f"the {what} in layer {layer_of(name)!r} is NaN or infinite although every loss is finite; "
                "look for overflow, or for a loss that is not smooth enough at these weights"
            )


def all_finite(numbers: Iterable[Tensor]) -> bool:
    return bool(torch.stack(list(numbers)).isfinite().all())
