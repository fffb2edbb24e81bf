"""Which engine takes a problem: the fastest whose gradients are those of plain autograd, seen on a few samples."""

from collections.abc import Callable

import torch

from shotnoise.errors import InputError
from shotnoise.fully_connected import layers_of
from shotnoise.problem import Problem
from shotnoise.simulate.engines.dense import Dense, activation_of
from shotnoise.simulate.engines.engine import Engine
from shotnoise.simulate.engines.linear import LARGEST_RATIO, Linear, is_linear_regression
from shotnoise.simulate.engines.native import native
from shotnoise.simulate.engines.stacked import OneByOne, Stacked

TRIAL = 3  # samples
LARGEST_NATIVE = 16384  # parameters of a run; the kernel keeps those of a vector's runs in the cache
CHOICES = ("auto", "torch")  # the fastest of all, and of those that need no compiler


def _linear(problem: Problem) -> Engine | str:
    return Linear(problem) if is_linear_regression(problem) else "not a linear regression with one output"


def _dense(problem: Problem) -> Engine | str:
    layers = layers_of(problem, activation_of)
    return layers if isinstance(layers, str) else Dense(problem, layers)


ENGINES: dict[str, Callable[[Problem], Engine | str]] = {
    "native": native,
    "linear": _linear,
    "dense": _dense,
    "stacked": Stacked,
    "one-by-one": OneByOne,
}


def choose(problem: Problem, engine: str = "auto", batch_size: int = 1, online: bool = False) -> Engine:
    """An engine by name, or the fastest that holds.

    "native" (fully connected networks, compiled), "linear" (linear regression on few data), "dense" (fully connected
    networks), "stacked" (any model that torch.func takes), "one-by-one" (any model); "torch" is the fastest of these
    but the first. online: batches come as samples, not as indices.
    Raises InputError where the one asked for does not take this problem, and says why.
    """
    if engine not in CHOICES:
        return _named(problem, engine, online)
    unfit = {
        "native": engine == "torch" or problem.parameter_count > LARGEST_NATIVE,
        "linear": online or problem.n > LARGEST_RATIO * batch_size,
    }
    for name in ENGINES:
        if unfit.get(name):
            continue
        found = ENGINES[name](problem)
        if not isinstance(found, str) and _holds(found, online) is None:
            return found
    raise InputError(f"no engine differentiates {type(problem.model).__name__}: {_holds(OneByOne(problem), online)}")


def _named(problem: Problem, engine: str, online: bool) -> Engine:
    if engine not in ENGINES:
        raise InputError(
            f'engine={engine!r} is not known; use "auto", "torch" or one of {", ".join(map(repr, ENGINES))}'
        )
    if engine == "linear" and online:
        raise InputError("engine='linear' works on the residuals of a data set; use 'dense' or 'auto' for a population")
    found = ENGINES[engine](problem)
    why = found if isinstance(found, str) else _holds(found, online)
    if why is not None or isinstance(found, str):
        raise InputError(f"engine={engine!r} does not take this problem: {why}; use engine='auto'")
    return found


def _holds(engine: Engine, online: bool) -> str | None:
    """None if two runs on a few samples have the losses and gradients of plain autograd, else what is wrong.

    One run has the model's weights, the other is away from them: at a perfect fit a gradient is nothing but rounding.
    """
    problem = engine.problem
    indices = torch.arange(min(TRIAL, problem.n), device=problem.device).expand(2, -1)
    weights = problem.flatten({name: p.detach() for name, p in problem.parameters.items()}).expand(2, -1).clone()
    noise = torch.randn(weights.shape[1], generator=torch.Generator().manual_seed(0), dtype=weights.dtype)
    weights[1] += 0.1 * noise.to(weights)
    batch = _samples(problem, indices) if online else indices
    try:
        expected = OneByOne(problem).minibatch(weights, batch)
        found = engine.minibatch(weights, batch)
    except Exception as error:  # whatever a user's model makes of being traced
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    for what, mine, theirs in zip(("loss", "gradient"), found, expected, strict=True):
        difference, scale = float((mine - theirs).double().abs().max()), float(theirs.double().abs().max())
        if not difference <= torch.finfo(mine.dtype).eps ** 0.5 * (scale + torch.finfo(mine.dtype).eps):
            return f"its {what} differs from that of autograd by {difference:.1e}, of {scale:.1e}"
    return None


def _samples(problem: Problem, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = problem.samples.batch(indices.reshape(-1).cpu())
    x, y = (t.to(problem.device).view(*indices.shape, *t.shape[1:]) for t in (inputs, targets))
    return x, y
