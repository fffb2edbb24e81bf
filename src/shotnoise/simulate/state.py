"""What recorders see: all runs of a block at one step, full quantities computed when first asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from shotnoise.simulate.engines import Engine


@dataclass
class State:
    """R runs at weights w_t, with the gradient drawn there on a new batch; tensors must not be modified.

    weights, gradients: (R, P) in the order of `Problem.parameters`; minibatch_losses: (R,); before: gradients (R, P)
    of the step before, where some recorder needs them (None at step 0). redraw(k): the weights (R, P) after one
    update from here on the k-th other batch.
    """

    engine: Engine
    step: int
    weights: Tensor
    gradients: Tensor
    minibatch_losses: Tensor
    before: Tensor | None
    redraw: Callable[[], Tensor]
    alive: Tensor = field(repr=False)  # (R,) runs that have not diverged
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)  # what several recorders share

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The weights by name, (R, *parameter)."""
        shapes = {name: p.shape for name, p in self.engine.problem.parameters.items()}
        pieces = self.weights.split([shape.numel() for shape in shapes.values()], 1)
        return {name: piece.view(-1, *shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    @cached_property
    def losses(self) -> Tensor:
        """Full loss (R,)."""
        if "full" in self.__dict__:
            return self.full[0]
        return self.engine.full_losses(self.weights)

    @property
    def full_gradients(self) -> Tensor:
        """Gradients of the full loss, (R, P)."""
        return self.full[1]

    @cached_property
    def full(self) -> tuple[Tensor, Tensor]:
        return self.engine.full(self.weights)

    @cached_property
    def accuracies(self) -> Tensor:
        """Share of the data classified right, (R,)."""
        return self.engine.accuracies(self.weights)
