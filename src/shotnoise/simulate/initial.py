"""The weights that the runs start from: the model's own, a fresh initialisation per run, or a function of the user."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shotnoise.errors import InputError
from shotnoise.problem import Problem
from shotnoise.random_state import preserved_random_state

Initial = str | Callable[[np.random.Generator], Any]


def check(initial: Initial, problem: Problem) -> None:
    """Raise InputError unless `initial` is "fixed", "resampled" for a model that can be, or a function."""
    if initial == "resampled":
        for name, module in problem.model.named_modules():
            own = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
            if own and not callable(getattr(module, "reset_parameters", None)):
                raise InputError(
                    f"initial='resampled': {type(module).__name__} {name or '(model)'} has no reset_parameters(); "
                    "pass a function initial(rng) that returns the weights"
                )
    elif initial != "fixed" and not callable(initial):
        raise InputError(
            f"initial={initial!r}: 'fixed' (the model's weights), 'resampled' (each module's reset_parameters by run) "
            "or a function initial(rng) that returns the weights, by name or as one vector"
        )


def weights(
    initial: Initial, problem: Problem, runs: int, streams: Callable[[], Sequence[np.random.Generator]]
) -> Tensor:
    """The first weights of every run, (R, P), each from its own stream; none is made where none is needed."""
    parameters = {name: p.detach() for name, p in problem.parameters.items()}
    if initial == "fixed":
        return problem.flatten(parameters).expand(runs, -1).clone()
    if initial == "resampled":
        return torch.stack([_resampled(problem, rng) for rng in streams()])
    assert not isinstance(initial, str)
    return torch.stack([_from_user(initial(rng), problem) for rng in streams()])


def describe(initial: Initial) -> str:
    return initial if isinstance(initial, str) else f"function {getattr(initial, '__qualname__', repr(initial))}"


def _resampled(problem: Problem, rng: np.random.Generator) -> Tensor:
    model = copy.deepcopy(problem.model)
    with preserved_random_state(), torch.no_grad():
        torch.manual_seed(int(rng.integers(2**63)))
        for module in model.modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                _reset(module)
    return problem.flatten({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})


def _reset(module: nn.Module) -> None:
    module.reset_parameters()  # type: ignore[operator]


def _from_user(found: Any, problem: Problem) -> Tensor:
    expected = {name: tuple(p.shape) for name, p in problem.parameters.items()}
    like = next(iter(problem.parameters.values())).detach()
    if isinstance(found, Mapping):
        shapes = {name: tuple(torch.as_tensor(value).shape) for name, value in found.items()}
        if shapes != expected:
            raise InputError(f"initial(rng) gave weights {shapes}; expected {expected}")
        return torch.cat([torch.as_tensor(found[name]).to(like).reshape(-1) for name in expected])
    vector = torch.as_tensor(found).to(like)
    if tuple(vector.shape) != (problem.parameter_count,):
        raise InputError(
            f"initial(rng) gave an array {tuple(vector.shape)}; expected ({problem.parameter_count},), or the weights "
            f"by name: {expected}"
        )
    return vector
