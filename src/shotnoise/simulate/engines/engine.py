"""What an engine does: losses and gradients of R runs at once, at R different weights."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.losses import right
from shotnoise.problem import Problem
from shotnoise.rules import Rule

Batch = Tensor | tuple[Tensor, Tensor]  # sample indices (R, b), or inputs and targets (R, b, ...)
SAMPLES_BYTES = 16 * 2**20  # what the activations of one slice of the data may take in a full pass


Kept = dict[str, dict[int, Any]]
WEIGHTS, GRADIENTS, FULL = "weights", "gradients", "full"  # what can be kept of a step


class Trainer(Protocol):
    """Many steps in one call, with what the recorders `observed` by name would see on the way."""

    @property
    def observed(self) -> Collection[str]: ...

    def __call__(
        self,
        weights: Tensor,
        memory: Mapping[str, Tensor],
        batches: Batch,
        rates: NDArray[np.float64],
        first: int,
        wanted: Mapping[str, NDArray[np.bool_]],
        kept: Mapping[str, NDArray[np.bool_]],
        before: Tensor | None,
    ) -> tuple[dict[str, Tensor], Kept]:
        """Steps first, first + 1, ... on batches with an axis for the steps after that of the runs, (R, T, b, ...).

        An update is made, in place, after each of the first len(rates).

        wanted: at which of the steps (T,) each is observed. kept: at which all of "weights", minibatch "gradients" or
        "full" gradients is kept. before: the gradients (R, P) of the step before the first, which those of the last one
        replace.
        Returns values (T, R) by name, always with "minibatch_loss"; and what was kept by name and place among the
        steps: (R, P), or full losses (R,) and gradients (R, P).
        """
        ...


class Engine(ABC):
    """R copies of a problem; weights and gradients are (R, P), rows flattened in the order of `Problem.parameters`.

    instruction_set: of the processor, such as "avx512", that the engine uses, or the kind of another device; the last
    digits depend on it. Subclasses give the data part of the loss; the penalty is added here. Rows never influence
    each other.
    """

    key: str  # its name in `choice.ENGINES`
    threads = 1  # for engines that have threads of their own, beside those of torch

    def __init__(self, problem: Problem) -> None:
        self.problem, self.l2 = problem, problem.l2
        on_cpu = problem.device.type == "cpu"
        self.instruction_set = torch.backends.cpu.get_cpu_capability().lower() if on_cpu else problem.device.type

    def minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (R,) and gradient (R, P) of each run on its own batch."""
        losses, gradients = self._minibatch(weights, batch)
        return self._penalised(weights, losses, gradients)

    def full(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (R,) and gradient (R, P) of each run on all the data."""
        losses, gradients = self._full(weights)
        return self._penalised(weights, losses, gradients)

    def full_losses(self, weights: Tensor) -> Tensor:
        """Loss (R,) of each run on all the data."""
        losses = self._full_losses(weights)
        return losses + 0.5 * self.l2 * weights.square().sum(1) if self.l2 else losses

    def trainer(self, rule: Rule) -> "Trainer | None":
        """What makes many steps at once by this rule, where the engine has such a thing."""
        return None

    @abstractmethod
    def accuracies(self, weights: Tensor) -> Tensor:
        """Share of all samples (R,) that are classified right."""

    @abstractmethod
    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _full(self, weights: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _full_losses(self, weights: Tensor) -> Tensor: ...

    def _penalised(self, weights: Tensor, losses: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        if not self.l2:
            return losses, gradients
        return losses + 0.5 * self.l2 * weights.square().sum(1), gradients.add_(weights, alpha=self.l2)


def hits(problem: Problem, outputs: Tensor, targets: Tensor) -> Tensor:
    """How many of the samples are classified right, (R,); outputs (R, m, classes), or logits."""
    return right(problem.loss_spec, outputs, targets).sum(-1, dtype=torch.float64)
