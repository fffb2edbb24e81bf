"""The cores of one machine: worker processes, each computing whole pieces with one thread.

A worker is started as a plain command, not forked and not importing the caller's script, so that it works from a
notebook and from a script without a main guard. Parent and worker talk over the worker's own pipes; what travels there
is pickled by the one and unpickled by the other, and nothing is read from files. A worker that dies is replaced, and
its piece computed again.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import cloudpickle
import torch

from shotnoise.errors import ShotnoiseError
from shotnoise.simulate.block import run_piece
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.records import Content
from shotnoise.simulate.state import State

ATTEMPTS = 3  # how often a piece is tried when its worker dies
NEWS_EVERY = 0.2  # seconds between messages of a worker
News = Callable[[int, float], None]  # (updates done since the last news, current mean of the loss or NaN)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread while the block runs: results then do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute(plan: Plan, index: int, news: News | None = None) -> Content:
    """One piece in this process."""
    with one_thread():
        return run_piece(plan, plan.layout.piece(index), watch=None if news is None else _Reporter(plan, news))


class WorkerPool:
    """Worker processes for one plan. `compute` may be called by as many threads as there are workers."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.payload = cloudpickle.dumps((list(sys.path), plan))
        self.idle: list[_Worker] = [_Worker(self.payload) for _ in range(count)]
        self._lock = threading.Lock()
        self._all = list(self.idle)
        self._closed = False

    def compute(self, index: int, news: News) -> Content:
        """One piece in a worker. Raises what the worker raised, or ShotnoiseError when workers keep dying."""
        for _ in range(ATTEMPTS):
            with self._lock:
                if self._closed:
                    break
                worker = self.idle.pop() if self.idle else self._started()
            try:
                found = worker.compute(index, news)
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # whatever a torn pipe gives
                worker.stop()
                continue
            with self._lock:
                self.idle.append(worker)
            if isinstance(found, Exception):
                raise found
            return found
        raise ShotnoiseError(
            f"piece {index}: {ATTEMPTS} worker processes died while computing it, perhaps for want of memory; use "
            "fewer workers, or a smaller block"
        )

    def close(self) -> None:
        self._closed = True
        for worker in self._all:
            worker.stop()

    def _started(self) -> "_Worker":
        worker = _Worker(self.payload)
        self._all.append(worker)
        return worker


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, payload: bytes) -> None:
        own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from shotnoise.simulate.processes import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | own | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # Ctrl-C in the terminal is the parent's alone to answer
        )
        with contextlib.suppress(BrokenPipeError):  # seen when the first piece is asked for
            _send(self._pipe_in, payload)

    @property
    def _pipe_in(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def compute(self, index: int, news: News) -> Content | Exception:
        assert self.process.stdout is not None
        _send(self._pipe_in, pickle.dumps(index))
        while True:
            kind, content = pickle.load(self.process.stdout)
            if kind != "news":
                return content
            news(*content)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def serve() -> None:
    """The worker's side: pieces come in by number, news and results go out, until the parent is gone."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the user's functions print must not get between the messages
    paths, plan = cloudpickle.loads(pickle.load(source))
    sys.path[:] = paths
    torch.set_num_threads(1)

    def news(updates: int, loss: float) -> None:
        _send(target, ("news", (updates, loss)))

    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            index = pickle.loads(pickle.load(source))
            try:
                answer: tuple[str, Any] = ("done", compute(plan, index, news))
            except BrokenPipeError:
                raise
            except Exception as error:
                answer = ("failed", _portable(error))
            _send(target, answer)


class _Reporter:
    """Counts the updates of a piece and tells of them now and then."""

    def __init__(self, plan: Plan, news: News) -> None:
        self.news, self.steps = news, plan.steps
        self.told, self.last = 0, time.monotonic()

    def __call__(self, t: int, state: State) -> None:
        if t == self.steps or time.monotonic() - self.last > NEWS_EVERY:
            loss = float(state.minibatch_losses[state.alive].mean()) if bool(state.alive.any()) else float("nan")
            runs = len(state.weights)
            self.news((t - self.told) * runs, loss)
            self.told, self.last = t, time.monotonic()


def _send(pipe: IO[bytes], content: Any) -> None:
    pickle.dump(content, pipe)
    pipe.flush()


def _portable(error: Exception) -> Exception:
    """The error itself where it survives a pickle, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ShotnoiseError(f"{type(error).__name__}: {error}")
    return error
