"""One piece of work: the trainings of one block of runs in one cell, from first weights to records.

At step t = 0 .. steps every run draws a new batch at its w_t and takes the gradient there; records speak of w_t and of
this gradient; then the rule leads to w_{t+1}. After the last step one more batch is drawn, to be looked at only.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.population import Population
from shotnoise.problem import Problem
from shotnoise.rules import SHARED
from shotnoise.samples import tree_map
from shotnoise.simulate import initial
from shotnoise.simulate.engines import Engine
from shotnoise.simulate.engines.engine import FULL, GRADIENTS, WEIGHTS, Batch
from shotnoise.simulate.layout import Piece
from shotnoise.simulate.plan import ALIVE, DIVERGED, NEVER, SKETCH, Plan, suffix
from shotnoise.simulate.recorders import NAMED, Recorder
from shotnoise.simulate.state import State
from shotnoise.simulate.statistics import moments
from shotnoise.simulate.streams import BATCHES, INITIAL_WEIGHTS, REDRAWS, run_stream

Content = dict[str, NDArray[Any]]
Watch = Callable[
    [int, State], None
]  # called after a step, or several at once, of which it sees the last; raises to stop
KEPT_BYTES = 4 * 2**20  # of the states that are handed back from several steps
NUMBERS_AHEAD = 2**20  # indices drawn at a time for all runs of a block
POPULATION_AHEAD = 2**14  # numbers drawn at a time for one run of a population: fixed, since it decides the stream


def run_piece(plan: Plan, piece: Piece, engine: Engine | None = None, watch: Watch | None = None) -> Content:
    """The records of one piece, by field of the plan's layout."""
    training = _Training(plan, piece, plan.engine() if engine is None else engine)
    while training.t <= plan.steps:
        first_alone = watch is not None and training.t == 0  # who watches may want to time what comes before the others
        state = training.one() if training.trainer is None else training.several(1 if first_alone else plan.steps + 1)
        if watch is not None:
            watch(state.step, state)
    return training.records.content | {DIVERGED: training.diverged}


class _Training:
    """The runs of one piece on their way, before step t."""

    def __init__(self, plan: Plan, piece: Piece, engine: Engine) -> None:
        self.plan, self.engine, self.t = plan, engine, 0
        rule_index, b = _cell(plan, piece)
        self.rule, self.rates, self.curvature = plan.rules[rule_index], plan.rates[rule_index], plan.curvature()
        key = () if plan.common_random_numbers else (b, rule_index)
        runs = range(piece.start, piece.stop)

        def streams(purpose: int) -> list[np.random.Generator]:
            return [run_stream(plan.seed, r, purpose, key) for r in runs]

        self.weights = initial.weights(plan.initial, plan.problem, len(runs), lambda: streams(INITIAL_WEIGHTS))
        self.memory = self.rule.start(self.weights)
        self.batches = _batches(plan, b, streams(BATCHES))
        redraws = any(recorder.redraws for recorder in plan.recorders)
        self.others = _batches(plan, b, streams(REDRAWS)) if redraws else None
        self.alive = torch.ones(len(runs), dtype=torch.bool, device=self.weights.device)
        self.diverged = np.full(len(runs), NEVER, np.int32)
        self.trainer = engine.trainer(self.rule) if isinstance(self.batches, _Indices) else None
        self.records = _Records(plan, piece, () if self.trainer is None else self.trainer.observed)
        self.before: Tensor | None = None
        self.needs_before = any(recorder.needs_before for recorder in plan.recorders)
        self.full_first = any(recorder.needs_full_gradient for recorder in plan.recorders)

    def one(self) -> State:
        """One step by the engine's gradient and the rule."""
        state = self._state(next(self.batches))
        if self.full_first and self.records.wants(self.t):
            _ = state.full  # once, with the gradient, before some recorder asks for the loss alone
        self.records.take(state)
        if self.t < self.plan.steps:
            rate = float(self.rates[self.t])
            self.rule.step(self.weights, state.gradients, self.memory, rate, self.t, self.curvature)
        self.before = state.gradients if self.needs_before else None
        self.t += 1
        return state

    def several(self, most: int) -> State:
        """At most so many steps, and at least one, by the engine's trainer, the same whatever is recorded.

        A step at which some recorder needs more of the state than the trainer keeps of it is made alone.
        """
        assert self.trainer is not None and isinstance(self.batches, _Indices)
        t, alone = self.t, self.records.alone
        place = bisect_left(alone, t)
        here = alone[place : place + 1] == [t]
        until = t + 1 if here else alone[place] if place < len(alone) else self.plan.steps + 1
        indices = self.batches.ahead(self.records.room(t, min(most, until - t), self.weights))
        if here:
            self.records.take(self._state(indices[:, 0]))
            self.before = None if self.before is None else self.before.clone()  # who has seen it may keep it
        count = indices.shape[1]
        if self.needs_before and self.before is None:
            self.before = torch.full_like(self.weights, torch.nan)
        wanted = self.records.wanted(t, count)
        parts = {} if here else self.records.parts(t, count)
        rates = self.rates[t : t + count]
        found, kept = self.trainer(self.weights, self.memory, indices, rates, t, wanted, parts, self.before)
        losses = found["minibatch_loss"]
        finite = math.isfinite(float(losses.sum()))
        for k in range(count):
            if not finite:
                self._look_for_divergence(t + k, losses[k])
            self.records.keep(t + k, {name: found[name][k] for name in wanted if wanted[name][k]}, self.alive)
            if not here and self.records.looks(t + k):
                self.records.take(
                    self._looked_back(t + k, losses[k], {part: of[k] for part, of in kept.items() if k in of})
                )
        self.t += count
        return self._seen(self.t - 1, losses[-1], torch.empty(0))

    def _state(self, batch: Batch) -> State:
        """With the losses and gradients on a batch."""
        losses, gradients = self.engine.minibatch(self.weights, batch)
        self._look_for_divergence(self.t, losses)
        return self._seen(self.t, losses, gradients)

    def _seen(self, t: int, losses: Tensor, gradients: Tensor) -> State:
        redraw = _undeclared if self.others is None else partial(self._redraw, t)
        return State(self.engine, t, self.weights, gradients, losses, self.before, redraw, self.alive)

    def _looked_back(self, t: int, losses: Tensor, kept: Mapping[str, Any]) -> State:
        """The state at a step gone by, of which these parts were kept."""
        weights, gradients = (kept.get(part, torch.empty(0)) for part in (WEIGHTS, GRADIENTS))
        state = State(self.engine, t, weights, gradients, losses, None, _undeclared, self.alive)
        if FULL in kept:
            state.full = kept[FULL]
        return state

    def _look_for_divergence(self, t: int, losses: Tensor) -> None:
        if not math.isfinite(float(losses.sum())):
            finite = losses.isfinite()
            fresh = (self.alive & ~finite).cpu().numpy()
            self.diverged[fresh] = t
            self.alive = self.alive & finite

    def _redraw(self, t: int) -> Tensor:
        """The weights after an update from here on another batch."""
        assert self.others is not None
        moved, copied = self.weights.clone(), {k: v if k == SHARED else v.clone() for k, v in self.memory.items()}
        rate = self.rates[min(t, self.plan.steps - 1)] if self.plan.steps else 0.0
        gradients = self.engine.minibatch(self.weights, next(self.others))[1]
        self.rule.step(moved, gradients, copied, float(rate), t, self.curvature)
        return moved


def _undeclared() -> Tensor:
    raise InputError("a recorder that asks for state.redraw() says so: simulate.recorders.Recorder(..., redraws=1)")


class _Records:
    """The arrays of one piece, filled step by step. observed: what an engine sees by itself, by name."""

    def __init__(self, plan: Plan, piece: Piece, observed: Collection[str]) -> None:
        self.plan, layout = plan, plan.layout
        self.content: Content = {
            name: np.full(layout.piece_shape(name, piece), np.nan if "float" in field.dtype else 0, field.dtype)
            for name, field in layout.fields.items()
        }
        self.places = {r.name: {t: i for i, t in enumerate(r.steps or plan.recorded)} for r in plan.recorders}
        self.row = {t: i for i, t in enumerate(plan.recorded)}
        self.observed = [r for r in plan.recorders if r.name in observed and r is NAMED.get(r.name)]
        self.others = [r for r in plan.recorders if r not in self.observed]
        apart = [r for r in self.others if r.redraws or r.needs_before]
        self.alone = sorted({t for r in apart for t in self.places[r.name]})
        self.looked = sorted({t for r in self.others for t in self.places[r.name]} - set(self.alone))
        self._parts: dict[str, set[int]] = {}
        for recorder in self.others:
            for part in (*recorder.sees, *([FULL] if recorder.needs_full_gradient else [])):
                self._parts.setdefault(part, set()).update(self.places[recorder.name])

    def wants(self, t: int) -> bool:
        return any(t in places for places in self.places.values())

    def parts(self, t: int, count: int) -> dict[str, NDArray[np.bool_]]:
        """At which of the steps t, t + 1, ... which parts of the state are looked at."""
        marked = {part: np.array([s in steps for s in range(t, t + count)]) for part, steps in self._parts.items()}
        return {part: when for part, when in marked.items() if when.any()}

    def looks(self, t: int) -> bool:
        """Whether some recorder looks at what is kept of step t."""
        place = bisect_left(self.looked, t)
        return self.looked[place : place + 1] == [t]

    def room(self, t: int, most: int, weights: Tensor) -> int:
        """How many steps from t on, at least one, fit KEPT_BYTES with what is kept of them."""
        place = bisect_left(self.looked, t) + max(1, KEPT_BYTES // (weights.nbytes * max(1, len(self._parts))))
        return min(most, self.looked[place] - t) if place < len(self.looked) else most

    def wanted(self, t: int, count: int) -> dict[str, NDArray[np.bool_]]:
        """At which of the steps t, t + 1, ... a recorder that the engine stands in for looks, by name."""
        steps = range(t, t + count)
        return {r.name: np.array([s in self.places[r.name] for s in steps]) for r in self.observed}

    def keep(self, t: int, values: Mapping[str, Tensor], alive: Tensor) -> None:
        """What an engine has seen at step t."""
        self._count(t, alive)
        for recorder in self.observed:
            if recorder.name in values:
                self._keep(recorder, self.places[recorder.name][t], values[recorder.name], alive)

    def take(self, state: State) -> None:
        """What the recorders see that need the state itself."""
        self._count(state.step, state.alive)
        for recorder in self.others:
            place = self.places[recorder.name].get(state.step)
            if place is not None:
                self._keep(recorder, place, recorder.observe(state), state.alive)

    def _count(self, t: int, alive: Tensor) -> None:
        if t in self.row:
            self.content[ALIVE][self.row[t]] = int(alive.sum())

    def _keep(self, recorder: Recorder, place: int, found: Any, alive: Tensor) -> None:
        if recorder.per == "block":
            for part, value in found.items():
                self.content[f"block_{recorder.name}{suffix(part)}"][place] = value.cpu().numpy()
            return
        if self.plan.raw:
            self.content[recorder.name][:, place] = found.detach().cpu().numpy()
            return
        for part, value in moments(found[alive], self.plan.sketch_points).items():
            array = self.content[f"block_{recorder.name}_{part}"]
            array[(slice(None),) * len(SKETCH[part]) + (place,)] = value.cpu().numpy()


def _batches(plan: Plan, b: int, streams: list[np.random.Generator]) -> Iterator[Batch]:
    width = max(plan.batch_sizes) if plan.common_random_numbers else b
    if plan.population is not None:
        return _fresh(plan.population, plan.problem, b, width, streams)
    return _Indices(plan, b, width, streams)


class _Indices(Iterator[Batch]):
    """The batches of all runs as sample indices, drawn many steps at a time."""

    def __init__(self, plan: Plan, b: int, width: int, streams: list[np.random.Generator]) -> None:
        self.take, self.device = plan.sampling.draws(b, plan.problem.n, streams, width), plan.problem.device
        self.steps = min(plan.steps + 1, max(16, NUMBERS_AHEAD // (len(streams) * b)))
        self.drawn, self.used = np.empty((len(streams), 0, b), np.int64), 0

    def __next__(self) -> Tensor:
        """(R, b)"""
        return self.ahead(1)[:, 0]

    def ahead(self, most: int) -> Tensor:
        """The next steps (R, T, b), 1 <= T <= most."""
        if self.used == self.drawn.shape[1]:
            self.drawn, self.used = self.take(self.steps), 0
        some = slice(self.used, self.used + most)
        found = self.drawn[:, some]
        self.used += found.shape[1]
        if found.strides[2] != found.itemsize:
            found = np.ascontiguousarray(found)
        return torch.from_numpy(found).to(self.device)


def _fresh(
    population: Population, problem: Problem, b: int, width: int, streams: list[np.random.Generator]
) -> Iterator[Batch]:
    numbers = sum(t[0].numel() for t in population.draw(np.random.default_rng(0), 1))
    ahead = max(1, POPULATION_AHEAD // (width * max(1, numbers)))
    while True:
        drawn = [population.draw(rng, ahead * width) for rng in streams]
        inputs, targets = (torch.stack(part).to(problem.device) for part in zip(*drawn, strict=True))
        for k in range(ahead):
            some = slice(k * width, k * width + b)
            flat = population.finish(inputs[:, some].flatten(0, 1), targets[:, some].flatten(0, 1))
            problem.loss_spec.check_targets(flat[1])
            x, y = tree_map(lambda t: t.view(len(streams), b, *t.shape[1:]), flat)
            yield x, y


def _cell(plan: Plan, piece: Piece) -> tuple[int, int]:
    """Position of the rule, and the batch size."""
    others = [position for name, position in piece.cell.items() if name != "batch_size"]
    return (others[0] if others else 0), plan.batch_sizes[piece.cell["batch_size"]]
