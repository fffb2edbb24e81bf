"""Any model: stacked parameters through `torch.func`; where that cannot trace it, one run after the other."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shotnoise.evaluation import Evaluation, gradient, quiet
from shotnoise.problem import Problem
from shotnoise.samples import Batch as Samples
from shotnoise.samples import tree_map
from shotnoise.simulate.engines.engine import SAMPLES_BYTES, Batch, Engine, hits


class _AnyModel(Engine):
    """What both engines share: batches and slices of the data, and losses as a function of one run's weights."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.evaluation = Evaluation(problem.model, problem.loss_spec)
        self.shapes = {name: p.shape for name, p in problem.parameters.items()}
        self.widest = max(problem.bytes_per_sample, 1)

    def mean_loss(self, vector: Tensor, inputs: Samples, targets: Samples) -> Tensor:
        """The mean data loss of one run at the weights `vector` (P,)."""
        return self.evaluation.losses(inputs, targets, self.named(vector), checked=False).mean()

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def gathered(self, batch: Batch) -> tuple[Samples, Samples]:
        """Inputs and targets (R, b, ...) of batches given either way."""
        if not isinstance(batch, Tensor):
            return batch
        flat = self._placed(batch.reshape(-1).cpu())
        return tree_map(lambda t: t.view(*batch.shape, *t.shape[1:]), flat)

    def slices(self, weights: Tensor) -> Iterator[tuple[Samples, Samples, int]]:
        size = max(1, SAMPLES_BYTES // (len(weights) * self.widest))
        for indices in self.problem.chunks(None, size):
            inputs, targets = self._placed(indices)
            yield inputs, targets, len(indices)

    def _placed(self, indices: Tensor) -> tuple[Samples, Samples]:
        inputs, targets = self.problem.samples.batch(indices)
        self.problem.loss_spec.check_targets(targets)  # values cannot be looked at under vmap
        return self.evaluation.place((inputs, targets))

    def _full(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = torch.zeros_like(weights[:, 0]), torch.zeros_like(weights)
        for inputs, targets, count in self.slices(weights):
            some = self._shared(weights, inputs, targets)
            losses.add_(some[0], alpha=count / self.problem.n)
            gradients.add_(some[1], alpha=count / self.problem.n)
        return losses, gradients

    def _full_losses(self, weights: Tensor) -> Tensor:
        losses = torch.zeros_like(weights[:, 0])
        for inputs, targets, count in self.slices(weights):
            losses.add_(self._losses(weights, inputs, targets), alpha=count / self.problem.n)
        return losses

    def accuracies(self, weights: Tensor) -> Tensor:
        total = weights.new_zeros(len(weights), dtype=torch.float64)
        for inputs, targets, _ in self.slices(weights):
            total += hits(self.problem, self._outputs(weights, inputs), targets)
        return total / self.problem.n

    def _output(self, vector: Tensor, inputs: Samples) -> Tensor:
        return self.evaluation.outputs(inputs, self.named(vector))

    def _shared(self, weights: Tensor, inputs: Samples, targets: Samples) -> tuple[Tensor, Tensor]:
        """Mean losses and gradients of all runs on the same samples."""
        raise NotImplementedError

    def _losses(self, weights: Tensor, inputs: Samples, targets: Samples) -> Tensor:
        raise NotImplementedError

    def _outputs(self, weights: Tensor, inputs: Samples) -> Tensor:
        raise NotImplementedError


class Stacked(_AnyModel):
    """All runs at once: vmap over the runs' weights of the gradient of the mean loss."""

    key = "stacked"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        both = torch.func.grad_and_value(self.mean_loss)
        self._own = torch.func.vmap(both, in_dims=(0, 0, 0))
        self._common = torch.func.vmap(both, in_dims=(0, None, None))
        self._common_losses = torch.func.vmap(self.mean_loss, in_dims=(0, None, None))
        self._common_outputs = torch.func.vmap(self._output, in_dims=(0, None))

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        with _traced():
            gradients, losses = self._own(weights, *self.gathered(batch))
        return losses.detach(), gradients.detach()

    def _shared(self, weights: Tensor, inputs: Samples, targets: Samples) -> tuple[Tensor, Tensor]:
        with _traced():
            gradients, losses = self._common(weights, inputs, targets)
        return losses.detach(), gradients.detach()

    def _losses(self, weights: Tensor, inputs: Samples, targets: Samples) -> Tensor:
        with _traced(), torch.no_grad():
            try:
                return self._common_losses(weights, inputs, targets)
            except RuntimeError:  # recurrent layers have no batching rule where no gradient is asked for
                return self._shared(weights, inputs, targets)[0]

    def _outputs(self, weights: Tensor, inputs: Samples) -> Tensor:
        with _traced(), torch.no_grad():
            try:
                return self._common_outputs(weights, inputs)
            except RuntimeError:
                return torch.stack([self._output(w, inputs) for w in weights])


class OneByOne(_AnyModel):
    """One run after the other by plain autograd, for models that torch.func does not take."""

    key = "one-by-one"

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets = self.gathered(batch)
        return self._each(lambda r, w: self._differentiated(w, _run(inputs, r), _run(targets, r)), weights)

    def _shared(self, weights: Tensor, inputs: Samples, targets: Samples) -> tuple[Tensor, Tensor]:
        return self._each(lambda r, w: self._differentiated(w, inputs, targets), weights)

    def _losses(self, weights: Tensor, inputs: Samples, targets: Samples) -> Tensor:
        with quiet(), torch.no_grad():
            return torch.stack([self.mean_loss(w, inputs, targets) for w in weights])

    def _outputs(self, weights: Tensor, inputs: Samples) -> Tensor:
        with quiet(), torch.no_grad():
            return torch.stack([self._output(w, inputs) for w in weights])

    def _differentiated(self, vector: Tensor, inputs: Samples, targets: Samples) -> tuple[Tensor, Tensor]:
        with quiet():
            leaf = vector.detach().clone().requires_grad_()
            loss = self.mean_loss(leaf, inputs, targets)
            return loss.detach(), gradient(loss, {"": leaf})[""]

    def _each(self, function: Callable[[int, Tensor], tuple[Tensor, Tensor]], weights: Tensor) -> tuple[Tensor, Tensor]:
        found = [function(r, w) for r, w in enumerate(weights)]
        return torch.stack([loss for loss, _ in found]), torch.stack([g for _, g in found])


@contextmanager
def _traced() -> Iterator[None]:
    """`quiet`, and without torch's remark that an operation is not batched: slower is all that it says."""
    with warnings.catch_warnings(), quiet():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _run(tree: Samples, r: int) -> Any:
    return tree_map(lambda t: t[r], tree)
