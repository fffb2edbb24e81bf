"""The Hessian of the loss and its parts as operators: H, the Gauss-Newton matrix F, and the residual H_p = M - H.

    H v      a second backward pass through the graph of the gradient, which is kept; written out for fully connected
             networks
    F v      (1/n) sum_i J_i^T S_i J_i v with S_i the Hessian of a sample's loss in its outputs, without the penalty

What is kept for all samples takes memory like a training step on all of them; beyond `memory` bytes it is made again,
chunk by chunk, for every block of vectors. Weights must not change while an operator is in use.

At a kink of a ReLU network there is no second derivative: H is that of the piece on which the weights lie, and what a
step across kinks adds to the change of the gradient is not in it. On such networks the diagonal of H is that of F, and
not negative, whatever the weights; see `diagonal`.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.evaluation import Slope, gradient, quiet
from shotnoise.measure.covariance import SecondMoment
from shotnoise.measure.curvature.trial import require_twice_differentiable
from shotnoise.measure.curvature.written_out import WrittenOut, written_out
from shotnoise.measure.spectra.operator import MEMORY, Symmetric
from shotnoise.per_sample import finite
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.problem import Problem

GRAPH = 4  # bytes kept for second derivatives, per byte that a pass records
BLOCK_BYTES = 64 * 2**20  # what one block of vectors may take beside the weights
Multiply = Callable[[Tensor], Tensor]  # (b, p) -> (b, p), for the mean over some samples


class Kept(Symmetric):
    """An operator that is a mean over the samples, with what its products need kept as far as `memory` allows.

    trial=False leaves out the comparison with finite differences, for who has made it at other weights.
    """

    def __init__(self, problem: Problem, *, memory: int = MEMORY, trial: bool = True) -> None:
        super().__init__(problem.parameter_count, problem.dtype, problem.device)
        problem.examine()
        self.problem, self.layers = problem, written_out(problem)
        if self.layers is None and trial:
            require_twice_differentiable(problem)
        self.keeps = problem.n * problem.bytes_per_sample * GRAPH <= memory
        each = min(problem.n, problem.chunk_size) * problem.bytes_per_sample + 4 * problem.parameter_count
        self._block = max(1, min(256, BLOCK_BYTES // max(1, each)))

    @property
    def block(self) -> int:
        return self._block

    def product(self, vectors: Tensor) -> Tensor:
        total: Tensor | None = None
        for count, multiply in self._kept if self.keeps else self._chunks():
            part = multiply(vectors)
            part = part if count == self.problem.n else part.mul_(count / self.problem.n)
            total = part if total is None else total.add_(part)
        assert total is not None
        if not bool(torch.isfinite(total.sum())):
            finite.require_sums(self.problem.unflatten(total.sum(0)), "Hessian-vector product")
        return total

    @cached_property
    def _kept(self) -> list[tuple[int, Multiply]]:
        return list(self._chunks())

    def _chunks(self) -> Iterator[tuple[int, Multiply]]:
        """Chunk by chunk, the number of samples and the product with the mean over them, penalty included."""
        if self.layers is None:
            yield from self._by_autograd()
            return
        problem = self.problem
        weights = problem.flatten(problem.parameters).detach()[None]
        for indices in problem.chunks(None, problem.chunk_size):
            some = None if len(indices) == problem.n else indices
            part = WrittenOut(problem, self.layers, weights, some)
            finite.require_losses(part.losses, indices)
            yield len(indices), self._of(part)

    def _of(self, part: WrittenOut) -> Multiply:
        raise NotImplementedError

    def _by_autograd(self) -> Iterator[tuple[int, Multiply]]:
        raise NotImplementedError


class Hessian(Kept):
    """H of the mean loss, penalty included, at the problem's present weights, (p, p).

    memory: bytes up to which the graph of the gradient is kept between products. trial=False: without the trial of
    the second derivative, for a model known to have one, or a loss whose kinks shall count as flat. Raises InputError
    for a model or loss that cannot be differentiated twice, PerSampleGradientError for a model that draws or mixes
    samples.

    >>> line = Problem(torch.nn.Linear(2, 1, bias=False), "mse", torch.eye(2), torch.zeros(2, 1))
    >>> Hessian(line).to_dense().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """

    def _of(self, part: WrittenOut) -> Multiply:
        return lambda v: part.hessian(v[None])[0]

    def _by_autograd(self) -> Iterator[tuple[int, Multiply]]:
        for slope, indices in self.problem.slopes():
            yield len(indices), _with_penalty(slope, len(indices), self.problem.l2)


class Residual(Kept):
    """H_p = M - H, what sets the second moment of the per-sample gradients apart from the Hessian, (p, p).

    scale: c M - H instead, which has the same eigenvectors of M to compare with.
    """

    def __init__(self, problem: Problem, scale: float = 1.0, *, memory: int = MEMORY, trial: bool = True) -> None:
        super().__init__(problem, memory=memory, trial=trial)
        self.scale = scale

    def _of(self, part: WrittenOut) -> Multiply:
        return lambda v: part.residual(v[None], self.scale)[0]

    def product(self, vectors: Tensor) -> Tensor:
        if self.layers is not None:
            return super().product(vectors)
        return self.scale * self._moment.product(vectors) - self._hessian.product(vectors)

    @cached_property
    def _moment(self) -> SecondMoment:
        return SecondMoment(self.problem)

    @cached_property
    def _hessian(self) -> Hessian:
        found = Hessian(self.problem, trial=False)  # it was made with this one
        found.keeps = self.keeps
        return found


class GaussNewton(Kept):
    """F = (1/n) sum_i J_i^T S_i J_i, (p, p), without the penalty.

    For the losses that have names it is the Fisher matrix of the model: labels drawn from the softmax or the logistic
    probability, or normal with variance 1. The model must return one tensor. Where the loss is not convex in the
    outputs F has negative eigenvalues.
    """

    def _of(self, part: WrittenOut) -> Multiply:
        return lambda v: part.gauss_newton(v[None])[0]

    def _by_autograd(self) -> Iterator[tuple[int, Multiply]]:
        problem = self.problem
        evaluation = problem.evaluation()
        for indices in problem.chunks(None, problem.chunk_size):
            with quiet(), elementary_kernels():
                inputs, targets = evaluation.place(problem.samples.batch(indices))
                outputs = evaluation.outputs(inputs)
                if not isinstance(outputs, Tensor):
                    raise InputError(
                        f"a Gauss-Newton matrix needs a model that returns one tensor, not {type(outputs).__name__}"
                    )
                at = outputs.detach().requires_grad_()
                loss = Slope(problem.loss_spec.per_sample(at, targets).sum(), {"": at})
                probe = torch.zeros_like(outputs, requires_grad=True)
                pulled = gradient((outputs * probe).sum(), evaluation.leaves, create_graph=True)
            yield (
                len(indices),
                _Linearised(outputs, loss, probe, list(pulled.values()), list(evaluation.leaves.values())),
            )


class _Linearised:
    """J^T S J v for some samples, S the second derivative of the loss.

    The gradient of probe . outputs is linear in the probe: differentiating it once more gives J v.
    """

    def __init__(self, outputs: Tensor, loss: Slope, probe: Tensor, pulled: list[Tensor], leaves: list[Tensor]) -> None:
        self.outputs, self.loss, self.probe, self.leaves = outputs, loss, probe, leaves
        self.pulled = [(k, g) for k, g in enumerate(pulled) if g.requires_grad]
        self.sizes = [leaf.numel() for leaf in leaves]

    def __call__(self, vectors: Tensor) -> Tensor:
        return torch.stack([self._one(v) for v in vectors]) / len(self.outputs)

    def _one(self, v: Tensor) -> Tensor:
        pieces = v.split(self.sizes)
        given = [pieces[k].view_as(g) for k, g in self.pulled]
        pushed = torch.autograd.grad([g for _, g in self.pulled], self.probe, given, retain_graph=True)[0]
        bent = self.loss.products(pushed.reshape(1, -1)).view_as(self.outputs)
        back = torch.autograd.grad(self.outputs, self.leaves, bent, retain_graph=True, allow_unused=True)
        each = zip(back, self.sizes, strict=True)
        return torch.cat([v.new_zeros(size) if g is None else g.to_dense().reshape(-1) for g, size in each])


def _with_penalty(slope: Slope, count: int, l2: float) -> Multiply:
    return lambda v: slope.products(v) / count + l2 * v
