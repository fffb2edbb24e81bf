"""One piece of work: the trainings of one block of runs in one cell, from first weights to records.

At step t = 0 .. steps every run draws a new batch at its w_t and takes the gradient there; records speak of w_t and of
this gradient; then the rule leads to w_{t+1}. After the last step one more batch is drawn, to be looked at only.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.population import Population
from shotnoise.problem import Problem
from shotnoise.rules import SHARED
from shotnoise.samples import tree_map
from shotnoise.simulate import initial
from shotnoise.simulate.engines import Engine
from shotnoise.simulate.engines.engine import Batch
from shotnoise.simulate.layout import Piece
from shotnoise.simulate.plan import ALIVE, DIVERGED, NEVER, SKETCH, Plan, suffix
from shotnoise.simulate.recorders import Recorder
from shotnoise.simulate.state import State
from shotnoise.simulate.statistics import moments
from shotnoise.simulate.streams import BATCHES, INITIAL_WEIGHTS, REDRAWS, run_stream

Content = dict[str, NDArray[Any]]
Watch = Callable[[int, State], None]  # called after every step; raises to stop
NUMBERS_AHEAD = 2**20  # indices drawn at a time for all runs of a block
POPULATION_AHEAD = 2**14  # numbers drawn at a time for one run of a population: fixed, since it decides the stream


def run_piece(plan: Plan, piece: Piece, engine: Engine | None = None, watch: Watch | None = None) -> Content:
    """The records of one piece, by field of the plan's layout."""
    engine = plan.engine() if engine is None else engine
    rule_index, b = _cell(plan, piece)
    rule, rates, curvature = plan.rules[rule_index], plan.rates[rule_index], plan.curvature()
    key = () if plan.common_random_numbers else (b, rule_index)
    runs = range(piece.start, piece.stop)

    def streams(purpose: int) -> list[np.random.Generator]:
        return [run_stream(plan.seed, r, purpose, key) for r in runs]

    weights = initial.weights(plan.initial, plan.problem, len(runs), lambda: streams(INITIAL_WEIGHTS))
    memory = rule.start(weights)
    batches = _batches(plan, b, streams(BATCHES))
    others = _batches(plan, b, streams(REDRAWS)) if any(recorder.redraws for recorder in plan.recorders) else iter(())
    alive = torch.ones(len(runs), dtype=torch.bool, device=weights.device)
    diverged = np.full(len(runs), NEVER, np.int32)
    records = _Records(plan, piece)
    needs_before = any(recorder.needs_before for recorder in plan.recorders)
    full_first = any(recorder.needs_full_gradient for recorder in plan.recorders)
    before: Tensor | None = None
    for t in range(plan.steps + 1):
        losses, gradients = engine.minibatch(weights, next(batches))
        if not math.isfinite(float(losses.sum())):
            finite = losses.isfinite()
            fresh = (alive & ~finite).cpu().numpy()
            diverged[fresh] = t
            alive &= finite

        def redraw(t: int = t) -> Tensor:
            moved, copied = weights.clone(), {k: v if k == SHARED else v.clone() for k, v in memory.items()}
            rate = rates[min(t, plan.steps - 1)] if plan.steps else 0.0
            rule.step(moved, engine.minibatch(weights, next(others))[1], copied, float(rate), t, curvature)
            return moved

        state = State(engine, t, weights, gradients, losses, before, redraw, alive)
        if full_first and records.wants(t):
            _ = state.full  # once, with the gradient, before some recorder asks for the loss alone
        records.take(state)
        if watch is not None:
            watch(t, state)
        if t < plan.steps:
            rule.step(weights, gradients, memory, float(rates[t]), t, curvature)
        before = gradients if needs_before else None
    return records.content | {DIVERGED: diverged}


class _Records:
    """The arrays of one piece, filled step by step."""

    def __init__(self, plan: Plan, piece: Piece) -> None:
        self.plan, layout = plan, plan.layout
        self.content: Content = {
            name: np.full(layout.piece_shape(name, piece), np.nan if "float" in field.dtype else 0, field.dtype)
            for name, field in layout.fields.items()
        }
        self.places = {r.name: {t: i for i, t in enumerate(r.steps or plan.recorded)} for r in plan.recorders}
        self.row = {t: i for i, t in enumerate(plan.recorded)}

    def wants(self, t: int) -> bool:
        return any(t in places for places in self.places.values())

    def take(self, state: State) -> None:
        if state.step in self.row:
            self.content[ALIVE][self.row[state.step]] = int(state.alive.sum())
        for recorder in self.plan.recorders:
            place = self.places[recorder.name].get(state.step)
            if place is not None:
                self._keep(recorder, place, recorder.observe(state), state.alive)

    def _keep(self, recorder: Recorder, place: int, found: Any, alive: Tensor) -> None:
        if recorder.per == "block":
            for part, value in found.items():
                self.content[f"block_{recorder.name}{suffix(part)}"][place] = float(value)
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
    return _indices(plan, b, width, streams)


def _indices(plan: Plan, b: int, width: int, streams: list[np.random.Generator]) -> Iterator[Batch]:
    take = plan.sampling.draws(b, plan.problem.n, streams, width)
    ahead = min(plan.steps + 1, max(16, NUMBERS_AHEAD // (len(streams) * b)))
    while True:
        drawn = torch.from_numpy(np.ascontiguousarray(take(ahead).transpose(1, 0, 2))).to(plan.problem.device)
        yield from drawn


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
            x, y = tree_map(lambda t: t.view(len(streams), b, *t.shape[1:]), flat)
            yield x, y


def _cell(plan: Plan, piece: Piece) -> tuple[int, int]:
    """Position of the rule, and the batch size."""
    others = [position for name, position in piece.cell.items() if name != "batch_size"]
    return (others[0] if others else 0), plan.batch_sizes[piece.cell["batch_size"]]
