"""Who computes what: never two living processes the same piece, and a dead one holds nothing up.

Every opened store is a worker, with a file in `workers/` that it keeps locked while it lives; the kernel lifts the
lock of a killed process. A claim is a file in `claims/` that names its worker, and counts while that worker lives.
Claims are made and judged under one short lock for the whole store, and only there.
"""

import contextlib
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from shotnoise.errors import InputError
from shotnoise.simulate.store.manifest import FOLDER

WORKERS, CLAIMS = f"{FOLDER}/workers", f"{FOLDER}/claims"
NAME = re.compile(r"(?P<host>[\w.-]+)-(?P<pid>\d+)-[0-9a-f]{32}")


@dataclass(frozen=True)
class Worker:
    """A process that has the store open. Its `name`, unlike its number, is unique for all time."""

    name: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def here(cls) -> "Worker":
        host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII) or "unknown"
        return cls(f"{host}-{os.getpid()}-{uuid.uuid4().hex}", host, os.getpid())

    @classmethod
    def named(cls, name: str) -> "Worker | None":
        """The worker of that name, or None if it is no worker's name, such as one cut short by a kill."""
        found = NAME.fullmatch(name)
        return None if found is None else cls(name, found["host"], int(found["pid"]))


class Claims:
    """The claims on pieces of the store at `path`, and this process as one of its workers, alive until `leave`.

    All methods but `guard`, `holds` and `leave` are to be called under `guard`.
    """

    def __init__(self, path: Path) -> None:
        self.worker = Worker.here()
        self._path = path
        self._held: set[int] = set()
        self._threads = threading.Lock()  # the file lock below is for processes
        self._lock = _file_lock(path / FOLDER / "lock")
        self._life = _file_lock(_life_file(path, self.worker))

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Alone among all threads and processes, for moments only."""
        with self._threads, self._lock.acquire(poll_interval=0.01):
            yield

    def enter(self) -> bool:
        """Become a worker and clear away what dead ones left. Returns whether no other worker is alive."""
        self._life.acquire()
        others = _listed(self._path) - {self.worker}
        living = {worker for worker in others if is_alive(self._path, worker)}
        for worker in others - living:
            _life_file(self._path, worker).unlink(missing_ok=True)
        for claim in (self._path / CLAIMS).iterdir():
            if _read(claim) not in living:
                claim.unlink()
        return not living

    def leave(self) -> None:
        """Give up all claims and be no worker any more."""
        with self.guard():
            for piece in self._held:
                self._file(piece).unlink(missing_ok=True)
            self._held.clear()
            self._life.release()
            _life_file(self._path, self.worker).unlink(missing_ok=True)

    def holds(self, piece: int) -> bool:
        return piece in self._held

    def owner(self, piece: int) -> Worker | None:
        """The living worker that has claimed the piece."""
        worker = _read(self._file(piece))
        return worker if worker is not None and self._lives(worker) else None

    def take(self, piece: int) -> bool:
        """Claim a piece; False if a living worker has it already, be it this one."""
        if not self._life.is_locked:
            raise InputError(f"the store {self._path} was closed; open it again")
        if self.owner(piece) is not None:
            return False
        file = self._file(piece)
        file.unlink(missing_ok=True)
        try:
            with open(file, "x", encoding="utf-8") as claim:
                claim.write(self.worker.name)
        except FileExistsError:  # a network mount may show new files late, but refuses to create them again
            return False
        self._held.add(piece)
        return True

    def drop(self, piece: int) -> None:
        if piece in self._held:
            self._held.remove(piece)
            self._file(piece).unlink(missing_ok=True)

    def _lives(self, worker: Worker) -> bool:
        return worker == self.worker or is_alive(self._path, worker)

    def _file(self, piece: int) -> Path:
        return self._path / CLAIMS / f"{piece:06d}"


def live_workers(path: Path) -> tuple[Worker, ...]:
    """The workers of the store at `path` that are alive; where nobody may write, those that have not signed off."""
    listed = sorted(_listed(path), key=lambda worker: worker.name)
    with contextlib.suppress(OSError), _file_lock(path / FOLDER / "lock").acquire(poll_interval=0.01):
        return tuple(worker for worker in listed if is_alive(path, worker))
    return tuple(listed)


def is_alive(path: Path, worker: Worker) -> bool:
    """Whether another worker lives: its file is there and cannot be locked. To be called under the store's lock."""
    file = _life_file(path, worker)
    if not file.exists():
        return False
    try:
        with _file_lock(file).acquire(blocking=False):
            return False
    except OSError:  # filelock's Timeout is one; and a file that we may not lock is not ours to judge
        return True


def _listed(path: Path) -> set[Worker]:
    names = (Worker.named(file.name.removesuffix(".lock")) for file in (path / WORKERS).iterdir())
    return {worker for worker in names if worker is not None}


def _life_file(path: Path, worker: Worker) -> Path:
    return path / WORKERS / f"{worker.name}.lock"


def _read(claim: Path) -> Worker | None:
    try:
        return Worker.named(claim.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _file_lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)  # to be released by another thread than the one that acquired it
