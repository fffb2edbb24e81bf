"""The diagonal of the Gauss-Newton matrix exactly, for one backward pass per output, at any size.

    F = (1/n) sum_i sum_c a_ic a_ic^T,   a_ic = J_i^T l_ic,   S_i = sum_c l_ic l_ic^T

with S_i the Hessian of a sample's loss in its outputs, phi: the a_ic are the per-sample gradients of the loss
l_ic . phi with l_ic held fixed, so that the passes of `Problem` give the sum of their squares without writing them out.

For networks that are piecewise linear in the parameters of every single layer (ReLU, max pooling; with or without
biases) this is also the diagonal of the Hessian, exactly, almost everywhere: what it lacks are second derivatives of
the outputs by pairs of parameters of one layer, which vanish. With smooth activations the two differ by as much as they
are.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.evaluation import Slope
from shotnoise.losses import NAMED, Loss
from shotnoise.measure.spectra.operator import Array
from shotnoise.named import Sum
from shotnoise.problem import Problem

NEGATIVE = 1e3  # roundings up to which a negative eigenvalue of S_i counts as zero


def gauss_newton_diagonal(problem: Problem) -> Array:
    """diag F, (p,), without the penalty.

    Raises InputError where the loss is not convex in the outputs, or the model does not return one tensor.

    >>> line = Problem(torch.nn.Linear(2, 1, bias=False), "mse", torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1))
    >>> gauss_newton_diagonal(line).tolist()
    [1.0, 9.0]
    """
    total = Sum()
    for c in range(_outputs(problem)):
        for chunk in _with_loss(problem, _pulled(problem.loss_spec, c)).passes(with_gradient=False):
            total.add({name: g.sum_of_squares() for name, g in chunk.per_sample.items()})
    return problem.flatten(total.over(problem.n)).double().cpu().numpy()


def loss_factors(outputs: Tensor, targets: Any, loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """l_ic with S_i = sum_c l_ic l_ic^T, (n, k, k), the last axis c; k outputs of a sample, all axes together."""
    at = outputs.detach().requires_grad_()
    with torch.inference_mode(False), torch.enable_grad():
        slope = Slope(loss(at, targets).sum(), {"": at})
        n, k = len(at), at[0].numel()
        units = torch.eye(k).to(at)[:, None, :].expand(k, n, k).reshape(k, n * k)
        S = slope.products(units).view(k, n, k).movedim(0, -1)
    S = ((S + S.mT) / 2).double()  # in single precision denormal numbers can stop the factorisation
    values, vectors = (t.to(at.dtype) for t in torch.linalg.eigh(S))
    smallest = -NEGATIVE * torch.finfo(at.dtype).eps * values.abs().max()
    if bool((values < smallest).any()):
        raise InputError(
            f"the loss is not convex in the outputs (a second derivative is {float(values.min()):.2g}): its "
            "Gauss-Newton matrix is no sum of squares; use GaussNewton(problem).diagonal(), a product per parameter"
        )
    return vectors * values.clamp_min(0).sqrt()[:, None, :]


def _pulled(loss: Loss, c: int) -> Callable[[Any, Any], Tensor]:
    def along(outputs: Any, targets: Any) -> Tensor:
        return (_factor(outputs.detach(), targets, loss, c) * outputs.flatten(1)).sum(1)

    return along


def _factor(outputs: Tensor, targets: Any, loss: Loss, c: int) -> Tensor:
    """l_ic, (n, k): e_c for squares, however saturated sqrt(pi_c) (e_c - pi) for a softmax and sqrt(pi (1 - pi)) for a
    logit; else any that serve."""
    if loss == NAMED["mse"]:
        found = torch.zeros_like(outputs.flatten(1))
        found[:, c] = 1
        return found
    if loss == NAMED["cross_entropy"] and outputs.ndim == 2 and not targets.is_floating_point():
        pi = outputs.softmax(1)
        found = -pi
        found[:, c] += 1
        return found * pi[:, c : c + 1].sqrt()
    if loss == NAMED["logistic"]:
        f = outputs.reshape(-1, 1)
        return (f.sigmoid() * (-f).sigmoid()).sqrt()
    return loss_factors(outputs, targets, loss.per_sample)[..., c]


def _outputs(problem: Problem) -> int:
    evaluation = problem.evaluation()
    with torch.no_grad():
        inputs, _ = evaluation.place(problem.samples.batch(torch.arange(1)))
        outputs = evaluation.outputs(inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(f"a Gauss-Newton matrix needs a model that returns one tensor, not {type(outputs).__name__}")
    return outputs[0].numel()


def _with_loss(problem: Problem, loss: Callable[[Any, Any], Tensor]) -> Problem:
    """The same model and data under another loss, without penalty; what the examination of the model found holds on."""
    problem.examine()
    other = copy.copy(problem)
    other.loss_spec, other.l2 = Loss("a direction of the outputs", loss, lambda outputs, targets: None), 0.0
    return other
