"""Small networks by name, "linear", "mlp:64,32", "cnn:16,32", for command line and examples; polynomial activations."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from shotnoise.datasets import Data
from shotnoise.errors import InputError

KINDS = '"linear", "mlp:64,32" (widths of the hidden layers) or "cnn:16,32" (channels of the convolutions)'


class Polynomial(nn.Module):
    """The elementwise activation s(z) = c_0 + c_1 z + ... + c_D z^D, D >= 1, as `predict.networks` takes it.

    coefficients: c_0, c_1, ..., finite numbers, kept in double precision whatever that of the model is; they are no
    parameters, but part of the module's state. Compiled in `simulate`, as ReLU is. Raises InputError for other ones.

    >>> Polynomial([1, 0, 0.5])(torch.tensor([0.0, 2.0, -2.0])).tolist()
    [1.0, 3.0, 3.0]
    """

    def __init__(self, coefficients: Sequence[SupportsFloat]) -> None:
        super().__init__()
        self.coefficients = tuple(float(c) for c in coefficients)
        if len(self.coefficients) < 2 or not all(map(math.isfinite, self.coefficients)):
            raise InputError(
                f"coefficients={list(self.coefficients)}: c_0, c_1, ... of a polynomial of degree 1 or more, finite"
            )

    def forward(self, z: Tensor) -> Tensor:
        return _horner(self.coefficients, z)

    def slope(self, z: Tensor) -> Tensor:
        """s'(z)"""
        return _horner([k * c for k, c in enumerate(self.coefficients)][1:], z)

    def extra_repr(self) -> str:
        return str(list(self.coefficients))

    def get_extra_state(self) -> Tensor:
        """Makes the coefficients part of a checkpoint, and of the fingerprint of a problem."""
        return torch.tensor(self.coefficients, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.coefficients = tuple(state.tolist())


def build(spec: str, data: Data, seed: int = 0) -> nn.Module:
    """An untrained network for `data`, PyTorch's default initialisation with this seed.

    mlp: dense layers with ReLU between them; cnn: 3x3 convolutions with ReLU and 2x2 max pooling, then one dense layer.
    Raises InputError for anything else, or images too small for so many poolings.

    >>> from shotnoise.datasets import load
    >>> build("mlp:8", load("digits"))(load("digits").inputs[:2]).shape
    torch.Size([2, 10])
    """
    kind, _, widths = spec.partition(":")
    sizes = _sizes(spec, widths)
    outputs = data.classes if data.classes is not None else data.targets.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        match kind:
            case "linear" if not sizes:
                return _mlp(data, [], outputs)
            case "mlp" if sizes:
                return _mlp(data, sizes, outputs)
            case "cnn" if sizes:
                return _cnn(data, sizes, outputs)
    raise InputError(f"model {spec!r} is not known; use {KINDS}")


def _horner(coefficients: Sequence[float], z: Tensor) -> Tensor:
    value = torch.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * z + c
    return value


def _sizes(spec: str, widths: str) -> list[int]:
    parts = [part.strip() for part in widths.split(",")] if widths else []
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"model {spec!r}: the sizes after the colon are whole numbers, as in {KINDS}")
    return [int(part) for part in parts]


def _mlp(data: Data, widths: list[int], outputs: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if data.inputs.ndim > 2:
        layers["flatten"] = nn.Flatten()
    size = data.inputs[0].numel()
    for k, width in enumerate(widths, start=1):
        layers[f"dense{k}"], layers[f"relu{k}"] = nn.Linear(size, width), nn.ReLU()
        size = width
    layers["output"] = nn.Linear(size, outputs)
    return nn.Sequential(layers)


def _cnn(data: Data, channels: list[int], outputs: int) -> nn.Module:
    if data.inputs.ndim != 4:
        raise InputError(f"a cnn needs images (n, channels, height, width), not inputs {tuple(data.inputs.shape)}")
    _, inside, *size = data.inputs.shape
    if min(size) < 2 ** len(channels):
        raise InputError(f"images of {size[0]} x {size[1]} cannot be halved {len(channels)} times; use fewer channels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, outside in enumerate(channels, start=1):
        layers[f"conv{k}"] = nn.Conv2d(inside, outside, 3, padding=1)
        layers[f"relu{k}"], layers[f"pool{k}"] = nn.ReLU(), nn.MaxPool2d(2)
        inside, size = outside, [side // 2 for side in size]
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(inside * size[0] * size[1], outputs)
    return nn.Sequential(layers)
