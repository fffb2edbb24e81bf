"""An ensemble of trainings as a plan: everything checked and resolved before the first step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shotnoise import schedules
from shotnoise.errors import InputError
from shotnoise.population import Population
from shotnoise.problem import Problem
from shotnoise.rules import Clipped, NaturalGradient, Rule
from shotnoise.sampling import CyclicEpochs, Online, ReshuffledEpochs, Sampling, WithReplacement
from shotnoise.simulate import initial as initial_weights
from shotnoise.simulate import recorders as recording
from shotnoise.simulate.curvature import RegressionCurvature
from shotnoise.simulate.engines import Engine, choose
from shotnoise.simulate.initial import Initial
from shotnoise.simulate.layout import Field, Layout
from shotnoise.simulate.recorders import Recorder
from shotnoise.simulate.state import State

CACHE_BYTES = 16 * 2**20  # what the weights, gradients and activations of one block may take
FEWEST, MOST = 32, 1024  # runs per block
RAW_IN_MEMORY, RAW_ON_DISK = 2 * 2**30, 16 * 2**30  # bytes up to which every run's values are kept
ALIVE = "block_runs"  # runs of the block that have not diverged
DIVERGED = "divergence_step"
NEVER = -1  # value of `divergence_step`
SKETCH = {"count": (), "mean": (), "variance": (), "variance_stderr": (), "sketch": ("sketch",)}


@dataclass(frozen=True)
class Plan:
    """What `simulate` was asked for, checked. Holds no results and no files; the same plan on every worker."""

    problem: Problem
    population: Population | None
    rules: tuple[Rule, ...]
    batch_sizes: tuple[int, ...]
    steps: int
    runs: int
    initial: Initial
    sampling: Sampling
    seed: int
    recorders: tuple[Recorder, ...]
    recorded: tuple[int, ...]
    common_random_numbers: bool
    block: int
    raw: bool
    engine_name: str
    instruction_set: str  # of this process; a worker elsewhere may have another
    shapes: Mapping[str, tuple[int, ...]]  # of one run's value, by recorder, without the step
    threads: int = 1  # of an engine, in every process; results do not depend on it

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """Learning rates (rules, steps)."""
        return np.stack([schedules.values(rule.learning_rate, self.steps) for rule in self.rules])

    @cached_property
    def cells(self) -> dict[str, list[Any]]:
        """Coordinates of the leading dimensions: batch_size, and before it what sets several rules apart."""
        cells: dict[str, list[Any]] = {"batch_size": list(self.batch_sizes)}
        if len(self.rules) == 1:
            return cells
        if _differ_in_learning_rate(self.rules, self.steps):
            return {"learning_rate": [float(rule.learning_rate) for rule in self.rules], **cells}  # type: ignore[arg-type]
        return {"optimizer": [repr(rule) for rule in self.rules], **cells}

    @cached_property
    def layout(self) -> Layout:
        """The arrays that hold the results."""
        fields: dict[str, Field] = {}
        coordinates: dict[str, Sequence[Any]] = {"step": self.recorded}
        for recorder in self.recorders:
            dims, own = self._axes(recorder)
            coordinates |= own
            fields |= self._fields(recorder, dims)
            if recorder.per == "run" and not self.raw:
                points = self.sketch_points
                coordinates["sketch"] = [(k + 0.5) / points for k in range(points)]
        fields[ALIVE] = Field(("step",), "int32", "block")
        fields[DIVERGED] = Field((), "int32", "run")
        return Layout(self.cells, self.runs, self.block, coordinates, fields)

    @property
    def sketch_points(self) -> int:
        """Points of the quantile sketch of a block: an odd number, so that the median is one."""
        return int(np.clip(self.block // 16, 7, 63)) * 2 + 1

    @property
    def nbytes(self) -> int:
        """Size of the results before compression."""
        return self.layout.nbytes

    @property
    def nbytes_at_work(self) -> int:
        """A rough bound of what one worker holds while it computes one block."""
        piece = self.layout.piece(0)
        results = sum(
            math.prod(self.layout.piece_shape(name, piece)) * np.dtype(field.dtype).itemsize
            for name, field in self.layout.fields.items()
        )
        return results + self.block * bytes_per_run(self.problem, max(self.batch_sizes)) * 2 + 64 * 2**20

    @property
    def sentence(self) -> str:
        """What will be done, for people: runs, steps, pieces, size on disk."""
        kept = "every run's values" if self.raw else "summaries over runs"
        return (
            f"{self.runs} runs x {self.steps} steps in each of {math.prod(len(v) for v in self.cells.values())} cells, "
            f"{self.layout.pieces} pieces of at most {self.block} runs; {kept}, {in_bytes(self.nbytes)} uncompressed"
        )

    def configuration(self) -> dict[str, Any]:
        """What decides the numbers, as plain JSON: the identity of a store."""
        problem, described = self.problem, [rule.describe(self.steps) for rule in self.rules]
        return {
            "problem": {
                "model": type(problem.model).__name__,
                "parameters": problem.parameter_count,
                "loss": problem.loss_name,
                "l2": problem.l2,
                "samples": problem.n,
                "dtype": str(problem.dtype).removeprefix("torch."),
                "full_quantities": "all samples" if self.population is None else self.population.full_quantities,
                **problem.fingerprints(),
            },
            "optimizer": described[0] if len(described) == 1 else {str(i): rule for i, rule in enumerate(described)},
            "batch_size": list(self.batch_sizes),
            "steps": self.steps,
            "runs": self.runs,
            "initial": initial_weights.describe(self.initial),
            "sampling": str(self.sampling),
            "common_random_numbers": self.common_random_numbers,
            "seed": self.seed,
            "record": [recorder.name for recorder in self.recorders],
            "recorded_steps": list(self.recorded),
            "raw": self.raw,
            "block": self.block,
            "engine": self.engine_name,
        }

    def engine(self) -> Engine:
        """A fresh engine, which no other worker shares."""
        engine = choose(self.problem, self.engine_name, max(self.batch_sizes), online=self.population is not None)
        engine.threads = self.threads
        return engine

    def curvature(self) -> RegressionCurvature | None:
        """For the rules that need it."""
        return RegressionCurvature(self.problem) if any(rule.needs_curvature for rule in self.rules) else None

    def _axes(self, recorder: Recorder) -> tuple[tuple[str, ...], dict[str, Sequence[Any]]]:
        """The dimensions of a recorder's values and the coordinates that are new."""
        own: dict[str, Sequence[Any]] = {}
        if recorder.steps is not None:
            own[recorder.step_dimension] = recorder.steps
        names = recorder.shape or {f"{recorder.name}_{k}": 0 for k in range(len(self.shapes[recorder.name]))}
        for name, size in zip(names, self.shapes[recorder.name], strict=True):
            own[name] = list(self.problem.layers) if name == "layer" else list(range(size))
        return (recorder.step_dimension, *names), own

    def _fields(self, recorder: Recorder, dims: tuple[str, ...]) -> dict[str, Field]:
        if recorder.per == "block":
            return {
                f"block_{recorder.name}{suffix(s)}": Field(dims, "float64", "block")
                for s in ("", "stderr", "top_share")
            }
        if self.raw:
            return {recorder.name: Field(dims, str(self.problem.dtype).removeprefix("torch."), "run")}
        return {
            f"block_{recorder.name}_{part}": Field((*front, *dims), "float64", "block")
            for part, front in SKETCH.items()
        }


def plan(
    problem: Problem | Population,
    optimizer: Rule | Sequence[Rule],
    batch_size: int | Sequence[int],
    steps: int,
    runs: int,
    *,
    initial: Initial = "fixed",
    sampling: Sampling | None = None,
    seed: int = 0,
    record: Any = ("loss",),
    every: int = 1,
    common_random_numbers: bool = False,
    raw: bool | None = None,
    engine: str = "auto",
    block: int | None = None,
    memory: int | None = None,
    threads: int = 1,
    stored: bool = False,
) -> Plan:
    """Check everything that `simulate` is asked for. Its arguments are explained there.

    Raises InputError for anything that cannot be simulated, in words that say what to change.
    """
    population = problem if isinstance(problem, Population) else None
    inner = population.problem if population is not None else problem
    if not isinstance(inner, Problem):
        raise InputError(f"problem: a Problem or a Population, not {type(problem).__name__}")
    for name, value, least in (
        ("steps", steps, 0),
        ("runs", runs, 1),
        ("every", every, 1),
        ("seed", seed, 0),
        ("threads", threads, 1),
    ):
        _require_whole(name, value, least)
    sizes = (batch_size,) if isinstance(batch_size, (int, np.integer)) else tuple(batch_size)
    sampling = (Online() if population is not None else WithReplacement()) if sampling is None else sampling
    _check_sampling(sampling, sizes, population, inner)
    rules = (optimizer,) if isinstance(optimizer, Rule) else tuple(optimizer)
    if not rules or not all(isinstance(rule, Rule) for rule in rules) or len(set(map(repr, rules))) < len(rules):
        raise InputError(f"optimizer={optimizer!r}: an update rule from shotnoise.rules, or several different ones")
    for rule in rules:
        rule.check(inner.parameter_count)
        schedules.values(rule.learning_rate, steps)
        _check_fisher(rule, population)
    inner.examine()
    initial_weights.check(initial, inner)
    found = recording.resolve(record, inner, steps)
    if any(r.redraws for r in found) and isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(f"loss_change redraws batches at the same weights; {sampling!r} does not, use fresh batches")
    chosen = choose(inner, engine, max(sizes), online=population is not None)
    size = _block(inner, runs, max(sizes), block, memory)
    shapes = {r.name: _shape(r, chosen, inner) for r in found}
    recorded = tuple(sorted({*range(0, steps + 1, every), steps}))

    def made(keep: bool) -> Plan:
        return Plan(
            problem=inner,
            population=population,
            rules=rules,
            batch_sizes=tuple(int(b) for b in sizes),
            steps=steps,
            runs=runs,
            initial=initial,
            sampling=sampling,
            seed=seed,
            recorders=found,
            recorded=recorded,
            common_random_numbers=common_random_numbers,
            block=size,
            raw=keep,
            engine_name=chosen.key,
            instruction_set=chosen.instruction_set,
            shapes=shapes,
            threads=threads,
        )

    whole = made(True)
    whole.curvature()
    if raw is None:
        raw = whole.nbytes <= (RAW_ON_DISK if stored else RAW_IN_MEMORY)
    return whole if raw else made(False)


def bytes_per_run(problem: Problem, batch_size: int) -> int:
    """Weights, gradients and a state, and the activations of a batch."""
    number = torch.finfo(problem.dtype).bits // 8
    return 4 * problem.parameter_count * number + 2 * batch_size * problem.bytes_per_sample


def in_bytes(count: float) -> str:
    """A size for people.

    >>> in_bytes(3_500_000)
    '3.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def suffix(part: str) -> str:
    return f"_{part}" if part else ""


def _require_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}: a whole number, at least {least}")


def _check_sampling(sampling: Sampling, sizes: Sequence[int], population: Population | None, problem: Problem) -> None:
    if population is not None and not isinstance(sampling, Online):
        raise InputError(f"a population is sampled online; {sampling!r} draws from a data set. Leave sampling out")
    if population is None and isinstance(sampling, Online):
        raise InputError(
            "Online() draws fresh samples from a population, and this problem is a data set; use WithReplacement(), or "
            "pass a Population such as TeacherStudent"
        )
    sampling.check_all(sizes, None if population is not None else problem.n)


def _check_fisher(rule: Rule, population: Population | None) -> None:
    inner = rule.rule if isinstance(rule, Clipped) else rule
    if population is not None and isinstance(inner, NaturalGradient) and inner.fisher == "empirical":
        raise InputError(
            "NaturalGradient(fisher='empirical') needs fourth moments of the inputs, which the evaluation points of a "
            "population do not have; use fisher='model'"
        )


def _block(problem: Problem, runs: int, batch_size: int, block: int | None, memory: int | None) -> int:
    if block is not None:
        _require_whole("block", block, 1)
        return min(block, runs)
    per_run = bytes_per_run(problem, batch_size)
    if memory is not None and memory < per_run:
        raise InputError(f"memory={memory}: one run alone takes about {in_bytes(per_run)}")
    fitting = int(np.clip(2 ** int(math.log2(max(1, CACHE_BYTES // per_run))), FEWEST, MOST))
    if memory is not None:
        fitting = max(1, min(fitting, memory // per_run))
    return min(fitting, runs)


def _shape(recorder: Recorder, engine: Engine, problem: Problem) -> tuple[int, ...]:
    """The shape of one run's value; that of a user's function is found by a trial on two runs."""
    if recorder.shape is not None:
        all_of = {"parameter": problem.parameter_count, "layer": len(problem.layers)}
        return tuple(all_of[name] if size < 0 else size for name, size in recorder.shape.items())
    if recorder.per == "block" or recorder is recording.NAMED.get(recorder.name):
        return ()
    start = initial_weights.weights("fixed", problem, 2, list)
    losses = engine.full_losses(start)
    state = State(engine, 0, start, torch.zeros_like(start), losses, None, start.clone, torch.ones(2, dtype=torch.bool))
    try:
        value = recorder.observe(state)
    except Exception as error:
        raise InputError(
            f"record: the function {recorder.name!r} fails on two runs: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != 2:
        what = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"record: the function {recorder.name!r} gave {what} for 2 runs; expected a tensor (2, ...)")
    return tuple(value.shape[1:])


def _differ_in_learning_rate(rules: Sequence[Rule], steps: int) -> bool:
    """Whether constant learning rates are all that sets the rules apart."""
    if any(isinstance(rule, Clipped) or not isinstance(rule.learning_rate, float) for rule in rules):
        return False
    others = [{k: v for k, v in rule.describe(steps).items() if k != "learning_rate"} for rule in rules]
    return all(other == others[0] for other in others)
