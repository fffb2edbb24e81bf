"""From one call of a layer to its per-sample gradients: what the input and the output gradient already say.

Each rule takes the module, its input x and the gradient d of the summed loss with respect to its output, both with
the samples on axis 0, and gives the part for each of its parameters by name. A rule holds for exactly its module
type: a subclass may compute something else.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotnoise.per_sample.structure import Dense, Lookup, Outer, Part

Rule = Callable[[Any, Tensor, Tensor, str], Part]


def linear(module: nn.Linear, x: Tensor, d: Tensor, name: str) -> Part:
    if name == "bias":
        return Dense(d.flatten(1, -2).sum(1) if d.ndim > 2 else d)
    if x.ndim == 2:
        return Outer(x, d[:, None, :, None])
    return Outer(x.flatten(1, -2).mT, d.flatten(1, -2).mT[:, None])


def convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, d: Tensor, name: str) -> Part:
    if name == "bias":
        return Dense(d.flatten(2).sum(2))
    return Outer(windows(module, x), d.flatten(2).unflatten(1, (module.groups, -1)))


def windows(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """What the kernel sees at each position, as a view (m, channels, *kernel, *positions) of the padded input."""
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    axes = len(module.kernel_size)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))


def embedding(module: nn.Embedding, x: Tensor, d: Tensor, name: str) -> Part:
    index, d = x.reshape(len(x), -1), d.reshape(len(x), -1, module.embedding_dim)
    if module.padding_idx is not None:
        d = d * (index != module.padding_idx)[:, :, None]
    return Lookup(index, d, module.num_embeddings)


def layer_norm(module: nn.LayerNorm, x: Tensor, d: Tensor, name: str) -> Part:
    if name == "weight":
        d = d * F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return Dense(_sum_leading(d, len(module.normalized_shape)))


def rms_norm(module: nn.RMSNorm, x: Tensor, d: Tensor, name: str) -> Part:
    d = d * F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    return Dense(_sum_leading(d, len(module.normalized_shape)))


def group_norm(module: nn.GroupNorm, x: Tensor, d: Tensor, name: str) -> Part:
    if name == "weight":
        d = d * F.group_norm(x, module.num_groups, eps=module.eps)
    return Dense(_sum_trailing(d))


def batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor, d: Tensor, name: str) -> Part:
    """In evaluation mode, where the statistics are constants."""
    if name == "weight":
        d = d * F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    return Dense(_sum_trailing(d))


def _sum_leading(d: Tensor, axes: int) -> Tensor:
    """Sum over the axes between the samples and the last `axes`."""
    between = tuple(range(1, d.ndim - axes))
    return d.sum(between) if between else d


def _sum_trailing(d: Tensor) -> Tensor:
    return d.flatten(2).sum(2) if d.ndim > 2 else d


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
}


def has_rule(module: nn.Module) -> bool:
    if type(module) not in RULES or "forward" in vars(module):
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean is not None
    return True


def has_samples_first(module: Any, x: Tensor, d: Tensor, samples: int) -> bool:
    """Whether axis 0 of the input and of the output can be the samples, by length and by number of axes."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        least = len(module.normalized_shape) + 1
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        least = len(module.kernel_size) + 2
    else:
        least = 1 if isinstance(module, nn.Embedding) else 2
    return x.ndim >= least and len(x) == len(d) == samples


def part(module: nn.Module, x: Tensor, d: Tensor, name: str) -> Part:
    """The per-sample gradient of one parameter of one call."""
    with torch.no_grad():
        return RULES[type(module)](module, x, d, name)
