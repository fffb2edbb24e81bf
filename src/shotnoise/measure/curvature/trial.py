"""Has this model, with this loss, the second derivative that autograd gives? A trial on a few samples.

Autograd does not always say so where a second derivative is missing: a custom operation marked as differentiable once
is passed over in silence, and kinks have the second derivative zero. So products with the Hessian are compared with
finite differences of the gradient, in double precision, and the loss has to bend somewhere.
"""

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, Slope, gradient, quiet
from shotnoise.losses import NAMED
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.problem import Problem
from shotnoise.samples import Batch

FEW = 16  # samples
STEPS = (1e-7, 1e-8, 1e-6)  # of the differences, relative to the weights: in one of them no kink may lie
SINGLE = 1e4  # times these in single precision
CLOSE = 1e-2  # relative; what is missing is missing by more


def require_twice_differentiable(problem: Problem) -> None:
    """Raise InputError where the second derivative is not there, or not what finite differences give."""
    with quiet(), elementary_kernels():
        evaluation = problem.evaluation()
        inputs, targets = evaluation.place(problem.samples.batch(torch.arange(min(FEW, problem.n))))
        if problem.loss_name not in NAMED:
            _require_bend(problem, evaluation, inputs, targets)
        try:
            evaluation = problem.evaluation(torch.float64)
            batch = evaluation.place(problem.samples.batch(torch.arange(min(FEW, problem.n))))
            slope = Slope(evaluation.losses(*batch).mean(), evaluation.leaves)
        except RuntimeError:  # a model that knows its own precision only
            evaluation, batch = problem.evaluation(), (inputs, targets)
            slope = Slope(evaluation.losses(*batch).mean(), evaluation.leaves)
        _compare(slope, evaluation, batch)


def _compare(slope: Slope, evaluation: Evaluation, batch: tuple[Batch, Batch]) -> None:
    leaves = list(evaluation.leaves.values())
    single = leaves[0].dtype != torch.float64
    size = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(w.detach()) for w in leaves]))
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for step in STEPS:
        v = torch.cat([(torch.randn(w.shape, generator=generator)).to(w).reshape(-1) for w in leaves])
        v = v / torch.linalg.vector_norm(v)
        step = float(step * (SINGLE if single else 1) * (1 + size))
        found = slope.products(v[None])[0]
        ends = [_gradient(evaluation, batch, v, sign * step) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        error = float(torch.linalg.vector_norm(found - expected))
        scale = float(torch.linalg.vector_norm(expected) + torch.linalg.vector_norm(found))
        rounding = float(torch.finfo(v.dtype).eps * torch.linalg.vector_norm(ends[0]) / step)
        if error <= CLOSE * scale + 10 * rounding:
            return
        worst = error / scale
    raise InputError(
        f"this model or loss cannot be differentiated twice by autograd: its Hessian is {worst:.0%} away from finite "
        "differences of the gradient; look for operations of your own marked once_differentiable, detached parts of "
        "the graph, or kinks at every weight"
    )


def _gradient(evaluation: Evaluation, batch: tuple[Batch, Batch], v: Tensor, step: float) -> Tensor:
    pieces = v.split([w.numel() for w in evaluation.leaves.values()])
    moved = {
        name: (w.detach() + step * piece.view_as(w)).requires_grad_()
        for (name, w), piece in zip(evaluation.leaves.items(), pieces, strict=True)
    }
    found = gradient(evaluation.losses(*batch, moved, checked=False).mean(), moved)
    return torch.cat([g.reshape(-1) for g in found.values()])


def _require_bend(problem: Problem, evaluation: Evaluation, inputs: Batch, targets: Batch) -> None:
    """Raise InputError for a loss that is piecewise linear in the outputs."""
    outputs = evaluation.outputs(inputs)
    if not isinstance(outputs, Tensor):
        return
    at = outputs.detach().requires_grad_()
    slope = Slope(problem.loss_spec.per_sample(at, targets).sum(), {"": at})
    probes = torch.randn(2, at.numel(), generator=torch.Generator().manual_seed(0)).to(at)
    if slope.is_constant or not bool(slope.products(probes).any()):
        raise InputError(
            f"the loss {problem.loss_name!r} is piecewise linear in the outputs (an absolute value, a hinge): it has "
            "no second derivative to speak of, what bends in it are kinks; curvature needs a smooth loss"
        )
