"""Phases of the loss process: where the spread of Delta_t over batches rises and falls along the training.

    x_rt = log sd(Delta_t | w_t of run r),     difference between steps i < j: mean_r (x_rj - x_ri), paired over runs

A rise or a fall between two steps is seen when the paired difference exceeds t(R - 1; alarm / (T (T - 1))) standard
errors, the threshold at which all T (T - 1) / 2 differences, either way, have the right sign at once with probability
1 - alarm. Walking along the steps, a phase ends at its extreme once a later step lies beyond that threshold on the
other side of it. So with probability at least 1 - alarm the curve of the geometric mean spread turns at least as
often as is said. This takes the means over runs for normal (tens of runs); a run whose spread is zero somewhere is
left out.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.simulate.loss_process import CHANGE, alive_at, check

FEWEST = 8  # runs, for a paired difference with an error worth the name
RISE, FALL = "rise", "fall"


@dataclass(frozen=True)
class Phase:
    """From one turning point to the next: places of the steps, log of the factor, and its paired t statistic."""

    first: int
    last: int
    change: float
    t: float

    @property
    def kind(self) -> str:
        return RISE if self.change > 0 else FALL


def phases(runs: xr.Dataset, *, alarm: float = 1e-3) -> xr.Dataset:
    """Rises and falls of the spread of Delta_t given the weights; see the module for the rule and its error.

    runs: as for `simulate.loss_process`. alarm: the probability with which, in one cell, more turns are reported than
    there are.

    Returns by `phase`: `phase_kind` ("rise" or "fall", "" beyond the last), `phase_start` and `phase_end` (steps),
    `phase_factor` by which the geometric mean of the spread changes, `phase_t`; by step `loss_change_spread`, that
    mean, with its standard error; `phase_count`; `phase_runs`, how many were looked at.
    Raises InputError for runs without redraws, an `alarm` out of range, or fewer than 8 usable runs.
    """
    step = check(runs)
    if not 0 < alarm < 1:
        raise InputError(f"alarm={alarm}: a probability between 0 and 1")
    values = alive_at(runs, step)[CHANGE]
    cells = [str(d) for d in values.dims if d not in ("run", step, "redraw")]
    spread = values.transpose(*cells, "run", step, "redraw").std("redraw", ddof=1).values
    steps = runs[step].values
    shape = spread.shape[:-2]
    seen: dict[tuple[int, ...], tuple[list[Phase], NDArray[np.float64]]] = {}
    for place in np.ndindex(shape):
        usable = spread[place][(np.isfinite(spread[place]) & (spread[place] > 0)).all(1)]
        if len(usable) < FEWEST:
            raise InputError(
                f"{len(usable)} runs have a spread that is finite and positive at every step; phases need {FEWEST}"
            )
        logs = np.log(usable)
        seen[place] = turning_phases(logs, alarm), logs
    return _dressed(seen, shape, cells, steps, runs, alarm)


def turning_phases(logs: NDArray[np.float64], alarm: float) -> list[Phase]:
    """Phases of the mean over runs of (R, T); none where nothing is seen to change.

    >>> rng = np.random.default_rng(0)
    >>> up_and_down = np.array([0.0, 1.0, 2.0, 1.0, 0.0, -1.0]) + 0.1 * rng.normal(size=(20, 6))
    >>> [(p.kind, p.first, p.last) for p in turning_phases(up_and_down, 1e-3)]
    [('rise', 0, 2), ('fall', 2, 5)]
    """
    count, T = logs.shape
    limit = -float(special.stdtrit(count - 1, alarm / max(1, T * (T - 1))))
    mean = logs.mean(0)

    def t_of(i: int, j: int) -> float:
        d = logs[:, j] - logs[:, i]
        error = d.std(ddof=1) / np.sqrt(count)
        return float(d.mean() / error) if error > 0 else float(np.sign(d.mean()) * np.inf) if d.mean() else 0.0

    turns, extreme, direction = [0], 0, 0
    lowest = highest = 0  # before the first direction is known
    for j in range(1, T):
        if direction == 0:
            if t_of(lowest, j) > limit:
                direction, extreme = 1, j
            elif t_of(highest, j) < -limit:
                direction, extreme = -1, j
            lowest, highest = (j if mean[j] < mean[lowest] else lowest), (j if mean[j] > mean[highest] else highest)
        elif direction * (mean[j] - mean[extreme]) > 0:
            extreme = j
        elif direction * t_of(extreme, j) < -limit:
            turns.append(extreme)
            direction, extreme = -direction, j
    if direction == 0:
        return []
    turns.append(extreme)
    return [Phase(i, j, float(mean[j] - mean[i]), t_of(i, j)) for i, j in pairwise(turns)]


def _dressed(
    seen: dict[tuple[int, ...], tuple[list[Phase], NDArray[np.float64]]],
    shape: tuple[int, ...],
    cells: list[str],
    steps: NDArray[np.int64],
    runs: xr.Dataset,
    alarm: float,
) -> xr.Dataset:
    most = max(1, *(len(found) for found, _ in seen.values()))
    numbers = {name: np.full((*shape, most), np.nan) for name in ("start", "end", "factor", "t")}
    kinds = np.full((*shape, most), "", dtype="<U4")
    spread, error = (np.full((*shape, len(steps)), np.nan) for _ in range(2))
    count, used = (np.zeros(shape, int) for _ in range(2))
    for place, (found, logs) in seen.items():
        count[place], used[place] = len(found), len(logs)
        spread[place] = np.exp(logs.mean(0))
        error[place] = spread[place] * logs.std(0, ddof=1) / np.sqrt(len(logs))
        for k, phase in enumerate(found):
            kinds[*place, k] = phase.kind
            row = (steps[phase.first], steps[phase.last], np.exp(phase.change), phase.t)
            for name, value in zip(numbers, row, strict=True):
                numbers[name][*place, k] = value
    variables = {f"phase_{name}": ((*cells, "phase"), values) for name, values in numbers.items()}
    variables |= {
        "phase_kind": ((*cells, "phase"), kinds),
        "phase_count": (tuple(cells), count),
        "phase_runs": (tuple(cells), used),
        "loss_change_spread": ((*cells, "step"), spread),
        "loss_change_spread_stderr": ((*cells, "step"), error),
    }
    coordinates = {d: runs[d].values for d in cells} | {"step": steps, "phase": np.arange(most)}
    return results.describe(xr.Dataset(variables, coordinates, {**runs.attrs, "alarm": alarm}))
