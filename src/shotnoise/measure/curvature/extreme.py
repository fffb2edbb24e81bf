"""The one eigenvalue that a step size answers to, from below: the largest, or that of largest modulus."""

from dataclasses import dataclass

import numpy as np

from shotnoise.measure.spectra.operator import Array, Symmetric

MOST = 1000  # products with a vector


@dataclass(frozen=True)
class Extreme:
    """An eigenvalue with its sign, the unit eigenvector (p,), and how good they are.

    value = v^T A v, so that an eigenvalue of A lies as far out or further, and one within `residual`, which is
    ||A v - value v||, of it. converged: the residual is within the tolerance, and neither end seems to lie further out
    by more than that.
    """

    value: float
    vector: Array
    residual: float
    converged: bool


def extreme(
    operator: Symmetric, *, modulus: bool = False, tolerance: float | None = None, most: int = MOST, seed: int = 0
) -> Extreme:
    """The largest eigenvalue of a symmetric operator such as `Hessian(problem)`, by Lanczos, so from below.

    modulus: of both ends the one of larger modulus. tolerance: of the residual, relative to the largest modulus,
    default as in `top`. most: products with a vector, after which what is there is returned with converged=False.

    >>> import torch
    >>> from shotnoise.measure.curvature.operators import Hessian
    >>> from shotnoise.problem import Problem
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> found = extreme(Hessian(Problem(torch.nn.Linear(2, 1, bias=False), "mse", x, torch.zeros(2, 1))))
    >>> round(found.value, 6), found.converged
    (2.0, True)
    """
    both = modulus and operator.shape[0] > 1
    pairs = operator.top(1, tolerance, end="both" if both else "largest", most=most, seed=seed)
    k = int(np.abs(pairs.values).argmax())
    reach = np.abs(pairs.values) + pairs.residuals
    slack = pairs.tolerance * abs(pairs.values[k])
    converged = bool(pairs.converged[k] and (reach <= abs(pairs.values[k]) + slack).all())
    return Extreme(float(pairs.values[k]), pairs.vectors[:, k], float(pairs.residuals[k]), converged)
