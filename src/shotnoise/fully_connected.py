"""Fully connected networks, recognised: which layers a problem's model has, and where their weights lie among all P.

What is written out for such networks (the engines of `simulate`, the products of `measure.curvature`) starts here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from shotnoise.losses import NAMED
from shotnoise.problem import Problem
from shotnoise.samples import InMemory

A = TypeVar("A")


@dataclass(frozen=True)
class Layer(Generic[A]):
    """Where a layer's weights (outputs, inputs) and bias lie among the P parameters, and the activation after it."""

    outputs: int
    inputs: int
    weight: slice
    bias: slice | None
    activation: A | None


def layers_of(problem: Problem, known: Callable[[nn.Module], A | None]) -> list[Layer[A]] | str:
    """The layers of a fully connected network whose activations are all `known`, or why it is not one."""
    modules: list[nn.Module] = []
    if (unknown := _flatten(problem.model, modules, known)) is not None:
        return unknown
    if not isinstance(problem.samples, InMemory) or not isinstance(problem.samples.inputs, Tensor):
        return "the inputs are not one tensor in memory"
    if not isinstance(problem.samples.targets, Tensor):
        return "the targets are not one tensor in memory"
    if (why := _loss_refused(problem)) is not None:
        return why
    names = {id(p): name for name, p in problem.model.named_parameters()}
    places, start = {}, 0
    for name, p in problem.parameters.items():
        places[name] = slice(start, start + p.numel())
        start += p.numel()
    layers: list[Layer[A]] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            own = [module.weight] if module.bias is None else [module.weight, module.bias]
            found = [places.pop(names[id(p)], None) for p in own]
            if found[0] is None or found[-1] is None:
                return "a layer is frozen, or shares its weights"
            bias = found[1] if len(found) > 1 else None
            layers.append(Layer(module.out_features, module.in_features, found[0], bias, None))
        elif layers and layers[-1].activation is None:
            last = layers.pop()
            layers.append(Layer(last.outputs, last.inputs, last.weight, last.bias, known(module)))
        else:
            return "an activation does not follow a Linear layer"
    if not layers or places:
        return "there are parameters outside Linear layers"
    if layers[-1].activation is not None:
        return "an activation follows the last layer"
    return layers


def data_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a problem that `layers_of` has accepted."""
    samples = problem.samples
    assert isinstance(samples, InMemory)
    inputs: Tensor = samples.inputs
    targets: Any = samples.targets
    return inputs, targets


def _flatten(model: nn.Module, found: list[nn.Module], known: Callable[[nn.Module], Any]) -> str | None:
    """The modules of nested Sequentials in order, those left out that do nothing; or why they cannot be had."""
    if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks:
        return "the model has hooks"
    if type(model) is nn.Sequential:
        for child in model:
            if (why := _flatten(child, found, known)) is not None:
                return why
    elif type(model) is nn.Flatten:
        if found or model.start_dim != 1 or model.end_dim != -1:
            return "a Flatten module is not the first, or keeps axes"
    elif type(model) is nn.Linear or known(model) is not None:
        found.append(model)
    elif type(model) is not nn.Identity:
        return f"{type(model).__name__} is not a Linear layer or a known activation"
    return None


def _loss_refused(problem: Problem) -> str | None:
    inputs, targets = data_of(problem)
    linear = [m for m in problem.model.modules() if isinstance(m, nn.Linear)]
    if not linear or (inputs.ndim != 2 and not any(isinstance(m, nn.Flatten) for m in problem.model.modules())):
        return "the layers act on further axes"
    if problem.loss_spec == NAMED["cross_entropy"] and targets.ndim == 1 and not targets.is_floating_point():
        return None
    if problem.loss_spec == NAMED["logistic"] and linear[-1].out_features == 1:
        return None
    if problem.loss_spec == NAMED["mse"] and targets.shape[1:] == (linear[-1].out_features,):
        return None
    return f"loss {problem.loss_name!r} with targets {tuple(targets.shape)} is not written out"
