"""Any Dask scheduler: pieces go out as tasks, their records come back and are stored by the one who asked.

Needs `dask.distributed` (the extra `cluster`), imported only here. A worker that dies loses the pieces that it had in
hand; the scheduler gives them to others.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cloudpickle

from shotnoise.errors import InputError, ShotnoiseError
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.processes import compute
from shotnoise.simulate.records import Content

PATIENCE = 10.0  # seconds to reach a scheduler
AHEAD = 2  # tasks in flight per thread of the cluster
LOST, RETRIES = ("cancelled", "lost"), 3  # what became of a task whose data are gone, and how often it is sent again
Keep = Callable[[int, Content], None]


def connect(scheduler: Any) -> tuple[Any, bool]:
    """A `distributed.Client` for an address, and whether it is ours to close. Raises InputError if there is none."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(
            "scheduler= needs dask.distributed, which is not installed; pip install 'shotnoise[cluster]'"
        ) from error
    if isinstance(scheduler, Client):
        return scheduler, False
    try:
        return Client(scheduler, timeout=PATIENCE), True
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {scheduler!r} within {PATIENCE:g} s ({error}); start one with "
            "`dask scheduler`, or check address and firewall. Nothing was computed"
        ) from error


@contextlib.contextmanager
def client_of(scheduler: Any) -> Iterator[Any]:
    """A client of the scheduler while the block runs, or None for None; one that was passed in stays open."""
    if scheduler is None:
        yield None
        return
    client, ours = connect(scheduler)
    try:
        yield client
    finally:
        if ours:
            client.close()


def run(plan: Plan, pieces: Iterable[int], client: Any, claim: Callable[[int], bool], keep: Keep) -> None:
    """Compute the pieces that can be claimed on the cluster and hand each to `keep` as it arrives."""
    from distributed import as_completed

    content = _Payload(cloudpickle.dumps(plan))
    payload = client.scatter(content, broadcast=True, hash=False)
    waiting = iter(pieces)
    flying: dict[str, tuple[int, Any]] = {}
    lost: Counter[int] = Counter()
    finished = as_completed(raise_errors=False)

    def submit(index: int) -> None:
        future = client.submit(_remote, payload, index, pure=False, retries=2)
        flying[future.key] = (index, payload)
        finished.add(future)

    def launch() -> None:
        for index in waiting:
            if claim(index):
                submit(index)
                return

    for _ in range(AHEAD * max(1, sum(client.nthreads().values()))):
        launch()
    for future in finished:
        index, sent = flying.pop(future.key)
        if future.status in LOST and lost[index] < RETRIES:
            # A worker may die with the only copy of the plan; its tasks are then cancelled, not failed.
            lost[index] += 1
            if sent is payload:
                payload = client.scatter(content, broadcast=True, hash=False)
            submit(index)
            continue
        if future.status != "finished":
            error = future.exception()
            raise (
                error
                if isinstance(error, ShotnoiseError)
                else ShotnoiseError(f"piece {index} failed on the cluster: {type(error).__name__}: {error}")
            )
        keep(index, future.result())
        launch()


class _Payload:
    """The plan as bytes, so that every task has a copy of its own: tasks of one worker may run side by side."""

    def __init__(self, content: bytes) -> None:
        self.content = content


def _remote(payload: _Payload, index: int) -> Content:
    return compute(cloudpickle.loads(payload.content), index)
