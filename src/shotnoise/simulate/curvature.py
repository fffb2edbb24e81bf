"""Hessian and Fisher matrices of linear regression with squared loss, for the rules that precondition with them."""

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.fully_connected import data_of, layers_of
from shotnoise.losses import NAMED
from shotnoise.problem import Problem
from shotnoise.simulate.engines.dense import activation_of


class RegressionCurvature:
    """Of one Linear layer (k outputs) on data x, in the order weight (k, d), bias (k,): a `rules.Curvature`.

    hessian: (1/n) sum_i J_i^T J_i + l2 I with J_i the derivative of the outputs; model_fisher: the same without the
    penalty (normal noise of unit variance); fisher(w): (1/n) sum_i g_i g_i^T of the data part at each run's weights.
    Raises InputError for any other problem.
    """

    def __init__(self, problem: Problem) -> None:
        layers = layers_of(problem, activation_of)
        if isinstance(layers, str) or len(layers) != 1 or layers[0].activation or problem.loss_spec != NAMED["mse"]:
            why = layers if isinstance(layers, str) else "it is not one Linear layer with squared loss"
            raise InputError(
                f"this update rule is for linear regression with squared loss, and the problem is not: {why}"
            )
        inputs, targets = data_of(problem)
        self.l2, self.layer = problem.l2, layers[0]
        self.x = inputs.flatten(1).to(problem.device, problem.dtype)
        self.y = targets.to(problem.device, problem.dtype)

    def model_fisher(self) -> Tensor:
        columns = self.x if self.layer.bias is None else torch.cat([self.x, self.x.new_ones(len(self.x), 1)], 1)
        moment, k, d = columns.T @ columns / len(columns), self.layer.outputs, self.layer.inputs
        identity = torch.eye(k).to(moment)
        if self.layer.bias is None:
            return torch.kron(identity, moment)
        order = torch.cat([torch.cat([torch.arange(d) + j * (d + 1) for j in range(k)]), torch.arange(k) * (d + 1) + d])
        return torch.kron(identity, moment)[order][:, order]

    def hessian(self) -> Tensor:
        fisher = self.model_fisher()
        return fisher + self.l2 * torch.eye(len(fisher)).to(fisher)

    def fisher(self, weights: Tensor) -> Tensor:
        runs, layer = len(weights), self.layer
        outputs = torch.einsum("nd,rkd->rnk", self.x, weights[:, layer.weight].view(runs, layer.outputs, layer.inputs))
        if layer.bias is not None:
            outputs = outputs + weights[:, None, layer.bias]
        residuals = outputs - self.y
        gradients = torch.einsum("rnk,nd->rnkd", residuals, self.x).flatten(2)
        if layer.bias is not None:
            gradients = torch.cat([gradients, residuals], 2)
        return gradients.mT @ gradients / len(self.x)
