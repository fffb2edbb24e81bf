"""Stop, resume and share: whatever happens on the way, the result is that of an uninterrupted run, bit for bit."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import shotnoise as sn
from shotnoise.simulate import processes
from shotnoise.simulate.store.arrays import Arrays
from shotnoise.simulate.store.records import PIECES

CASE = Path(__file__).with_name("ensemble_case.py")
spec = importlib.util.spec_from_file_location("ensemble_case", CASE)
case = importlib.util.module_from_spec(spec)
sys.modules["ensemble_case"] = case
spec.loader.exec_module(case)


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run, in memory."""
    return case.run(workers=1)


def records(store):
    return sorted((store / PIECES).glob("*.json"))


def assert_same(found, whole):
    for name, expected in whole.data_vars.items():
        np.testing.assert_array_equal(found[name].values, expected.values, err_msg=name)


def start(store, *options):
    return subprocess.Popen(
        [sys.executable, str(CASE), str(store), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_records(store, count, process, limit=90):
    end = time.monotonic() + limit
    while len(records(store)) < count:
        assert process.poll() is None or len(records(store)) >= count, process.stderr.read()
        assert time.monotonic() < end, "too slow"
        time.sleep(0.01)


def test_memory_store_and_workers_give_the_same_bits(tmp_path, whole):
    stored = case.run(tmp_path / "a.zarr", workers=2)
    assert_same(stored, whole)
    assert stored.attrs["pieces_finished"] == stored.attrs["pieces"] == 2 * case.RUNS / case.BLOCK
    assert_same(sn.simulate.load(tmp_path / "a.zarr"), whole)
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as plain:
        np.testing.assert_array_equal(plain["loss"].values, whole["loss"].values)


def test_killed_and_started_again(tmp_path, whole):
    store = tmp_path / "a.zarr"
    for wanted in (3, 9):
        process = start(store, "steps", "400")
        wait_for_records(store, wanted, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(records(store)) < 24
        partial = sn.simulate.load(store)
        done = partial["loss"].notnull().all("step")
        assert case.BLOCK * wanted <= int(done.sum()) < 2 * case.RUNS
        np.testing.assert_array_equal(partial["loss"].values[done.values], whole["loss"].values[done.values])
    assert_same(case.run(store, workers=1), whole)


def test_interrupt_leaves_a_store_that_continues(tmp_path, whole):
    store = tmp_path / "a.zarr"
    process = start(store, "workers", "2", "steps", "4000")
    wait_for_records(store, 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    before = records(store)
    assert 2 <= len(before) < 24
    times = [record.stat().st_mtime_ns for record in before]
    case.run(store, 4000, shard=(1, 12), workers=1)
    assert [record.stat().st_mtime_ns for record in before] == times  # nothing finished was computed again
    assert not sn.simulate.check(store).damaged


def test_a_dead_worker_loses_nothing(monkeypatch, whole):
    pools = []
    original = processes.WorkerPool.__init__

    def remembered(self, *args):
        original(self, *args)
        pools.append(self)

    monkeypatch.setattr(processes.WorkerPool, "__init__", remembered)
    killed = threading.Event()

    def kill_one(status):
        if pools and not killed.is_set():
            killed.set()
            os.kill(pools[0]._all[0].process.pid, signal.SIGKILL)

    assert_same(case.run(workers=2, progress=kill_one), whole)
    assert killed.is_set() and len(pools[0]._all) > 2  # another was started in its place


def test_workers_that_keep_dying_are_an_error(monkeypatch):
    monkeypatch.setattr(processes._Worker, "compute", lambda self, index, news: (_ for _ in ()).throw(EOFError))
    with pytest.raises(sn.ShotnoiseError, match="3 worker processes died while computing it.*fewer workers"):
        case.run(workers=2)


def test_an_error_in_a_worker_arrives_as_it_is():
    def fails_later(state):
        if state.step > 20:
            raise sn.InputError("not beyond step 20")
        return state.losses

    with pytest.raises(sn.InputError, match="not beyond step 20"):
        sn.simulate(case.problem(), **{**case.settings(), "record": [fails_later]}, workers=2)


def test_two_processes_share_the_pieces(tmp_path, whole):
    store = tmp_path / "a.zarr"
    both = [start(store, "steps", "400") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sn.simulate.check(store).complete
    assert_same(sn.simulate.load(store), whole)


def test_shards_meet_in_the_store(tmp_path, whole):
    store = tmp_path / "a.zarr"
    part = case.run(store, shard=(1, 3), workers=1)
    assert part.attrs["pieces_finished"] == 8
    stock = sn.simulate.check(store)
    assert not stock.complete and "8 of 24 pieces are finished and intact" in stock.sentence
    assert "missing: batch_size=2 runs 8-23, 32-47" in stock.sentence
    case.run(store, shard=(3, 3), workers=1)
    assert_same(case.run(store, shard=(2, 3), workers=1), whole)
    with pytest.raises(sn.InputError, match=r"shard 4/3: shards are numbered 1/3 to 3/3"):
        case.run(store, shard=(4, 3))
    with pytest.raises(sn.InputError, match="the shards of a simulation meet in a store; pass store="):
        case.run(shard=(1, 3))


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    store = tmp_path / "a.zarr"
    case.run(store, shard=(1, 24), workers=1)
    other = {**case.settings(), "optimizer": sn.rules.SGD(0.06, momentum=0.5), "runs": 97}
    with pytest.raises(sn.InputError) as refused:
        sn.simulate(case.problem(), **other, store=store)
    assert "runs: 96 in the store, 97 asked for" in str(refused.value)
    assert "optimizer.learning_rate: 0.05 in the store, 0.06 asked for" in str(refused.value)
    assert len(records(store)) == 1


def test_damage_is_found_and_only_that_piece_is_computed_again(tmp_path, whole):
    store = tmp_path / "a.zarr"
    case.run(store, workers=1)
    chunk = store / "loss" / "c.1.3.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert sn.simulate.check(store).damaged == (15,)
    times = {record.name: record.stat().st_mtime_ns for record in records(store)}
    with pytest.warns(UserWarning, match="1 pieces were damaged and are computed again"):
        mended = case.run(store, workers=1)
    assert_same(mended, whole)
    again = [record.name for record in records(store) if record.stat().st_mtime_ns != times[record.name]]
    assert again == ["000015.json"]


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch, whole):
    store, written = tmp_path / "a.zarr", []
    original = Arrays.write

    def full(self, piece, content):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(piece)
        original(self, piece, content)

    with monkeypatch.context() as patched:
        patched.setattr(Arrays, "write", full)
        with pytest.raises(sn.InputError, match="No space left on device; 5 of 24 pieces"):
            case.run(store, workers=1)
    assert_same(case.run(store, workers=1), whole)


def test_something_else_in_the_place_of_the_store(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.tex").write_text("precious")
    with pytest.raises(sn.InputError, match="is no store of an ensemble; choose another path, nothing was changed"):
        case.run(tmp_path / "a.zarr")
    with pytest.raises(sn.InputError, match="cannot write"):
        case.run(tmp_path / "missing" / "a.zarr")


class TestCluster:
    """A Dask cluster of several processes on this machine."""

    @pytest.fixture
    def cluster(self):
        distributed = pytest.importorskip("distributed")
        with (
            warnings.catch_warnings(),
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=60
            ) as local,
        ):
            warnings.simplefilter("ignore")
            yield local

    def test_by_address_and_by_client_and_with_a_worker_killed(self, cluster, tmp_path, whole):
        from distributed import Client

        store = tmp_path / "a.zarr"
        pids = [worker.pid for worker in cluster.workers.values()]
        killed = []

        def kill_one(status):
            if status.runs >= 3 * case.BLOCK and not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        assert_same(case.run(store, scheduler=cluster.scheduler_address, progress=kill_one), whole)
        assert killed and sn.simulate.check(store).complete
        with Client(cluster) as client:
            assert_same(case.run(scheduler=client), whole)
            assert client.status == "running"  # it is not ours to close

    def test_nobody_there(self, monkeypatch):
        from shotnoise.simulate import cluster

        monkeypatch.setattr(cluster, "PATIENCE", 0.3)
        with pytest.raises(sn.InputError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9' within 0.3 s"):
            case.run(scheduler="tcp://127.0.0.1:9")
