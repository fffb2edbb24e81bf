"""What is kept of a piece: the records of its runs, and at which steps who looks at what."""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.simulate.engines.engine import FULL
from shotnoise.simulate.layout import Piece
from shotnoise.simulate.plan import ALIVE, SKETCH, Plan, suffix
from shotnoise.simulate.recorders import NAMED, Recorder
from shotnoise.simulate.state import State
from shotnoise.simulate.statistics import moments

Content = dict[str, NDArray[Any]]
KEPT_BYTES = 4 * 2**20  # of the states that are handed back from several steps


class Records:
    """The arrays of one piece, filled step by step. observed: what an engine sees by itself, by name."""

    def __init__(self, plan: Plan, piece: Piece, observed: Collection[str]) -> None:
        self.plan, layout = plan, plan.layout
        self.content: Content = {
            name: np.full(layout.piece_shape(name, piece), np.nan if "float" in field.dtype else 0, field.dtype)
            for name, field in layout.fields.items()
        }
        self.row = {t: i for i, t in enumerate(plan.recorded)}
        self.places = {r.name: {t: i for i, t in enumerate(r.steps or plan.recorded)} for r in plan.recorders}
        self.steps = {*self.row, *(t for places in self.places.values() for t in places)}  # at which anything is noted
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
