"""What is looked at on the way: built-in recorders by name, weights, redrawn steps, and functions of the user.

A recorder gives one value per run (numbers or arrays), or a statistic over the runs of a block. It sees a
`State`, never the clock or a global generator, so that a record depends on the run alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.problem import Problem
from shotnoise.simulate.engines.engine import GRADIENTS, WEIGHTS
from shotnoise.simulate.state import State
from shotnoise.simulate.statistics import trace_variance

Values = Tensor | dict[str, Tensor]
TAKEN = {
    "divergence_step",
    "runs_excluded",
    "run",
    "step",
    "batch_size",
    "learning_rate",
    "optimizer",
    "quantile",
    "sketch",
    "layer",
}


@dataclass(frozen=True)
class Recorder:
    """One quantity along the training.

    observe: State -> (R, *shape) for one value per run; for a block statistic a dict of tensors (*shape) by suffix.
    shape: further axes of a value, by name (-1 for as many as there are of `parameter` and `layer`), or `axes`, the
    same for a problem. steps: at which steps, by default all recorded ones; a recorder with steps of its own has an
    axis `<name>_step` instead of `step`, with those of its family in common. sees: of the weights and the minibatch
    gradients, the arrays of the state that are large, those that it looks at. check: raises InputError for a problem
    that it cannot take.
    """

    name: str
    observe: Callable[[State], Values]
    per: Literal["run", "block"] = "run"
    shape: Mapping[str, int] | None = None
    steps: tuple[int, ...] | None = None
    sees: tuple[str, ...] = (WEIGHTS, GRADIENTS)
    needs_full_gradient: bool = False
    needs_before: bool = False
    needs_classes: bool = False
    redraws: int = 0
    axes: Callable[[Problem], Mapping[str, int]] | None = None
    family: str | None = None
    check: Callable[[Problem], None] | None = None

    @property
    def step_dimension(self) -> str:
        return "step" if self.steps is None else f"{self.family or self.name}_step"


def resolve(record: Sequence[Any] | Mapping[str, Any] | str, problem: Problem, steps: int) -> tuple[Recorder, ...]:
    """Recorders from names, recorders, and functions of a `State` (named by themselves, or by a mapping's keys)."""
    if isinstance(record, (str, Recorder)) or callable(record):
        record = [record]
    entries = record.items() if isinstance(record, Mapping) else [(None, entry) for entry in record]
    flat = [(name, one) for name, entry in entries for one in (entry if isinstance(entry, tuple) else (entry,))]
    found = tuple(_with_axes(_one(name, entry), problem) for name, entry in flat)
    names = [recorder.name for recorder in found]
    if len(set(names)) < len(names):
        raise InputError(f"record={names}: each name once")
    for recorder in found:
        _check(recorder, problem, steps)
    return found


def weights(
    projection: NDArray[Any] | Tensor | None = None, *, steps: Sequence[int] | None = None, name: str = "weights"
) -> Recorder:
    """The weights themselves, (R, P), or their products (R, k) with the rows of a projection (k, P).

    steps: at which steps, for weights are many numbers; default at all recorded steps.
    """
    own = None if steps is None else tuple(int(t) for t in steps)
    if projection is None:
        return Recorder(name, lambda state: state.weights, shape={"parameter": -1}, steps=own, sees=(WEIGHTS,))
    matrix = torch.as_tensor(np.asarray(projection))
    if matrix.ndim != 2:
        raise InputError(f"projection: a matrix (k, parameters) is needed, not {tuple(matrix.shape)}")

    def projected(state: State) -> Tensor:
        if matrix.shape[1] != state.weights.shape[1]:
            raise InputError(f"projection has {matrix.shape[1]} columns for {state.weights.shape[1]} parameters")
        return state.weights @ matrix.to(state.weights).T

    return Recorder(name, projected, shape={f"{name}_component": len(matrix)}, steps=own, sees=(WEIGHTS,))


def loss_change(redraws: int = 1, *, steps: Sequence[int] | None = None) -> Recorder:
    """L(w') - L(w_t) of the full loss, for w' one update from w_t on each of `redraws` other batches: (R, redraws).

    The batches are drawn for this alone, so the training is what it would be without; the rule's momentum is that of
    the run. Costs `redraws` minibatch gradients and full losses per recorded step; steps: at which ones, default at
    all that are recorded. `simulate.loss_process` and `simulate.phases` look at the result.
    """
    if redraws < 1:
        raise InputError(f"redraws={redraws}: at least one")

    def observe(state: State) -> Tensor:
        return torch.stack([state.engine.full_losses(state.redraw()) - state.losses for _ in range(redraws)], 1)

    own = None if steps is None else tuple(int(t) for t in steps)
    return Recorder("loss_change", observe, shape={"redraw": redraws}, steps=own, redraws=redraws)


def _cosines(state: State) -> Tensor:
    """Each gradient is normalised first: late norms are so small that their product would underflow."""
    if state.before is None:
        return torch.full_like(state.minibatch_losses, torch.nan)
    now, then = (g / torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in (state.gradients, state.before))
    return torch.linalg.vecdot(now, then)


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1)


def _columns(vectors: Tensor, places: list[slice]) -> Tensor:
    """These columns of (R, P): a view where they are neighbours, as the parameters of a layer mostly are."""
    if all(a.stop == b.start for a, b in pairwise(places)):
        return vectors[:, places[0].start : places[-1].stop]
    return torch.cat([vectors[:, place] for place in places], 1)


def _by_layer(state: State, vectors: Tensor) -> dict[str, Tensor]:
    """The variance of each layer's part of vectors (R, P)."""
    problem, ends = state.engine.problem, np.cumsum([0, *(p.numel() for p in state.engine.problem.parameters.values())])
    places = {name: slice(*ends[k : k + 2].tolist()) for k, name in enumerate(problem.parameters)}
    rows = [
        trace_variance(_columns(vectors, [places[name] for name in names]), state.alive)
        for names in problem.layers.values()
    ]
    return {part: torch.stack([row[part].cpu() for row in rows]) for part in rows[0]}


NAMED: dict[str, Recorder] = {
    r.name: r
    for r in (
        Recorder("loss", lambda s: s.losses),
        Recorder("minibatch_loss", lambda s: s.minibatch_losses),
        Recorder("gradient_norm", lambda s: _norms(s.full_gradients), needs_full_gradient=True),
        Recorder("gradient_norm_sq", lambda s: _norms(s.full_gradients).square(), needs_full_gradient=True),
        Recorder("minibatch_gradient_norm", lambda s: _norms(s.gradients)),
        Recorder("gradient_cosine", _cosines, needs_before=True),
        Recorder("accuracy", lambda s: s.accuracies, needs_classes=True),
        Recorder("weights", lambda s: s.weights, shape={"parameter": -1}, sees=(WEIGHTS,)),
        Recorder("gradient_variance", lambda s: trace_variance(s.gradients, s.alive), per="block", sees=(GRADIENTS,)),
        Recorder(
            "full_gradient_variance",
            lambda s: trace_variance(s.full_gradients, s.alive),
            per="block",
            sees=(),
            needs_full_gradient=True,
        ),
        Recorder(
            "layer_gradient_variance",
            lambda s: _by_layer(s, s.gradients),
            per="block",
            shape={"layer": -1},
            sees=(GRADIENTS,),
        ),
        Recorder(
            "layer_full_gradient_variance",
            lambda s: _by_layer(s, s.full_gradients),
            per="block",
            shape={"layer": -1},
            sees=(),
            needs_full_gradient=True,
        ),
    )
}


def _one(name: str | None, entry: Any) -> Recorder:
    if isinstance(entry, Recorder):
        return entry
    if isinstance(entry, str):
        if entry not in NAMED:
            raise InputError(
                f"record={entry!r} is not known; use one of {', '.join(NAMED)}, or a function of the state"
            )
        return NAMED[entry]
    if callable(entry):
        own = str(name or getattr(entry, "__name__", ""))
        if not own.isidentifier() or own in NAMED or own in TAKEN or own.startswith("block_"):
            raise InputError(f"a recorded function needs a name of its own: record={{'name': function}}; got {own!r}")
        return Recorder(own, entry)
    raise InputError(f"record: names, recorders or functions of the state, not {type(entry).__name__}")


def _with_axes(recorder: Recorder, problem: Problem) -> Recorder:
    return recorder if recorder.axes is None else replace(recorder, shape=recorder.axes(problem))


def _check(recorder: Recorder, problem: Problem, steps: int) -> None:
    if recorder.check is not None:
        recorder.check(problem)
    if recorder.needs_classes:
        _, targets = problem.samples.batch(torch.arange(1))
        labels = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
        if problem.loss_name != "logistic" and (problem.loss_name != "cross_entropy" or not labels):
            raise InputError(
                f"record={recorder.name!r} needs the loss 'logistic', or 'cross_entropy' with one class index per "
                f"sample; the loss is {problem.loss_name!r}, the targets of a sample "
                f"{getattr(targets, 'dtype', type(targets).__name__)} {tuple(getattr(targets, 'shape', ()))[1:]}"
            )
    if recorder.steps is not None and not all(0 <= t <= steps for t in recorder.steps):
        raise InputError(f"{recorder.name}: steps {list(recorder.steps)} must lie between 0 and {steps}")
