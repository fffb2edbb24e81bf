"""The oracle: ||mu||^2 and the variance of the minibatch gradient from all samples, at the weights of the moment."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling, WithReplacement


class Exact:
    """For study: the ratio of Theorem 3 as it is, for one pass over all samples at every step.

    problem: model, loss and data that are trained on, without l2 (give it to the optimizer as weight_decay).
    batch_size, sampling: how the gradients come about that the optimizer is given; default WithReplacement().
    It reads the weights before the step and never the batch, so the guarantee of `guaranteed_decrease` applies.
    """

    def __init__(self, problem: Problem, batch_size: int, sampling: Sampling | None = None) -> None:
        if problem.l2:
            raise InputError(f"the problem has l2={problem.l2}; build it without, and give the optimizer weight_decay")
        self.problem = problem
        self.kappa = (sampling or WithReplacement()).variance_factor(batch_size, problem.n)
        self.by_coordinate = False

    def bind(self, parameters: Sequence[Tensor], by_coordinate: bool) -> None:
        """Raises InputError for parameters that are not the problem's own."""
        self.by_coordinate = by_coordinate
        ours = {id(p) for p in self.problem.parameters.values()}
        if strange := [tuple(p.shape) for p in parameters if id(p) not in ours]:
            raise InputError(f"parameters of shapes {strange} are not trainable parameters of the problem's model")

    def moments(self) -> dict[int, tuple[Tensor, Any]]:
        """By id of the parameter: mu, and kappa Tr Sigma (a float) or kappa diag Sigma (a tensor of its shape)."""
        n, parameters = self.problem.n, self.problem.parameters
        mean: dict[str, Tensor] = {}
        second: dict[str, Any] = {}
        for chunk in self.problem.passes():
            for name, g in chunk.per_sample.items():
                found = g.sum_of_squares() if self.by_coordinate else g.squared_norms().double().sum()
                second[name] = second[name] + found if name in second else found
                mean[name] = mean[name] + chunk.gradient[name] if name in mean else chunk.gradient[name]
        result = {}
        for name, p in parameters.items():
            mu = mean[name] / n
            square = mu.square() if self.by_coordinate else mu.double().square().sum()
            spread = torch.clamp_min(second[name] / n - square, 0) * self.kappa
            result[id(p)] = (mu, spread if self.by_coordinate else float(spread))
        return result
