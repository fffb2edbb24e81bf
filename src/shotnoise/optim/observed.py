"""Per-sample gradient norms of an ordinary training step, from its own forward and backward pass.

Hooks on the layers with a rule keep the input and wait for the gradient at the output; the optimizer's step turns
both into ||g_i||^2 (or sum_i g_i^2 entry by entry) as `measure` does. Nothing else of the pass is touched.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shotnoise.errors import InputError, PerSampleGradientError
from shotnoise.optim.noise import Estimates, always, spread_factor, variance_of_mean
from shotnoise.per_sample.rules import has_rule, has_samples_first, part
from shotnoise.per_sample.structure import PerSample

INSTEAD = "; use noise=sn.optim.Microbatches(), which needs no gradients per sample"


class Observed(Estimates):
    """The noise of each batch from its per-sample gradients, read off the backward pass that training does anyway.

    model: the module that is called in training, with the samples on axis 0 of its inputs; every parameter that is
        optimized belongs to a layer with a rule (linear, convolution, embedding, normalisation).
    population: n where batches are drawn without replacement from n samples (a DataLoader with shuffling); None for
        independent samples. Several forward and backward passes before a step are taken as one larger batch.

    That the per-sample gradients add up to the gradient in `.grad` is checked on the first step and whenever the calls
    change: gradient clipping, loss scaling or a penalty inside the loss would make them differ, and raise
    PerSampleGradientError, as do layers without a rule: at the first step before a weight has changed, later after it.
    Dropout is part of the noise. Two-step use:

    >>> model = nn.Linear(3, 1)
    >>> noise = Observed(model)
    >>> noise.bind(list(model.parameters()), by_coordinate=False)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> noise.variances(list(model.parameters()), [float(p.grad.square().sum()) for p in model.parameters()])
    [0.0, 0.0]
    """

    def __init__(self, model: nn.Module, population: int | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"Observed needs the torch.nn.Module that is trained, not {type(model).__name__}")
        if hasattr(model, "_orig_mod"):
            raise InputError("a compiled model does not run the hooks of its layers; give the model as it was before")
        if population is not None and population < 2:
            raise InputError(f"population={population}: the number of training samples, at least 2, or None")
        self.model, self.population = model, population
        self._calls: list[tuple[int, nn.Module, Tensor, Tensor]] = []
        self._sizes: dict[int, int] = {}  # samples of each forward pass since the last step
        self._pass, self._inside, self._paused = 0, False, False
        self._verified: set[object] = set()  # which calls, for which parameters, were found to add up
        self._bound: set[int] = set()
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            *(m.register_forward_hook(self._record, with_kwargs=True) for m in model.modules() if has_rule(m)),
            model.register_forward_hook(self._leave, always_call=True),  # last: the model may be a layer itself
        ]

    def bind(self, parameters: Sequence[Tensor], by_coordinate: bool, wanted: Callable[[], bool] = always) -> None:
        """Raises PerSampleGradientError for parameters that no layer with a rule owns."""
        super().bind(parameters, by_coordinate, wanted)
        owned = {id(p) for module in self.model.modules() if has_rule(module) for p in module._parameters.values()}
        names = {id(p): name for name, p in self.model.named_parameters()}
        if strange := [tuple(p.shape) for p in parameters if id(p) not in names]:
            raise InputError(
                f"parameters of shapes {strange} do not belong to the {type(self.model).__name__} observed"
            )
        if unknown := [names[id(p)] for p in parameters if id(p) not in owned]:
            raise PerSampleGradientError(f"no rule gives the per-sample gradients of {', '.join(unknown)}{INSTEAD}")

        self._bound = {id(p) for p in parameters}

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self.forget()

    def forget(self) -> None:
        self._calls, self._sizes = [], {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def variances(self, parameters: Sequence[Tensor], means: Sequence[Any]) -> list[Any]:
        gradients, count, drawn = self._seen(parameters)
        if self.by_coordinate:
            sums = [_add(g.sum_of_squares() for g in parts) for parts in gradients]
            return [variance_of_mean(a, g.square(), count, drawn) for a, g in zip(sums, means, strict=True)]
        norms = torch.stack([_add(g.squared_norms().sum() for g in parts) for parts in gradients])
        return [variance_of_mean(a, b, count, drawn) for a, b in zip(norms.double().tolist(), means, strict=True)]

    def subtract_variances(
        self, parameters: Sequence[Tensor], means: Sequence[Tensor], averages: Sequence[Tensor], beta: float
    ) -> None:
        """With the sums of squares added where they are averaged: every pass over all weights saved is time."""
        gradients, count, drawn = self._seen(parameters)
        weight = (1 - beta) * spread_factor(count, drawn)
        for parts, mean, average in zip(gradients, means, averages, strict=True):
            for k, g in enumerate(parts):
                g.add_sum_of_squares(average, 1.0 if k else beta, -weight)
            average.addcmul_(mean, mean, value=weight / count)

    def _seen(self, parameters: Sequence[Tensor]) -> tuple[list[list[PerSample]], int, float]:
        """The contributions to the gradient, after a check; how many; and m/n."""
        gradients, count = self._gradients(parameters)
        self._verify(parameters, gradients, count)
        return gradients, count, 0.0 if self.population is None else count / self.population

    def _gradients(self, parameters: Sequence[Tensor]) -> tuple[list[list[PerSample]], int]:
        """The contributions of the samples to the gradient, for each parameter one entry per pass; their number."""
        by_use: dict[tuple[int, int], list[Any]] = defaultdict(list)
        seen = sorted({index for index, *_ in self._calls})
        for index, module, x, d in self._calls:
            if index < 0:
                raise PerSampleGradientError(
                    "a layer was called by itself, outside the forward pass of the model given to Observed; observe "
                    "the module that is called in training"
                )
            if not has_samples_first(module, x, d, self._sizes[index]):
                raise PerSampleGradientError(
                    f"{type(module).__name__} saw inputs {tuple(x.shape)} in a forward pass of {self._sizes[index]} "
                    f"samples: the samples have to be on the first axis of every layer{INSTEAD}"
                )
            for name, leaf in module._parameters.items():
                if id(leaf) in self._bound:
                    by_use[index, id(leaf)].append(part(module, x, d, name))
        count = sum(self._sizes[index] for index in seen)
        if count < 2:
            raise PerSampleGradientError(
                f"{count} samples went through the model and back since the last step; the noise of a gradient "
                "can be seen from at least two (was step() called before backward()?)"
            )
        found = []
        for p in parameters:
            parts = [PerSample(uses, p.shape) for index in seen if (uses := by_use.get((index, id(p))))]
            found.append(parts or [PerSample.of(p.new_zeros(1).expand(count, *p.shape))])
        return found, count

    def _verify(self, parameters: Sequence[Tensor], gradients: list[list[PerSample]], count: int) -> None:
        """All parameters when the calls are new, else the smallest one, which sees clipping and scaling."""
        pairs = list(zip(parameters, gradients, strict=True))
        passes = len({index for index, *_ in self._calls})
        shape = (id(parameters[0]), len(parameters), len(self._calls), passes)
        if shape in self._verified:
            pairs = [min(pairs, key=lambda pair: pair[0].numel())]
        for p, parts in pairs:
            assert p.grad is not None
            total = _add(g.weighted_sum(p.new_ones(g.samples, 1))[0] for g in parts)
            found, expected = torch.linalg.vector_norm(total), torch.linalg.vector_norm(p.grad)
            allowed = 0.05 if p.dtype in (torch.bfloat16, torch.float16) else 1e-3
            off = float(torch.linalg.vector_norm(total - p.grad))
            if not off <= allowed * float(found + expected) and not off <= _rounding(gradients, count):
                name = next(name for name, known in self.model.named_parameters() if known is p)
                raise PerSampleGradientError(
                    f"the per-sample gradients of {name!r} do not add up to its gradient (norms {float(found):.3g} and "
                    f"{float(expected):.3g}): it is used outside its layer, the layer's output is changed in place, or "
                    f".grad was changed after backward (clipping, unscaling, a penalty){INSTEAD}"
                )
        self._verified.add(shape)

    @property
    def _listens(self) -> bool:
        return not self._paused and self.wanted()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        first = _first_tensor((args, kwargs))
        if torch.is_grad_enabled() and self._listens and first is not None:
            self._pass, self._inside = self._pass + 1, True
            self._sizes[self._pass] = len(first)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = False

    def _record(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._listens and isinstance(output, Tensor) and output.requires_grad):
            return
        if not any(id(p) in self._bound for p in module._parameters.values()):  # other weights, as in a measurement
            return
        if isinstance(module, _BatchNorm) and module.training:
            raise PerSampleGradientError(f"{type(module).__name__} in training mode mixes the samples{INSTEAD}")
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        index = self._pass if self._inside else -1
        # The hook lives on the graph: a pass that is never differentiated is forgotten with it.
        output.register_hook(lambda d: self._calls.append((index, module, x, d.detach())))


def _rounding(gradients: list[list[PerSample]], count: int) -> float:
    """What a sum of all contributions may be off by; a gradient that cancels (a key's bias) is nothing else."""
    squares = [g.squared_norms().sum() for parts in gradients for g in parts]
    total = float(torch.stack([s.double() for s in squares]).sum())
    return 10 * torch.finfo(squares[0].dtype).eps * (count * total) ** 0.5


def _first_tensor(tree: Any) -> Tensor | None:
    if isinstance(tree, Tensor):
        return tree if tree.ndim else None
    leaves = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return next((found for leaf in leaves if (found := _first_tensor(leaf)) is not None), None)


def _add(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total
