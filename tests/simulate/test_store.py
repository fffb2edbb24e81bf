"""A store loses nothing that is finished, shows nothing that is not, and ends with the same bytes however often it
was interrupted, by whatever."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr.storage._local

from shotnoise.errors import DataError, InputError
from shotnoise.results import load, save
from shotnoise.simulate.layout import FILL, Field, Layout
from shotnoise.simulate.store import claims as store_claims
from shotnoise.simulate.store import files as store_files
from shotnoise.simulate.store.inventory import Gap, inventory
from shotnoise.simulate.store.read import read
from simulate import store_worker
from simulate.store_worker import CONFIGURATION, COORDINATES, FIELDS, LAYOUT, VERSIONS, content, open_store


@pytest.fixture(scope="module")
def workers():
    """Calls a function of store_worker.py in a process that forks workers."""
    if not hasattr(os, "fork"):
        pytest.skip("the workers are forked, which this system cannot")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    server = subprocess.Popen(
        [sys.executable, store_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def call(function, *arguments):
        server.stdin.write(json.dumps([function, *(str(a) if isinstance(a, Path) else a for a in arguments)]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the workers have failed; see above"
        return json.loads(answer)

    yield call
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The path and the digest of a store that was written in one go."""
    path = tmp_path_factory.mktemp("whole") / "store"
    store_worker.work(path)
    with open_store(path) as store:
        return path, store.digest()


def fill(store, pieces=None):
    for piece in store.missing(pieces):
        assert store.claim(piece)
        store.write(piece, content(piece, store.layout))


def files(path, everything=False):
    """The content of the files that must not depend on how a store came about; or of all."""
    own = ("manifest/manifest.json", "manifest/lock")
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if everything or name not in own}


def chunk(path, piece, name="loss"):
    where = LAYOUT.piece(piece)
    return (
        path / name / ".".join(map(str, ["c", *where.cell.values(), where.block_index, *[0] * len(FIELDS[name].dims)]))
    )


LAYOUTS = {
    "last block smaller": LAYOUT,
    "no cells": Layout({}, 5, 2, COORDINATES, FIELDS),
    "two kinds of cells": Layout({"rule": ["sgd", "größer"], "learning_rate": [0.1, 1]}, 3, 3, COORDINATES, FIELDS),
    "block beyond the runs": Layout({"batch_size": [1]}, 2, 100, COORDINATES, FIELDS),
    "single runs": Layout(
        {"batch_size": [8, 1]}, 3, 1, {}, {"final": Field((), "float64", "run"), "mean": Field((), "float32", "block")}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_what_is_written_is_read(tmp_path, layout):
    with open_store(tmp_path / "store", layout) as store:
        assert store.missing() == list(range(layout.pieces)) and store.finished() == set()
        fill(store)
        assert store.missing() == [] and store.finished() == set(range(layout.pieces)) and store.verify() == []
    result = read(tmp_path / "store")
    assert result.attrs == {"title": "an ensemble", "pieces_finished": layout.pieces, "pieces": layout.pieces}
    assert list(result.data_vars) == list(layout.fields)
    assert list(result.coords) == [*layout.cells, "run", *layout.coordinates]
    for name, values in {**layout.cells, "run": range(layout.runs), **layout.coordinates}.items():
        assert result[name].values.tolist() == list(values)
    for name in layout.fields:
        assert result[name].dims == layout.dims(name) and result[name].dtype == layout.fields[name].dtype
        assert result[name].data.chunksize == layout.chunk_shape(name)
        for index in range(layout.pieces):
            piece = layout.piece(index)
            part = result[name].values[layout.region(name, piece)]
            assert part.tobytes() == content(index, layout)[name].tobytes()
    if layout is LAYOUT:
        assert result.loss.attrs == {"units": "nat"} and result.step.attrs == {"long_name": "updates"}
        assert result.loss.sel(batch_size=50, run=16, step=10) == content(17)["loss"][0, 2]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_xarray_and_others_take_it(tmp_path, layout):
    with open_store(tmp_path / "store", layout) as store:
        fill(store, range(0, layout.pieces, 2))
    result = read(tmp_path / "store")
    opened = xr.open_zarr(tmp_path / "store", consolidated=False)  # warnings are errors here
    xr.testing.assert_equal(opened, result)
    assert opened.attrs == {"title": "an ensemble"}
    xr.testing.assert_identical(pickle.loads(pickle.dumps(result)), result)  # Dask sends it to other machines
    xr.testing.assert_equal(load(save(result, tmp_path / "saved.zip")), result)


def test_the_result_does_not_change_while_it_is_looked_at(tmp_path):
    with open_store(tmp_path / "store") as store:
        fill(store, [0])
        before = read(tmp_path / "store")
        fill(store, [1])
        assert before.pieces_finished == 1 and before.loss[0, :4].isnull().values[:, 0].tolist() == [
            False,
            False,
            True,
            True,
        ]
        assert read(tmp_path / "store").loss[0, :4].notnull().all()


def test_continuing_gives_the_same_bytes(tmp_path, uninterrupted):
    path = tmp_path / "store"
    for pieces in ([3, 17, 4], [], range(10), None):
        with open_store(path) as store:
            fill(store, pieces)
    whole, digest = uninterrupted
    with open_store(path) as store:
        assert store.digest() == digest
    assert files(path) == files(whole)
    with open_store(tmp_path / "other", configuration=CONFIGURATION | {"seed": 4}) as other:
        fill(other)
        assert other.digest() != digest  # of the same values for another seed
    with open_store(tmp_path / "third") as third:
        fill(third, range(1, LAYOUT.pieces))
        third.write(0, content(0, seed=1))
        assert third.digest() != digest


def test_what_is_half_written_is_not_read(tmp_path, uninterrupted):
    path = tmp_path / "store"
    with open_store(path) as store:
        fill(store, range(5))
        where = LAYOUT.piece(5)
        store._arrays.write(where, content(5))
        for piece in (6, 8):  # what a power cut leaves, also at the end of a cell
            chunk(path, piece).write_bytes(b"")
        assert store.finished() == set(range(5)) and 5 in store.missing()
        result = read(path)
        for name, field in FIELDS.items():
            part = result[name].values[LAYOUT.region(name, where)]
            np.testing.assert_array_equal(part, np.full_like(part, FILL[field.dtype]))
        result.load()
        without_records = xr.open_zarr(path, consolidated=False).loss[LAYOUT.region("loss", where)]
        assert without_records.values.tobytes() == content(5)["loss"].tobytes(), "the broken twin shows it"
        fill(store)
        assert store.verify() == [] and store.digest() == uninterrupted[1]


def test_values_that_look_like_none(tmp_path):
    """Runs that diverged at once: every value is the one that stands for missing."""
    nothing = {name: np.full_like(values, FILL[FIELDS[name].dtype]) for name, values in content(0).items()}
    with open_store(tmp_path / "store") as store:
        store.write(0, nothing)
        assert chunk(tmp_path / "store", 0).exists() and store.verify() == []
        chunk(tmp_path / "store", 0).unlink()
        assert store.verify() == [0]


DAMAGES = {
    "flipped byte": lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "deleted": None,
}


@pytest.mark.parametrize("name", [*FIELDS, "record"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_only_this_piece_computed_again(tmp_path, uninterrupted, name, damage):
    path = shutil.copytree(uninterrupted[0], tmp_path / "store")
    with open_store(path) as store:
        before = files(path)
        victim = path / "manifest/pieces/000011.json" if name == "record" else chunk(path, 11, name)
        victim.unlink() if damage is None else victim.write_bytes(damage(victim.read_bytes()))
        progress = []
        if name == "record" and damage is None:
            assert store.verify() == []
        else:
            assert store.verify(progress=lambda *done: progress.append(done)) == [11]
            assert progress[-1] == (18, 18) and len(progress) == 18
        assert store.missing() == [11] and store.verify() == []
        fill(store)
        assert store.digest() == uninterrupted[1] and files(path) == before


def test_a_lost_file_is_not_taken_for_missing_values(tmp_path):
    with open_store(tmp_path / "store") as store:
        fill(store)
    chunk(tmp_path / "store", 3).unlink()
    result = read(tmp_path / "store")
    with pytest.raises(DataError, match=r"loss/c\.0\.3\.0 is lost: piece 3 is damaged\. Verify the store"):
        result.loss.load()
    result.loss[1].load()
    assert xr.open_zarr(tmp_path / "store", consolidated=False).loss[0].isnull().any(), (
        "the broken twin takes it for NaN"
    )


def test_a_flipped_bit_is_an_error_when_read(tmp_path):
    with open_store(tmp_path / "store") as store:
        fill(store)
    victim = chunk(tmp_path / "store", 3)
    victim.write_bytes(DAMAGES["flipped byte"](victim.read_bytes()))
    with pytest.raises(Exception, match=r"(?i)zstd|checksum|decompress"):
        read(tmp_path / "store").loss.load()


def test_mended_by_another_process_meanwhile(tmp_path):
    path = tmp_path / "store"
    with open_store(path) as one, open_store(path) as other:
        fill(one)
        chunk(path, 4).write_bytes(b"")
        assert not other._intact(4)
        assert one.verify() == [4]
        fill(one)
        assert not other._forget(4), "the other would remove the new record"
        assert one.missing() == []


def test_another_experiment_is_refused_with_the_differences(tmp_path):
    path = tmp_path / "store"
    with open_store(path) as store:
        fill(store, [0])
    before = files(path, everything=True)
    asked = {"optimizer": {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9}, "note": "x" * 100}
    with pytest.raises(InputError) as error:
        open_store(path, configuration=asked)
    assert str(error.value).splitlines() == [
        f"{path} holds the results of another experiment and was left as it is:",
        "  optimizer.learning_rate: 0.1 in the store, 0.2 asked for",
        "  optimizer.momentum: not in the store, 0.9 asked for",
        "  seed: 3 in the store, not asked for",
        f'  note: not in the store, "{"x" * 56}... asked for',
        "Choose another path, or ask for what the store was made for.",
    ]
    assert files(path, everything=True) == before
    open_store(path, configuration=json.loads(json.dumps(CONFIGURATION))).close()


def test_another_layout_is_refused(tmp_path):
    cells = {"rule": ["sgd", "adam"], "batch_size": [1, 2]}
    steps = list(range(40))
    layout = Layout(cells, 17, 2, COORDINATES | {"step": steps}, FIELDS)
    open_store(tmp_path / "store", layout).close()
    other_steps = [*steps[:30], 99, *steps[31:]]
    other = Layout(dict(reversed(cells.items())), 18, 2, COORDINATES | {"step": other_steps}, FIELDS)
    with pytest.raises(InputError) as error:
        open_store(tmp_path / "store", other)
    assert str(error.value).splitlines()[1:-1] == [
        '  layout.cell_dims: ["rule", "batch_size"] in the store, ["batch_size", "rule"] asked for',
        "  layout.runs: 17 in the store, 18 asked for",
        "  layout.coordinates.step: 40 values in the store, 40 asked for; [30] is 30 and 99",
    ]
    longer = Layout(cells, 17, 2, COORDINATES | {"step": range(50)}, FIELDS)
    with pytest.raises(InputError, match=r"step: 40 values in the store, 50 asked for\n"):
        open_store(tmp_path / "store", longer)


def test_a_configuration_that_json_cannot_keep(tmp_path):
    for configuration in ({"rate": float("nan")}, {"rule": object()}):
        with pytest.raises(InputError, match="the configuration cannot be kept as JSON: .*; use text, finite numbers"):
            open_store(tmp_path / "store", configuration=configuration)
    assert list(tmp_path.iterdir()) == []
    open_store(tmp_path / "store", configuration={"rate": np.float32(0.5), "sizes": (1, 2)}).close()
    open_store(tmp_path / "store", configuration={"rate": 0.5, "sizes": [1, 2]}).close()


def test_other_versions_are_noted_with_a_warning(tmp_path):
    path, newer = tmp_path / "store", VERSIONS | {"torch": "2.7.0", "zarr": "3.1"}
    open_store(path).close()
    with pytest.warns(
        UserWarning, match=r"torch 2\.6\.0 before and 2\.7\.0 now, zarr none before and 3\.1 now"
    ) as caught:
        open_store(path, versions=newer).close()
    assert caught[0].filename == store_worker.__file__
    open_store(path, versions=newer).close()  # no warning: it is known
    open_store(path).close()
    manifest = json.loads((path / "manifest/manifest.json").read_text())
    assert manifest["versions"] == [VERSIONS, newer] and manifest["format"] == 1
    assert manifest["configuration"] == CONFIGURATION and manifest["layout"] == LAYOUT.to_json()


def test_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    xr.Dataset({"a": 1}).to_zarr(tmp_path / "saved", consolidated=False)
    before = files(tmp_path, everything=True)
    for name in ("thesis", "empty", "notes.txt", "saved"):
        with pytest.raises(InputError, match=f"{name} is no store of an ensemble; choose another path, nothing was"):
            open_store(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} holds no such thing; expected a store written by an ensemble"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="nowhere does not exist; expected a store"):
        inventory(tmp_path / "nowhere")
    assert files(tmp_path, everything=True) == before and not any((tmp_path / "empty").iterdir())


def test_a_damaged_manifest(tmp_path):
    open_store(tmp_path / "store").close()
    manifest = tmp_path / "store/manifest/manifest.json"
    good = manifest.read_text()
    for bad in ("", good[:40], "[]", good.replace('"runs"', '"ruins"'), good.replace('"float32"', '"text"')):
        manifest.write_text(bad)
        for function in (read, inventory, open_store):
            with pytest.raises(DataError, match=r"manifest\.json cannot be read .*: the store is damaged"):
                function(tmp_path / "store")
    manifest.write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="has the store format 2; this version of shotnoise reads 1"):
        read(tmp_path / "store")
    manifest.write_text(good)
    (tmp_path / "store/loss/zarr.json").write_text("{")
    for function in (read, inventory, open_store):
        with pytest.raises(DataError, match="the arrays in .* cannot be opened .*: the store is damaged"):
            function(tmp_path / "store")


def test_content_that_does_not_fit(tmp_path):
    good = content(0)
    wrong = [
        (
            {k: v for k, v in good.items() if k != "loss"},
            "piece 0 came with the fields spread, stopped; expected loss, sp",
        ),
        (good | {"more": good["loss"]}, "came with the fields loss, more, spread, stopped"),
        (
            good | {"loss": good["loss"][:1]},
            r"loss of piece 0 has shape \(1, 3\) and dtype float32; expected \(2, 3\) and",
        ),
        (
            good | {"loss": good["loss"].astype("float64")},
            r"has shape \(2, 3\) and dtype float64; expected \(2, 3\) and float32",
        ),
    ]
    with open_store(tmp_path / "store") as store:
        for values, message in wrong:
            with pytest.raises(InputError, match=message):
                store.write(0, values)
        with pytest.raises(InputError, match="there is no piece 18"):
            store.claim(18)
        assert store.finished() == set() and not any((tmp_path / "store/loss").glob("c.*"))


def test_writing_twice(tmp_path):
    with open_store(tmp_path / "store") as store:
        store.write(0, content(0))
        before = files(tmp_path / "store", everything=True)
        store.write(0, content(0))
        with pytest.raises(
            DataError, match=r"piece 0 is finished with other values of loss, stopped, spread: it is not"
        ):
            store.write(0, content(0, seed=1))
        assert files(tmp_path / "store", everything=True) == before
        assert not store.claim(0), "what is finished is not computed again"


def refuse(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stage", ["first chunk", "last chunk", "disk", "record"])
def test_a_full_disk(tmp_path, uninterrupted, monkeypatch, stage):
    path, put, calls = tmp_path / "store", zarr.storage._local._put, []

    def put_until_full(file, *arguments, **options):
        calls.append(file)
        if stage == "first chunk" or len(calls) == 3:
            file.with_suffix(".part").write_bytes(b"some")
            refuse()
        return put(file, *arguments, **options)

    with open_store(path) as store:
        fill(store, range(7))
        with monkeypatch.context() as full:
            if stage.endswith("chunk"):
                full.setattr(zarr.storage._local, "_put", put_until_full)
            else:
                full.setattr(store_files.os, "fsync" if stage == "disk" else "replace", refuse)
                if stage == "record":
                    full.setattr(Path, "replace", lambda self, to: os.rename(self, to))  # zarr's, which still works
            message = (
                rf"cannot write piece 7 to {path}: No space left on device; 7 of 18 pieces are finished and intact; "
                "free some space and start the same command again"
            )
            assert store.claim(7)
            with pytest.raises(InputError, match=message):
                store.write(7, content(7))
        assert store.finished() == set(range(7)) and store.verify() == [] and store.owner(7) is None
        assert read(path).loss[0, 14:16].isnull().all()
        assert not list((path / "manifest/pieces").glob(".*"))
        fill(store)
        assert store.digest() == uninterrupted[1]


def test_a_disk_that_fails_otherwise(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    with open_store(tmp_path / "store") as store:
        monkeypatch.setattr(zarr.storage._local, "_put", fail)
        with pytest.raises(
            InputError, match="Input/output error; 0 of 18 .*; see to it and start the same command again"
        ):
            store.write(0, content(0))


def test_everything_is_on_the_disk_before_the_record(tmp_path, monkeypatch):
    """First the values and the folders that name them, then the record."""
    with open_store(tmp_path / "store") as store:
        order, fsync = [], os.fsync

        def watch(descriptor):
            order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path / "store").as_posix())
            fsync(descriptor)

        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("needs /proc to tell the files")
        monkeypatch.setattr(store_files.os, "fsync", watch)
        fill(store, [0])
    data = ["loss/c.0.0.0", "loss", "stopped/c.0.0", "stopped", "spread/c.0.0.0.0", "spread"]
    assert (
        order[:-2] == data and order[-2].startswith("manifest/pieces/.000000.json.") and order[-1] == "manifest/pieces"
    )


def test_a_disk_that_really_refuses(tmp_path, workers, uninterrupted):
    with open_store(tmp_path / "store") as store:
        fill(store, [0, 1])
    message = workers("message_of", tmp_path / "store", 200)  # chunks fit in, records do not
    assert message.startswith("InputError: cannot write piece 2 ") and "File too large; 2 of 18 pieces are" in message
    with open_store(tmp_path / "store") as store:
        assert store.verify() == [] and store.missing() == list(range(2, 18))
        fill(store)
        assert store.digest() == uninterrupted[1]


def test_no_permission_is_noticed_before_any_work(tmp_path, monkeypatch):
    open_store(tmp_path / "store").close()
    before = files(tmp_path, everything=True)
    with monkeypatch.context() as denied:
        denied.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(
            InputError, match=r"cannot write .*store: no permission to write in .*; choose a folder you may"
        ):
            open_store(tmp_path / "store")
        with pytest.raises(InputError, match="no permission to write in the directory"):
            open_store(tmp_path / "new")
    monkeypatch.setattr(store_claims.os, "open", refuse)
    with pytest.raises(InputError, match=r"cannot write .*store: No space left on device; choose a folder"):
        open_store(tmp_path / "store")
    monkeypatch.undo()
    assert files(tmp_path, everything=True) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a directory"):
        open_store(tmp_path / "file" / "store")
    with pytest.raises(InputError, match=r"the directory .*nowhere does not exist\. Create it first"):
        open_store(tmp_path / "nowhere" / "store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    open_store(tmp_path / "store").close()
    (tmp_path / "store/manifest/pieces").chmod(0o500)
    try:
        with pytest.raises(InputError, match="no permission to write in .*pieces"):
            open_store(tmp_path / "store")
    finally:
        (tmp_path / "store/manifest/pieces").chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user(workers):
    with tempfile.TemporaryDirectory() as folder:  # unlike tmp_path, one that others may be allowed into
        path = Path(folder) / "store"
        open_store(path).close()
        assert "InputError: cannot write" in workers("message_of", path, None, 65534)
        os.chmod(folder, 0o755)
        assert f"cannot write {path}: no permission to write in {path}/manifest;" in workers(
            "message_of", path, None, 65534
        )


def test_killed_at_random_moments(tmp_path, workers, uninterrupted):
    half_written = 0
    for seed in range(3):
        path = tmp_path / f"store{seed}"
        counts = workers("kill_on_the_way", path, seed, 6)
        half_written += counts["half_written"]
        assert counts["damaged"] == 0
        with open_store(path) as store:
            assert store.verify() == [] and store.digest() == uninterrupted[1]
        assert files(path) == files(uninterrupted[0]), "something was left behind"
    assert half_written > 0, "these kills prove nothing"


def test_a_record_written_first_would_be_noticed(tmp_path, workers):
    """The broken twin of the order of writing does not survive the kills."""
    assert any(workers("kill_on_the_way", tmp_path / f"store{seed}", seed, 4, True)["damaged"] for seed in range(8))


def test_processes_that_start_at_once_share_the_pieces(tmp_path, workers, uninterrupted):
    done = workers("compete", tmp_path / "store", 4)
    assert sorted(piece for _, piece in done) == list(range(LAYOUT.pieces))
    assert len({pid for pid, _ in done}) > 1
    with open_store(tmp_path / "store") as store:
        assert store.verify() == [] and store.digest() == uninterrupted[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.log"]
    assert files(tmp_path / "store") == files(uninterrupted[0])


@pytest.mark.parametrize("protection", ["without guard", "without claims"])
def test_unprotected_they_would_not(tmp_path, workers, protection):
    paths = [tmp_path / f"store{attempt}" for attempt in range(5)]
    assert any(len(workers("compete", path, 3, protection)) > LAYOUT.pieces for path in paths)


def test_a_killed_process_holds_nothing_up(tmp_path, workers, uninterrupted):
    path = tmp_path / "store"
    holder = workers("hold", path, [0, 3])
    with open_store(path) as store:
        assert not store.claim(0) and not store.claim(3) and store.claim(1)
        assert store.owner(0).pid == holder and str(store.owner(0)).startswith(f"process {holder} on ")
        assert store.owner(1).pid == os.getpid() and store.owner(2) is None
        with pytest.raises(
            InputError, match=f"piece 0 is being computed by process {holder} on .*; claim a piece before"
        ):
            store.write(0, content(0))
        assert {worker.pid for worker in inventory(path).workers} == {holder, os.getpid()}
        workers("kill", holder)
        assert store.owner(0) is None and store.claim(0)
        assert [worker.pid for worker in inventory(path).workers] == [os.getpid()]
        open_store(path).close()  # clears what the dead one left, and leaves what the living have
        assert sorted(p.name for p in (path / "manifest/claims").iterdir()) == ["000000", "000001"]
        assert len(list((path / "manifest/workers").iterdir())) == 1
        for piece in (0, 1):
            store.write(piece, content(piece))
        fill(store)
        assert store.digest() == uninterrupted[1]


def test_claims_that_counted_for_the_dead_would_block(tmp_path, workers, monkeypatch):
    """The broken twin: a claim that counts as long as its file exists."""
    workers("kill", workers("hold", tmp_path / "store", [0]))
    monkeypatch.setattr(store_claims, "is_alive", lambda path, worker: True)
    with open_store(tmp_path / "store") as store:
        assert not store.claim(0)


def test_claims_end_with_release_and_close(tmp_path):
    path = tmp_path / "store"
    with open_store(path) as one, open_store(path) as other:
        assert one.claim(0) and not one.claim(0) and not other.claim(0)
        other.release(0)
        assert not other.claim(0), "only the owner can release"
        one.release(0)
        assert other.claim(0) and one.claim(1)
        one.close()
        assert other.claim(1)
        with pytest.raises(InputError, match="store was closed; open it again"):
            one.claim(2)
    assert not any((path / "manifest/claims").iterdir()) and not any((path / "manifest/workers").iterdir())


def test_a_claim_cut_short_by_a_kill_is_none(tmp_path):
    with open_store(tmp_path / "store") as store:
        name = store._claims.worker.name
        for piece, text in enumerate(["", name[:-5], "../../x-1-" + "0" * 32]):
            (tmp_path / f"store/manifest/claims/{piece:06d}").write_text(text)
            assert store.owner(piece) is None and store.claim(piece)


def test_half_written_files_are_cleared_when_nobody_else_writes(tmp_path):
    path = tmp_path / "store"
    open_store(path).close()
    before = files(path)
    left = [path / "loss/c.0.0.ab12.partial", path / "manifest/pieces/.000001.json.ab12.partial"]
    with open_store(path):
        for file in left:
            file.write_text("half")
        open_store(path).close()
        assert all(file.exists() for file in left), "the first could be writing them"
    open_store(path).close()
    assert files(path) == before


def share_among_threads(path):
    """The pieces in the order of computing, and the digest."""
    done = []
    with open_store(path) as store:

        def work():
            for piece in store.missing():
                if store.claim(piece):
                    done.append(piece)
                    with contextlib.suppress(InputError):
                        store.write(piece, content(piece))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.verify() == []
        return sorted(done), store.digest()


def test_a_store_comes_into_being_in_one_step(tmp_path, monkeypatch):
    before = []

    def rename(fresh, path):
        before.append((path.exists(), sorted(p.name for p in fresh.iterdir())))
        refuse()

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(InputError, match="cannot write .*store: No space left on device"):
        open_store(tmp_path / "store")
    everything = ["batch_size", "loss", "manifest", "quantile", "run", "spread", "step", "stopped", "zarr.json"]
    assert before == [(False, everything)] and list(tmp_path.iterdir()) == []


def test_threads_share_the_pieces(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(store_claims, "_read", store_worker.slowed(store_claims._read))
    assert share_among_threads(tmp_path / "store") == (list(range(LAYOUT.pieces)), uninterrupted[1])
    monkeypatch.setattr(store_claims.Claims, "guard", lambda self: contextlib.nullcontext())
    assert len(share_among_threads(tmp_path / "twin")[0]) > LAYOUT.pieces, "the broken twin computes some twice"


def test_taking_stock(tmp_path, monkeypatch):
    path = tmp_path / "store"
    with open_store(path) as store:
        fill(store, [0, 3, 4, 9, 10, 11, 12, 13, 14, 15, 16])
        chunk(path, 3).unlink()
        before = files(path, everything=True)
        found = inventory(path)
        here = store._claims.worker
    gaps = (Gap({"batch_size": 5}, ((2, 6), (10, 17))), Gap({"batch_size": 50}, ((16, 17),)))
    assert found.missing == gaps and found.damaged == (3,) and found.workers == (here,)
    assert (found.finished, found.pieces, found.complete) == (10, 18, False)
    assert found.sentence == (
        "10 of 18 pieces are finished and intact; damaged: 3; missing: batch_size=5 runs 2-5, 10-16, batch_size=50 "
        f"runs 16-16; at work: process {os.getpid()} on {here.host}"
    )
    monkeypatch.setattr(store_claims.os, "open", refuse)  # a folder that may only be read
    assert inventory(path).workers == ()
    after = files(path, everything=True)
    assert {name: before[name] for name in after} == after, "taking stock changes nothing"


def test_stock_of_a_whole_store_and_of_an_empty_one(tmp_path, uninterrupted):
    found = inventory(uninterrupted[0])
    assert found.complete and found.sentence == "18 of 18 pieces are finished and intact"
    layout = Layout({"batch_size": range(1, 8)}, 2, 1, COORDINATES, FIELDS)
    open_store(tmp_path / "many", layout).close()
    assert inventory(tmp_path / "many").sentence.endswith("batch_size=5 runs 0-1 and 2 more")
    open_store(tmp_path / "one", Layout({}, 2, 1, COORDINATES, FIELDS)).close()
    assert inventory(tmp_path / "one").sentence == "0 of 2 pieces are finished and intact; missing: runs 0-1"
