"""Processes that work on a store, are killed and take over from each other, for the tests of the store.

Run as a script this is a server: it reads calls as lines of JSON, forks workers for them (so that the libraries are
imported once), and answers each with a line of JSON.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from shotnoise.simulate.layout import Field, Layout
from shotnoise.simulate.store import Store
from shotnoise.simulate.store import claims as store_claims
from shotnoise.simulate.store.arrays import checksum

FIELDS = {
    "loss": Field(("step",), "float32", "run"),
    "stopped": Field((), "int32", "run"),
    "spread": Field(("step", "quantile"), "float64", "block"),
}
COORDINATES = {"step": [0, 1, 10], "quantile": [0.1, 0.9]}
LAYOUT = Layout({"batch_size": [5, 50]}, runs=17, block=2, coordinates=COORDINATES, fields=FIELDS)
CONFIGURATION = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "seed": 3}
ATTRIBUTES = {"title": "an ensemble"}
VERSIONS = {"shotnoise": "0.1", "torch": "2.6.0"}


def open_store(path, layout=LAYOUT, configuration=CONFIGURATION, versions=VERSIONS, attributes=ATTRIBUTES):
    units = {"loss": {"units": "nat"}, "step": {"long_name": "updates"}}
    return Store.open(path, layout, configuration, attributes=attributes, variable_attributes=units, versions=versions)


def content(piece, layout=LAYOUT, seed=0):
    """What the computation of a piece gives: the same values wherever and whenever."""
    generator = np.random.default_rng([seed, piece])
    return {
        name: (1000 * generator.normal(size=layout.piece_shape(name, layout.piece(piece)))).astype(field.dtype)
        for name, field in layout.fields.items()
    }


def work(path, pieces=None):
    with open_store(path) as store:
        for piece in store.missing(pieces):
            if store.claim(piece):
                store.write(piece, content(piece))


def fork(function, *arguments):
    """The number of a new process that calls the function; its exit status is 0 if that returns."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_on_the_way(path, seed, kills, record_first=False):
    """Work on a store is killed at random moments, verified after each kill, and at last left to finish.

    Returns how many kills left chunks without a record, and how many left damaged pieces.
    """
    moments = random.Random(seed)
    counts = {"half_written": 0, "damaged": 0}
    for kill in range(kills):
        before = len(_records(path))
        pid = fork(_work_record_first if record_first else work, path)
        deadline = time.monotonic() + 10
        while kill % 2 and len(_records(path)) == before and time.monotonic() < deadline:
            time.sleep(0.001)  # every other kill hits while pieces are written, the others at first while it starts
        time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        status(pid)
        counts["half_written"] += any(_chunks(path, name) > len(_records(path)) for name in FIELDS)
        counts["damaged"] += status(fork(_verify, path)) != 0
    assert status(fork(work, path)) == 0
    return counts


def compete(path, workers, protection="whole"):
    """Workers start on a store that is not there yet. Returns the pieces in the order of computing, by process.

    As broken twins the workers go "without guard" when they judge claims, or "without claims".
    """
    log, (gate, opener) = Path(f"{path}.log"), os.pipe()

    def competitor():
        os.close(opener)
        os.read(gate, 1)  # until the gate is closed, so that all start at once
        store_claims._read = slowed(store_claims._read)
        if protection == "without guard":
            store_claims.Claims.guard = lambda self: contextlib.nullcontext()
        with open_store(path) as store, open(log, "a", buffering=1) as lines:
            if protection == "without claims":
                store.claim = lambda piece: True
            for piece in store.missing():
                if store.claim(piece):
                    lines.write(f"{os.getpid()} {piece}\n")
                    time.sleep(0.002)
                    with contextlib.nullcontext() if protection == "whole" else contextlib.suppress(ValueError):
                        store.write(piece, content(piece))

    pids = [fork(competitor) for _ in range(workers)]
    os.close(opener)
    assert [status(pid) for pid in pids] == [0] * workers
    os.close(gate)
    return [list(map(int, line.split())) for line in log.read_text().splitlines()]


def slowed(function):
    """Time between looking and acting, in which others could act too."""

    def slow(*arguments):
        found = function(*arguments)
        time.sleep(0.008)
        return found

    return slow


def hold(path, pieces):
    """A living process that has claimed these pieces; returns its number."""
    ready, done = os.pipe()

    def holder():
        store = open_store(path)
        assert all(store.claim(piece) for piece in pieces)
        os.write(done, b".")
        time.sleep(600)

    pid = fork(holder)
    os.close(done)
    assert os.read(ready, 1) == b".", "the holder has died"
    os.close(ready)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    return status(pid)


def message_of(path, limit_bytes=None, user=None):
    """The message with which a worker fails that may write files of this size only, or that is another user."""
    ready, done = os.pipe()

    def failing():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        if user is not None:
            os.setuid(user)
        try:
            work(path)
        except ValueError as error:
            os.write(done, f"{type(error).__name__}: {error}".encode())

    pid = fork(failing)
    os.close(done)
    with os.fdopen(ready) as answer:
        text = answer.read()
    assert status(pid) == 0
    return text


def _work_record_first(path):
    """A broken twin of `work`: the record of a piece is written before its values."""
    with open_store(path) as store:
        for piece in store.missing():
            where, values = LAYOUT.piece(piece), content(piece)
            store._records.write(where, {name: checksum(values[name]) for name in values})
            store._arrays.write(where, values)


def _verify(path):
    with open_store(path) as store:
        assert store.verify() == []
        for piece in store.finished():
            values = content(piece)
            for name in FIELDS:
                assert store._arrays.read(name, LAYOUT.piece(piece)).tobytes() == values[name].tobytes()


def _chunks(path, field):
    return sum(not file.name.endswith(".partial") for file in Path(path, field).glob("c.*"))


def _records(path):
    return list(Path(path, "manifest", "pieces").glob("0*.json"))


if __name__ == "__main__":
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        print(json.dumps(globals()[call](*arguments)), flush=True)
    os._exit(0)  # the libraries take seconds to clean up
