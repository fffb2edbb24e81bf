"""Problems whose samples differ by a tilt, so that loss and noise can be chosen: l_i(w) = L(w) + x_i . phi(w).

With x_i of mean zero and covariance I, the gradient of L is the mean gradient and phi'^T phi' the noise covariance.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shotnoise.problem import Problem

Function = Callable[[Tensor], Tensor]


class Tilted(torch.nn.Module):
    """The per-sample loss itself as the output; w (d,), inputs x (n, k), phi: (d,) -> (k,)."""

    def __init__(self, start: np.ndarray, loss: Function, phi: Function) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(np.array(start, np.float64)))
        self.loss, self.phi = loss, phi

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.w) + x @ self.phi(self.w)


def output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def tilted(start: np.ndarray, loss: Function, phi: Function, tilts: np.ndarray) -> Problem:
    x = torch.from_numpy(tilts)
    return Problem(Tilted(start, loss, phi), output, x, torch.zeros(len(x), dtype=torch.float64))


def quadratic(hessian: np.ndarray, noise: np.ndarray, start: np.ndarray | None = None) -> Problem:
    """1/2 w^T H w with constant noise of covariance C, exactly: 2 d samples tilted by +-sqrt(d) times a root of C."""
    H, d = torch.from_numpy(np.asarray(hessian, np.float64)), len(hessian)
    values, vectors = np.linalg.eigh(noise)
    root = vectors * np.sqrt(np.maximum(values, 0))
    tilts = np.sqrt(d) * np.concatenate([root.T, -root.T])
    return tilted(np.zeros(d) if start is None else start, lambda w: 0.5 * w @ H @ w, lambda w: w, tilts)
