"""Timing of ensembles: microseconds per run-step, at the number of runs side by side that suits a method best."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from protocol import FEWEST, clocked

CHUNKS = (32, 64, 128, 256, 512)
SGEMM = "sgemm"


@dataclass(frozen=True)
class Work:
    """A call and the run-steps that it takes."""

    call: Callable[[], Any]
    run_steps: int
    runs: int | None = None  # side by side


Maker = Callable[[int], Work]


def at_best_chunks(makers: Mapping[str, Maker]) -> dict[str, Work]:
    return {name: make(best_chunk(make)) for name, make in makers.items()}


def best_chunk(make: Maker) -> int:
    """The number of runs side by side with the cheapest run-step, the sizes taking turns."""
    works = {runs: make(runs) for runs in CHUNKS}
    taken = clocked({str(runs): work.call for runs, work in works.items()}, FEWEST)
    return min(CHUNKS, key=lambda runs: min(taken[str(runs)])[0] / works[runs].run_steps)


def timed(works: Mapping[str, Work], rounds: int) -> dict[str, dict[str, Any]]:
    """By method: CPU microseconds per run-step (smallest and median), and the largest share of cores it ever kept."""
    taken = clocked({name: work.call for name, work in works.items()}, rounds)
    rows = {}
    for name, work in works.items():
        cpu = sorted(seconds for seconds, _ in taken[name])
        rows[name] = {
            "us": 1e6 * cpu[0] / work.run_steps,
            "us_median": 1e6 * cpu[len(cpu) // 2] / work.run_steps,
            "us_wall": 1e6 * min(wall for _, wall in taken[name]) / work.run_steps,
            "cores": max(seconds / wall for seconds, wall in taken[name]),
            "calls": len(cpu),
            "run_steps": work.run_steps,
            "runs": work.runs,
        }
    return rows


def beside_sgemm(works: Mapping[str, Work], rounds: int, size: int = 2048) -> dict[str, Any]:
    """`timed`, and what torch reaches for a product of two large float32 matrices, at best, in the same rounds.

    Beside the works rather than after them: with what else is on the machine its clock moves by a tenth in minutes.
    """
    a, b = torch.randn(2, size, size)
    rows = timed({**works, SGEMM: Work(lambda: torch.mm(a, b), 1)}, rounds)
    return {"sgemm_gflops": 2e-3 * size**3 / rows.pop(SGEMM)["us"], "rows": rows}
