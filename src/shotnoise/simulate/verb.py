"""The verb `simulate`: a plan carried out piece by piece, on this machine or a cluster, into memory or a store."""

import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.population import Population
from shotnoise.problem import Problem
from shotnoise.rules import Rule
from shotnoise.sampling import Sampling
from shotnoise.simulate import cluster
from shotnoise.simulate.initial import Initial
from shotnoise.simulate.layout import FILL, Layout
from shotnoise.simulate.outcome import assemble
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.plan import plan as make_plan
from shotnoise.simulate.processes import WorkerPool, compute
from shotnoise.simulate.records import Content
from shotnoise.simulate.store import Store, read

WORTH_WORKERS = 10.0  # seconds of work left for one core from which worker processes are started
log = logging.getLogger("shotnoise")


@dataclass(frozen=True)
class Status:
    """How far a simulation is: runs and updates done of all, seconds so far, the mean minibatch loss last seen."""

    runs: int
    all_runs: int
    updates: int
    all_updates: int
    seconds: float
    loss: float


Progress = Callable[[Status], None]


def simulate(
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
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    scheduler: Any = None,
    engine: str = "auto",
    block: int | None = None,
    memory: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Train `runs` independent copies for `steps` updates at every batch size, and record what happens on the way.

    problem: a `Problem` (batches from its data) or a `Population` (fresh samples at every step).
    optimizer: a rule of `shotnoise.rules`, or several: then there is a dimension `learning_rate` where nothing else
        sets them apart, else `optimizer`.
    initial: "fixed", the model's weights; "resampled", each module's reset_parameters() by run; or initial(rng), a
        function that returns one run's weights as a vector (P,) or by name.
    sampling: how batches are drawn, default WithReplacement() (Online() for a population).
    seed: run r draws from a stream that depends on (seed, r), on its batch size and the position of its rule.
    common_random_numbers: leave the last two out, so that run r draws alike for all batch sizes and rules (the first
        b of the samples of the largest batch); see `simulate.paired`.
    record: names from `simulate.recorders.NAMED`, recorders such as `simulate.weights(...)`, functions of a
        `simulate.State` that return a tensor (R, ...), or a dict of functions by name.
    every: record every so many steps (and at the last); step t speaks of w_t and of the gradient drawn there.
    raw: keep every run's values, or only mean, variance and quantiles by step. By default raw up to 2 GiB in memory and
        16 GiB on disk.
    store: a folder for the results, which makes the work resumable: the same call continues where it was stopped.
    shard: (i, N), i = 1 .. N: compute only this part of the store's pieces.
    workers: processes on this machine, default one per core when the work is worth it. scheduler: the address of a
        Dask scheduler, or a distributed.Client, to compute there instead.
    engine, block, memory: how the runs are computed (see `simulate.engines`), how many together, and how many bytes
        a worker may take for it; by default what fits the cache.
    threads: of the compiled engine, in each process; results are the same for any number.
    progress: called with a `Status` now and then.

    Returns an xarray.Dataset: variables by run with dims (batch_size, run, step), or summaries of them; statistics
    over runs such as `gradient_variance` with `_stderr`; `divergence_step` (-1: never); `runs_excluded` by step. With
    a store it is opened lazily. Attributes name the `engine` and the processor's `instruction_set`. Raises InputError
    for what cannot be simulated, before the work starts.

    >>> import torch, shotnoise as sn
    >>> problem = sn.Problem(torch.nn.Linear(1, 1), "mse", torch.arange(4.0)[:, None], torch.zeros(4, 1))
    >>> runs = simulate(problem, sn.rules.SGD(0.1), batch_size=[1, 2], steps=5, runs=8)
    >>> dict(runs["loss"].sizes)
    {'batch_size': 2, 'run': 8, 'step': 6}
    """
    made = make_plan(
        problem, optimizer, batch_size, steps, runs, initial=initial, sampling=sampling, seed=seed, record=record,
        every=every, common_random_numbers=common_random_numbers, raw=raw, engine=engine, block=block, memory=memory,
        threads=threads, stored=store is not None,
    )  # fmt: skip
    return execute(made, store=store, shard=shard, workers=workers, scheduler=scheduler, progress=progress)


def execute(
    plan: Plan,
    *,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Carry out a plan; see `simulate`."""
    pieces = _shard(plan.layout, shard)
    if shard is not None and store is None:
        raise InputError(f"shard={shard}: the shards of a simulation meet in a store; pass store=")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: at least one")
    log.info("%s", plan.sentence)
    attributes = results.provenance(plan.problem) | _flat(plan)
    with cluster.client_of(scheduler) as client:  # before the store, for a scheduler may not be there
        if store is None:
            kept = InMemory(plan.layout)
            _carry_out(plan, kept, pieces, workers, client, progress)
            return assemble(kept.dataset(attributes))
        names = [name for name in attributes if name.endswith("_version")]
        versions = {name: str(attributes[name]) for name in (*names, "instruction_set")}
        with Store.open(
            store, plan.layout, plan.configuration(), attributes=attributes, variable_attributes={}, versions=versions
        ) as opened:
            _into_store(plan, opened, pieces, workers, client, progress)
    return assemble(read(store))


def _into_store(
    plan: Plan, store: Store, pieces: list[int], workers: int | None, client: Any, progress: Progress | None
) -> None:
    damaged = store.verify(pieces)
    if damaged:
        warnings.warn(f"{store.path}: {len(damaged)} pieces were damaged and are computed again", stacklevel=4)
    _carry_out(plan, store, pieces, workers, client, progress)
    others = store.missing(pieces)
    if others:
        warnings.warn(
            f"{store.path}: {len(others)} pieces are being computed by {store.owner(others[0])}; their runs are "
            "missing here. Load the store again when that process is done",
            stacklevel=4,
        )


class Keeper(Protocol):
    """Where finished pieces go."""

    def missing(self, pieces: Iterable[int] | None = None) -> list[int]: ...

    def claim(self, piece: int) -> bool: ...

    def release(self, piece: int) -> None: ...

    def write(self, piece: int, content: Content) -> None: ...


class InMemory:
    """Results that are kept in memory only."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.arrays = {
            name: np.full(layout.shape(name), FILL[field.dtype], field.dtype) for name, field in layout.fields.items()
        }
        self._claimed: set[int] = set()
        self._lock = threading.Lock()

    def missing(self, pieces: Iterable[int] | None = None) -> list[int]:
        return sorted(set(range(self.layout.pieces) if pieces is None else pieces) - self._claimed)

    def claim(self, piece: int) -> bool:
        with self._lock:
            fresh = piece not in self._claimed
            self._claimed.add(piece)
            return fresh

    def release(self, piece: int) -> None:
        with self._lock:
            self._claimed.discard(piece)

    def write(self, piece: int, content: Content) -> None:
        where = self.layout.piece(piece)
        for name, values in content.items():
            self.arrays[name][self.layout.region(name, where)] = values

    def dataset(self, attributes: dict[str, Any]) -> xr.Dataset:
        layout = self.layout
        variables = {name: (layout.dims(name), array) for name, array in self.arrays.items()}
        coordinates = {**layout.cells, "run": np.arange(layout.runs), **layout.coordinates}
        return xr.Dataset(variables, {k: np.asarray(v) for k, v in coordinates.items()}, attributes)


class _Account:
    """Counts what is done and tells the progress."""

    def __init__(self, plan: Plan, pieces: Sequence[int], left: Sequence[int], progress: Progress | None) -> None:
        self.plan, self.progress, self.start = plan, progress, time.monotonic()
        self.all_runs, self.runs = self._runs(pieces), self._runs(pieces) - self._runs(left)
        self.updates, self.loss = self.runs * plan.steps, float("nan")
        self._lock = threading.Lock()

    def news(self, updates: int, loss: float) -> None:
        with self._lock:
            self.updates += updates
            self.loss = loss
            self._tell()

    def finished(self, piece: int, counted: bool = True) -> None:
        with self._lock:
            self.runs += self._runs([piece])
            if not counted:
                self.updates += self._runs([piece]) * self.plan.steps
            self._tell()

    def _runs(self, pieces: Sequence[int]) -> int:
        return sum(p.stop - p.start for p in map(self.plan.layout.piece, pieces))

    def _tell(self) -> None:
        if self.progress is not None:
            seconds, all_updates = time.monotonic() - self.start, self.all_runs * self.plan.steps
            self.progress(Status(self.runs, self.all_runs, self.updates, all_updates, seconds, self.loss))


def _carry_out(
    plan: Plan, keeper: Keeper, pieces: Sequence[int], workers: int | None, client: Any, progress: Progress | None
) -> None:
    left = keeper.missing(pieces)
    account = _Account(plan, pieces, left, progress)
    if client is not None:

        def keep(index: int, content: Content) -> None:
            keeper.write(index, content)
            account.finished(index, counted=False)

        return cluster.run(plan, left, client, keeper.claim, keep)
    count = _workers(plan, len(left)) if workers is None else min(workers, len(left))
    queue = iter(left)
    if workers is not None and count > 1:
        return _in_processes(plan, keeper, queue, count, account)
    pace = math.inf
    for done, index in enumerate(queue, 1):
        start = time.monotonic()
        _one(index, keeper, account, lambda i: compute(plan, i, account.news))
        pace = min(pace, time.monotonic() - start)  # the first piece may have warmed things up
        known = done > 1 or pace > WORTH_WORKERS
        if workers is None and count > 1 and known and pace * (len(left) - done) > WORTH_WORKERS:
            return _in_processes(plan, keeper, queue, min(count, len(left) - done), account)


def _in_processes(plan: Plan, keeper: Keeper, queue: Iterator[int], count: int, account: _Account) -> None:
    """Threads of this process, each waiting for one worker."""
    if count < 1:
        return
    pool, lock, stop = WorkerPool(plan, count), threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                index = next(queue, None)
            if index is None:
                return
            _one(index, keeper, account, lambda i: pool.compute(i, account.news))

    with ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(work) for _ in range(count)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.close()  # a thread that still waits for its worker sees it gone, and ends
        for future in done:
            future.result()


def _one(index: int, keeper: Keeper, account: _Account, run: Callable[[int], Content]) -> None:
    if not keeper.claim(index):
        return
    try:
        keeper.write(index, run(index))
    except BaseException:
        keeper.release(index)
        raise
    account.finished(index)


def _workers(plan: Plan, pieces: int) -> int:
    """One per core that this process may use; one alone where a GPU does the work."""
    if plan.problem.device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, pieces)


def _shard(layout: Layout, shard: tuple[int, int] | None) -> list[int]:
    if shard is None:
        return list(range(layout.pieces))
    index, count = shard
    if not 1 <= index <= count:
        raise InputError(f"shard {index}/{count}: shards are numbered 1/{count} to {count}/{count}")
    return layout.shard(index - 1, count)


def _flat(plan: Plan) -> dict[str, Any]:
    """The settings as attributes of a result: numbers and text, without what `provenance` has already."""
    whole = plan.configuration()
    kept = {k: whole[k] for k in ("steps", "runs", "initial", "sampling", "seed", "block", "engine")}
    rules = "; ".join(repr(rule) for rule in plan.rules)
    flags = {"common_random_numbers": int(plan.common_random_numbers), "raw": int(plan.raw)}
    means = {"instruction_set": plan.instruction_set, "full_quantities": whole["problem"]["full_quantities"]}
    return kept | flags | means | {"optimizer_rule": rules}
