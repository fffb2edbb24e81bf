"""Ensembles of stochastic trainings: `shotnoise.simulate(problem, ...)`, and what belongs to it."""

import os
from collections.abc import Callable

import xarray as xr

from shotnoise.simulate import outcome, recorders, verb
from shotnoise.simulate.curvature_recorders import curvature
from shotnoise.simulate.engines import ENGINES
from shotnoise.simulate.loss_process import loss_process
from shotnoise.simulate.phases import phases
from shotnoise.simulate.plan import Plan, plan
from shotnoise.simulate.state import State
from shotnoise.simulate.store import Inventory, inventory, read
from shotnoise.simulate.verb import Status


class Simulate:
    """The verb, and beside it what looks at its results: `simulate.load`, `simulate.summary`, `simulate.paired`."""

    State, Plan, Status, recorders, engines = State, Plan, Status, recorders, tuple(ENGINES)

    __call__ = staticmethod(verb.simulate)
    plan = staticmethod(plan)
    execute = staticmethod(verb.execute)
    summary = staticmethod(outcome.summary)
    paired = staticmethod(outcome.paired)
    weights = staticmethod(recorders.weights)
    loss_change = staticmethod(recorders.loss_change)
    curvature = staticmethod(curvature)
    loss_process = staticmethod(loss_process)
    phases = staticmethod(phases)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> xr.Dataset:
        """What is finished of the results in a store, opened lazily; runs that are missing are NaN.

        The same as what `simulate` returned, once all is finished. Raises DataError where there is no such store.
        """
        return outcome.assemble(read(path))

    @staticmethod
    def check(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Inventory:
        """What a store has and lacks: every finished piece is read and compared with its checksum."""
        return inventory(path, progress)


__all__ = ["Inventory", "Plan", "Simulate", "State", "Status"]
