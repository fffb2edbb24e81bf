"""The diagonal of the Hessian, exactly, at what it costs.

Networks that are affine in the parameters of each layer between kinks (ReLU, with or without biases, convolutions): it
is the diagonal of the Gauss-Newton matrix, a backward pass per output. Others: a Hessian-vector product per parameter.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shotnoise.errors import InputError
from shotnoise.losses import NAMED
from shotnoise.measure.curvature import Hessian, gauss_newton_diagonal
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
    if piecewise_linear(problem.model) and problem.loss_name in NAMED:
        return gauss_newton_diagonal(problem) + problem.l2
    p = problem.parameter_count
    if p > MOST_PRODUCTS:
        raise InputError(
            f"the exact diagonal of the Hessian would take {p} Hessian-vector products, one per parameter, at most "
            f"{MOST_PRODUCTS}; pass hessian_diagonal= (an estimate will do: the bound holds for any)"
        )
    return Hessian(problem, trial=False).diagonal()


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
