"""A model, a loss and weights as a pure function of samples, in isolation from the user's module.

Evaluation happens on detached views of the parameters and clones of the buffers, put into the module for the time of
one forward pass, so neither gradients nor hooks on parameters nor running statistics of the user are ever touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shotnoise.errors import InputError
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


class Slope:
    """The gradient of a 0-d tensor with the graph that differentiates it again: each product is one backward pass.

    Raises InputError for what cannot be differentiated twice.
    """

    def __init__(self, total: Tensor, leaves: Mapping[str, Tensor]) -> None:
        self.leaves = list(leaves.values())
        self.sizes = [leaf.numel() for leaf in self.leaves]
        found = gradient(total, leaves, create_graph=True)
        self.parts = [(k, g) for k, g in enumerate(found.values()) if g.requires_grad]
        self.batched = True

    @property
    def is_constant(self) -> bool:
        """The gradient does not depend on the leaves: the second derivative is zero wherever there is one."""
        return not self.parts

    def products(self, vectors: Tensor, *, last: bool = False) -> Tensor:
        """H v for the rows of (b, p), in this order. last: the graph is not needed again."""
        if self.is_constant:
            return torch.zeros_like(vectors)
        if len(vectors) > 1 and self.batched:
            try:
                return self._backward(vectors, last, many=True)
            except RuntimeError:  # an operation whose second derivative has no batching rule
                self.batched = False
        stop = len(vectors) - 1
        return torch.cat([self._backward(v[None], last and i == stop, many=False) for i, v in enumerate(vectors)])

    def _backward(self, vectors: Tensor, last: bool, many: bool) -> Tensor:
        pieces = vectors.split(self.sizes, 1)
        shape = (len(vectors),) if many else ()
        given = [pieces[k].reshape((*shape, *g.shape)) for k, g in self.parts]
        try:
            found = torch.autograd.grad(
                [g for _, g in self.parts], self.leaves, given, retain_graph=not last, allow_unused=True,
                is_grads_batched=many,
            )  # fmt: skip
        except (RuntimeError, NotImplementedError) as error:
            if many:
                raise RuntimeError(str(error)) from error
            raise InputError(
                f"this model or loss cannot be differentiated twice: {str(error).splitlines()[0]}"
            ) from error
        rows = len(vectors)
        columns = [
            vectors.new_zeros(rows, size) if h is None else h.to_dense().reshape(rows, size)
            for h, size in zip(found, self.sizes, strict=True)
        ]
        return torch.cat(columns, 1)


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
