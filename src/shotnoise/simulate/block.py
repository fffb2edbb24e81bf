"""One piece of work: the trainings of one block of runs in one cell, from first weights to records.

At step t = 0 .. steps every run draws a new batch at its w_t and takes the gradient there; records speak of w_t and of
this gradient; then the rule leads to w_{t+1}. After the last step one more batch is drawn, to be looked at only.
"""

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
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
from shotnoise.simulate.plan import DIVERGED, NEVER, Plan
from shotnoise.simulate.records import Content, Records
from shotnoise.simulate.state import State
from shotnoise.simulate.streams import BATCHES, INITIAL_WEIGHTS, REDRAWS, run_streams

# Called after a step, or several at once, of which it sees the last; raises to stop.
Watch = Callable[[int, State], None]
SAMPLES_BYTES = 4 * 2**20  # of a population's samples that are handed to the engine at a time
# Indices drawn at a time for all runs of a block: few enough for the cache, but so many for each run that moving its
# weights to the engine and back costs little beside them.
NUMBERS_AHEAD, SAMPLES_AHEAD = 2**17, 2000
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
            return run_streams(plan.seed, runs, purpose, key)

        self.weights = initial.weights(plan.initial, plan.problem, len(runs), lambda: streams(INITIAL_WEIGHTS))
        self.memory = self.rule.start(self.weights)
        self.batches = _batches(plan, b, streams(BATCHES))
        redraws = any(recorder.redraws for recorder in plan.recorders)
        self.others = _batches(plan, b, streams(REDRAWS)) if redraws else None
        self.alive = torch.ones(len(runs), dtype=torch.bool, device=self.weights.device)
        self.diverged = np.full(len(runs), NEVER, np.int32)
        self.trainer = engine.trainer(self.rule)
        self.records = Records(plan, piece, () if self.trainer is None else self.trainer.observed)
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
        assert self.trainer is not None
        t, alone = self.t, self.records.alone
        place = bisect_left(alone, t)
        here = alone[place : place + 1] == [t]
        until = t + 1 if here else alone[place] if place < len(alone) else self.plan.steps + 1
        batches = self.batches.ahead(self.records.room(t, min(most, until - t), self.weights))
        if here:
            self.records.take(self._state(_first(batches)))
            self.before = None if self.before is None else self.before.clone()  # who has seen it may keep it
        count = (batches if isinstance(batches, Tensor) else batches[0]).shape[1]
        if self.needs_before and self.before is None:
            self.before = torch.full_like(self.weights, torch.nan)
        wanted = self.records.wanted(t, count)
        parts = {} if here else self.records.parts(t, count)
        rates = self.rates[t : t + count]
        found, kept = self.trainer(self.weights, self.memory, batches, rates, t, wanted, parts, self.before)
        losses = found["minibatch_loss"]
        finite = math.isfinite(float(losses.sum()))
        for k in range(count):
            if finite and t + k not in self.records.steps:
                continue
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


class _Ahead(Iterator[Batch]):
    """The batches of all runs, step by step or several steps at a time."""

    @abstractmethod
    def ahead(self, most: int) -> Batch:
        """Those of the next steps, (R, T, b, ...) with 1 <= T <= most."""

    def __next__(self) -> Batch:
        """(R, b, ...)"""
        return _first(self.ahead(1))


def _first(batches: Batch) -> Batch:
    return batches[:, 0] if isinstance(batches, Tensor) else (batches[0][:, 0], batches[1][:, 0])


def _batches(plan: Plan, b: int, streams: list[np.random.Generator]) -> _Ahead:
    width = max(plan.batch_sizes) if plan.common_random_numbers else b
    if plan.population is not None:
        return _Fresh(plan.population, plan.problem, b, width, streams)
    return _Indices(plan, b, width, streams)


class _Indices(_Ahead):
    """Sample indices, drawn many steps at a time."""

    def __init__(self, plan: Plan, b: int, width: int, streams: list[np.random.Generator]) -> None:
        self.take, self.device = plan.sampling.draws(b, plan.problem.n, streams, width), plan.problem.device
        worthwhile = min(SAMPLES_AHEAD // width, plan.problem.parameter_count // 5)
        most = max(16, worthwhile, NUMBERS_AHEAD // (len(streams) * width))
        total = plan.steps + 1
        self.steps = math.ceil(total / math.ceil(total / most))  # parts as equal as can be: little is drawn in vain
        self.drawn, self.used = np.empty((len(streams), 0, b), np.int64), 0

    def ahead(self, most: int) -> Tensor:
        if self.used == self.drawn.shape[1]:
            self.drawn, self.used = self.take(self.steps), 0
        some = slice(self.used, self.used + most)
        found = self.drawn[:, some]
        self.used += found.shape[1]
        if found.strides[2] != found.itemsize:
            found = np.ascontiguousarray(found)
        return torch.from_numpy(found).to(self.device)


class _Fresh(_Ahead):
    """Samples of a population, drawn for several steps at a time."""

    def __init__(
        self, population: Population, problem: Problem, b: int, width: int, streams: list[np.random.Generator]
    ) -> None:
        self.population, self.problem, self.b, self.width, self.streams = population, problem, b, width, streams
        numbers = sum(t[0].numel() for t in population.draw(np.random.default_rng(0), 1))
        self.steps = max(1, POPULATION_AHEAD // (width * max(1, numbers)))
        self.fitting = max(1, SAMPLES_BYTES // (len(streams) * b * max(1, numbers) * problem.dtype.itemsize))
        self.drawn, self.used = list[Tensor](), self.steps

    def ahead(self, most: int) -> tuple[Tensor, Tensor]:
        if self.used == self.steps:
            drawn = [self.population.draw(rng, self.steps * self.width) for rng in self.streams]
            self.drawn = [torch.stack(part).to(self.problem.device) for part in zip(*drawn, strict=True)]
            self.used = 0
        count = min(most, self.steps - self.used, self.fitting)
        found = [self._finished(self.used + k) for k in range(count)]
        self.used += count
        inputs, targets = (torch.stack(part, 1) for part in zip(*found, strict=True))
        return inputs, targets

    def _finished(self, k: int) -> tuple[Tensor, Tensor]:
        """Step k of those drawn, (R, b, ...): by itself, for products of other shapes round differently."""
        some = slice(k * self.width, k * self.width + self.b)
        flat = self.population.finish(*(part[:, some].flatten(0, 1) for part in self.drawn))
        self.problem.loss_spec.check_targets(flat[1])
        x, y = tree_map(lambda t: t.view(len(self.streams), self.b, *t.shape[1:]), flat)
        return x, y


def _cell(plan: Plan, piece: Piece) -> tuple[int, int]:
    """Position of the rule, and the batch size."""
    others = [position for name, position in piece.cell.items() if name != "batch_size"]
    return (others[0] if others else 0), plan.batch_sizes[piece.cell["batch_size"]]
