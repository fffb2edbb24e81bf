"""How long a plan will take on this machine, from the first steps of one block of every kind; nothing of them is kept.

    seconds of a block = setup + recorded steps * r + other steps * s

with r and s the means over a few steps that are recorded, and over a few that are not.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shotnoise.simulate.block import run_piece
from shotnoise.simulate.layout import Piece
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.processes import one_thread
from shotnoise.simulate.state import State
from shotnoise.simulate.verb import WORTH_WORKERS

BUDGET = 1.5  # seconds for all measurements together, where single steps are not too slow for it
MOST = 50  # steps of a measurement after the first; there is at least one


@dataclass(frozen=True)
class Estimate:
    """Seconds of work for one core, and seconds until so many workers have done it."""

    core_seconds: float
    seconds: float
    workers: int


def together(plan: Plan, seconds: Sequence[float], workers: int | None = None) -> Estimate:
    """Pieces that take so many seconds each, all of them; `workers` as in `shotnoise.simulate`."""
    total = sum(seconds)
    if workers is None:
        workers = _cores() if total > WORTH_WORKERS and plan.problem.device.type == "cpu" else 1
    count = max(1, min(workers, len(seconds)))
    return Estimate(total, max([total / count, *seconds]), count)


def piece_seconds(plan: Plan, budget: float = BUDGET) -> list[float]:
    """Seconds of each piece on one core. Cells with one batch size and rules of one class are taken to be alike."""
    layout, sizes = plan.layout, plan.batch_sizes
    cells = range(layout.pieces // layout.blocks)
    kinds = [(type(plan.rules[cell // len(sizes)]), sizes[cell % len(sizes)]) for cell in cells]
    examples = {kind: layout.piece(cell * layout.blocks) for cell, kind in enumerate(kinds)}
    _steps(plan, layout.piece(0), [plan.steps], 0.0)  # the first one of a process is slow
    whole = {kind: _of_block(plan, piece, budget / len(examples)) for kind, piece in examples.items()}
    pieces = map(layout.piece, range(layout.pieces))
    return [whole[kinds[p.index // layout.blocks]] * (p.stop - p.start) / plan.block for p in pieces]


def _of_block(plan: Plan, piece: Piece, budget: float) -> float:
    """Seconds of a whole block on one core."""
    recorded, others = len(plan.recorded), plan.steps + 1 - len(plan.recorded)
    first, each = _steps(plan, piece, range(min(MOST + 1, recorded)), budget / 2)  # no more memory than at work
    unrecorded = _steps(plan, piece, [plan.steps], budget / 2)[1] if others else 0.0
    return first + (recorded - 1) * each + others * unrecorded


def _steps(plan: Plan, piece: Piece, recorded: Sequence[int], budget: float) -> tuple[float, float]:
    """Seconds of the first step, with what comes before it, and the mean of the next ones."""
    start, seen = time.perf_counter(), dict[int, float]()  # some steps are made many at a time

    def watch(t: int, state: State) -> None:
        seen[t] = time.perf_counter() - start
        if t >= min(MOST, recorded[-1]) or (t >= 1 and seen[t] > budget):
            raise _EnoughError

    with one_thread(), contextlib.suppress(_EnoughError):
        run_piece(replace(plan, recorded=tuple(recorded)), piece, watch=watch)
    last = max(seen)
    return seen[0], (seen[last] - seen[0]) / max(1, last)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _EnoughError(Exception):
    """The measurement is over."""
