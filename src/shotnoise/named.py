"""Vectors in weight space as one tensor per parameter, by name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Named = dict[str, Tensor]
ROW = 1024


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Named:
    return {name: a[name] + b[name] for name in a}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product, a 0-d tensor."""
    return torch.stack([torch.dot(a[name].reshape(-1), b[name].reshape(-1)) for name in a]).sum()


def square(tensor: Tensor) -> float:
    """||tensor||^2, rounded like a sum of a thousand numbers: one running sum of millions loses digits in float32."""
    flat = tensor.reshape(-1)
    if flat.numel() <= ROW:
        return float(flat.double().square().sum())
    rows = flat[: flat.numel() // ROW * ROW].view(-1, ROW)
    rest = flat[rows.numel() :]
    by_row = torch.cat([torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(rest).reshape(1)])
    found = float(by_row.double().square().sum())
    return found if math.isfinite(found) else float(flat.double().square().sum())  # only the squares may be too large


class Sum:
    """Adds up vectors that arrive one after the other, without touching them: autograd may share their memory."""

    def __init__(self) -> None:
        self.total: Named = {}
        self._ours = False

    def add(self, vector: Named) -> None:
        if not self.total:
            self.total = vector
        elif not self._ours:
            self.total, self._ours = add(self.total, vector), True
        else:
            for name, part in vector.items():
                self.total[name] += part

    def over(self, count: int) -> Named:
        """The sum divided by `count`."""
        return {name: part / count for name, part in self.total.items()}
