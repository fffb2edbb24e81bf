"""Linear regression on few data: residuals of all samples, and no sample is ever gathered.

    E = W X^T - y,   g = K X / b      W (R, p), E (R, n), K (R, n) the residuals of the batch, the rest 0

Two ordinary matrix products per step for all runs together, worth it while n is not much larger than b.
"""

import torch
from torch import Tensor

from shotnoise.fully_connected import data_of, layers_of
from shotnoise.losses import NAMED
from shotnoise.problem import Problem
from shotnoise.simulate.engines.dense import activation_of
from shotnoise.simulate.engines.engine import Batch, Engine

LARGEST_RATIO = 16  # n / b up to which this is faster than gathering samples


class Linear(Engine):
    """One Linear layer with one output and squared loss, the bias a last column of ones."""

    key = "linear"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        inputs, targets = data_of(problem)
        x = inputs.to(problem.device, problem.dtype)
        if problem.parameter_count > x.shape[1]:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.x, self.columns = x.contiguous(), x.T.contiguous()
        self.minus_y = -targets.to(problem.device, problem.dtype).flatten()
        self.n = len(x)

    def accuracies(self, weights: Tensor) -> Tensor:
        raise NotImplementedError  # a regression has none; refused where recorders are chosen

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, Tensor)
        b = batch.shape[1]
        residuals = self._residuals(weights).gather(1, batch)
        losses = residuals.square().sum(1).div_(2 * b)
        weighted = weights.new_zeros(len(batch), self.n).scatter_add_(1, batch, residuals.div_(b))
        return losses, weighted @ self.x

    def _full(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        residuals = self._residuals(weights)
        return residuals.square().sum(1).div_(2 * self.n), (residuals @ self.x).div_(self.n)

    def _full_losses(self, weights: Tensor) -> Tensor:
        return self._residuals(weights).square_().sum(1).div_(2 * self.n)

    def _residuals(self, weights: Tensor) -> Tensor:
        return torch.addmm(self.minus_y, weights, self.columns)


def is_linear_regression(problem: Problem) -> bool:
    """One Linear layer on a tensor of inputs, with squared loss and one output."""
    layers = layers_of(problem, activation_of)
    if isinstance(layers, str) or len(layers) != 1 or layers[0].outputs != 1 or layers[0].activation is not None:
        return False
    return data_of(problem)[0].ndim == 2 and problem.loss_spec == NAMED["mse"]
