"""Normalisations from elementary operations, which autograd differentiates any number of times.

Fused ones of torch 2.13 take means and norms of the forward pass for constants where they are differentiated again:
for weight normalisation by rows already second derivatives are wrong, without a warning, for layer and instance
normalisation third ones, and second ones in forward mode.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ElementaryNorms(TorchFunctionMode):
    """Within this context, layer, instance and weight normalisation consist of elementary operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _scaled(_standardised(input, dims, eps), weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:  # running statistics are constants
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    dims = tuple(range(2, input.dim()))
    shape = (-1, *[1] * len(dims))
    return _scaled(_standardised(input, dims, eps), *(None if v is None else v.reshape(shape) for v in (weight, bias)))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    dims = tuple(d for d in range(v.dim()) if d != dim % v.dim()) if dim != -1 else tuple(range(v.dim()))
    return v * (g / v.square().sum(dims, keepdim=True).sqrt())


_INSTEAD: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    torch._weight_norm: _weight_norm,
}
