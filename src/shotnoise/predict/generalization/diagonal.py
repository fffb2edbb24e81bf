"""The diagonal of the Hessian, exactly.

Networks that are affine in the parameters of each layer between kinks (ReLU, with or without biases, convolutions):
it is the diagonal of the Gauss-Newton matrix, (1/n) sum_i sum_c (J_i^T a_ic)_j^2 with S_i = sum_c a_ic a_ic^T, the
Hessian of the loss in the outputs: as many passes of squared per-sample gradients as there are outputs, and never
negative. Others: a Hessian-vector product per parameter.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shotnoise import losses
from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, quiet
from shotnoise.named import Sum
from shotnoise.problem import Problem

Array = NDArray[np.float64]
MOST_PRODUCTS = 5000  # Hessian-vector products
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)


def hessian_diagonal(problem: Problem) -> Array:
    """diag H of the mean loss, penalty included, at the problem's weights, (p,), in the order of its parameters.

    Raises InputError for a network that is not a Sequential of linear and ReLU-like layers and has more than 5,000
    parameters.
    """
    if piecewise_linear(problem.model) and problem.loss_name in ("cross_entropy", "mse"):
        found = _gauss_newton_diagonal(problem)
        if found is not None:
            return found + problem.l2
    p = problem.parameter_count
    if p > MOST_PRODUCTS:
        raise InputError(
            f"the exact diagonal of the Hessian would take {p} Hessian-vector products, one per parameter, at most "
            f"{MOST_PRODUCTS}; pass hessian_diagonal= (an estimate will do: the bound holds for any)"
        )
    diagonal = np.empty(p)
    unit = torch.eye(p, dtype=problem.dtype, device=problem.device)
    for start in range(0, p, 64):
        rows = unit[start : start + 64]
        products = problem.hessian_vector_products([problem.unflatten(row) for row in rows])
        diagonal[start : start + 64] = [
            float(problem.flatten(product)[start + k]) for k, product in enumerate(products)
        ]
    return diagonal


def piecewise_linear(model: nn.Module) -> bool:
    """Is it surely one chain of distinct linear layers and ReLU-like functions?"""
    if isinstance(model, LINEAR):
        return True
    if not isinstance(model, nn.Sequential):
        return False
    parts = list(model)
    return len({id(part) for part in parts}) == len(parts) and all(
        isinstance(part, HOMOGENEOUS) or piecewise_linear(part) for part in parts
    )


def _gauss_newton_diagonal(problem: Problem) -> Array | None:
    """None where the outputs are no matrix."""
    squared = problem.loss_name == "mse"
    with quiet(), torch.no_grad():
        evaluation = Evaluation(problem.model, problem.loss_spec)
        outputs = evaluation.outputs(evaluation.place(problem.samples.batch(torch.arange(1)))[0])
    if outputs.ndim != 2:
        return None
    own, total = problem.replica(), Sum()
    for c in range(outputs.shape[1]):
        own.loss_spec = losses.resolve(_Factor(c, squared))
        own.l2 = 0.0
        for chunk in own.passes():
            total.add({name: g.sum_of_squares() for name, g in chunk.per_sample.items()})
    flat = problem.flatten(total.over(problem.n))
    return np.asarray(flat.double().cpu().numpy())


class _Factor:
    """A loss linear in the outputs, with the gradient a_c: sqrt(pi_c) (e_c - pi) for cross-entropy, e_c for mse."""

    def __init__(self, output: int, squared: bool) -> None:
        self.output, self.squared = output, squared

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.squared:
            return outputs[:, self.output]
        pi = outputs.detach().softmax(1)
        factor = -pi
        factor[:, self.output] += 1
        return (outputs * factor * pi[:, self.output : self.output + 1].sqrt()).sum(1)
