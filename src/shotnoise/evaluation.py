"""A model, a loss and weights as a pure function of samples, in isolation from the user's module.

Evaluation happens on detached views of the parameters and clones of the buffers, put into the module for the time of
one forward pass, so neither gradients nor hooks on parameters nor running statistics of the user are ever touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shotnoise.losses import Loss, require_per_sample
from shotnoise.named import Named
from shotnoise.random_state import preserved_random_state
from shotnoise.samples import Batch, tree_leaves, tree_map


class Evaluation:
    """Per-sample losses and gradients at the weights that the model has when this is made.

    leaves: the trainable parameters by name, a shared one once, ready to be differentiated. dtype: another precision to
    compute in; what has the model's own precision is converted, the rest is left alone.
    """

    def __init__(self, model: nn.Module, loss: Loss, dtype: torch.dtype | None = None) -> None:
        parameters = dict(model.named_parameters())
        trainable = {name: p for name, p in parameters.items() if p.requires_grad}
        first = next(iter(trainable.values()))
        self.model, self.loss = model, loss
        self.own, self.dtype, self.device = first.dtype, dtype or first.dtype, first.device
        self.leaves: Named = {name: self.cast(p.detach()).requires_grad_() for name, p in trainable.items()}
        self.constants: Named = {n: self.cast(p.detach()) for n, p in parameters.items() if n not in trainable}

    def losses(
        self, inputs: Batch, targets: Batch, leaves: Mapping[str, Tensor] | None = None, *, checked: bool = True
    ) -> Tensor:
        """The data losses (m,), at other `leaves` if given. checked=False leaves out what looks at values."""

        def loss_of(outputs: Any) -> Tensor:
            if checked:
                self.loss.check(outputs, targets)
            return self.loss.per_sample(outputs, targets)

        values = self._evaluate(inputs, leaves, loss_of)
        return require_per_sample(values, len(tree_leaves(inputs)[0]), self.loss.name)

    def outputs(self, inputs: Batch, leaves: Mapping[str, Tensor] | None = None) -> Any:
        """What the model gives for these inputs."""
        return self._evaluate(inputs, leaves, lambda outputs: outputs)

    def _evaluate(self, inputs: Batch, leaves: Mapping[str, Tensor] | None, function: Callable[[Any], Any]) -> Any:
        """A function of the outputs, evaluated before the model is back in its own state."""
        buffers = {name: self.cast(b.clone()) for name, b in self.model.named_buffers()}
        state = buffers | self.constants | dict(self.leaves if leaves is None else leaves)
        inputs = tree_map(Tensor.clone, inputs)  # the model may work on them in place
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        with _preserved_attributes(self.model):
            return function(torch.func.functional_call(self.model, state, args, kwargs))

    def place(self, batch: tuple[Batch, Batch]) -> tuple[Batch, Batch]:
        """Inputs and targets on the model's device, in this precision."""
        return tree_map(lambda t: self.cast(t.to(self.device)), batch)

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype == self.own else tensor


@contextmanager
def quiet() -> Iterator[None]:
    """Gradients on, whatever the caller has set, and the random state as it was when the block ends."""
    with torch.inference_mode(False), torch.enable_grad(), preserved_random_state():
        yield


def gradient(
    total: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False, retain_graph: bool | None = None
) -> Named:
    """The gradient of a 0-d tensor, zero for leaves that it does not depend on."""
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found: Sequence[Tensor | None] = torch.autograd.grad(
        total, list(leaves.values()), create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(leaf) if g is None else g.to_dense()
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


@contextmanager
def _preserved_attributes(model: nn.Module) -> Iterator[None]:
    """What a forward pass leaves in attributes of modules is taken back; recurrent layers keep their weights there."""
    before = [(module, dict(vars(module)), dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, parameters in before:
            vars(module).update(attributes)
            for name, p in parameters.items():  # functional_call mixes them up in a module that has two names
                if module._parameters[name] is not p:
                    module._parameters[name] = p
            for added in vars(module).keys() - attributes.keys():
                del vars(module)[added]
