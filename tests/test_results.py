import json
import os
import zipfile
from datetime import datetime
from importlib.metadata import version

import numpy as np
import pytest
import torch
import xarray as xr

import shotnoise as sn
from shotnoise import results
from shotnoise.errors import DataError, InputError


def make_problem(shift: float = 0.0, weight: float = 0.0) -> sn.Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight[0, 0] += weight
    inputs = torch.randn(40, 2, generator=generator)
    inputs[7, 1] += shift
    return sn.Problem(model, "mse", inputs, torch.randn(40, 1, generator=generator), l2=0.01)


@pytest.fixture(scope="module")
def everything() -> xr.Dataset:
    """A result with every variable there is: estimates from samples, and what takes all of the data."""
    estimated = sn.measure(make_problem(), [1, 8], samples=20)
    whole = sn.measure(make_problem(), [1, 8], top=2, per_parameter=True, hessian=True)
    return estimated.merge(whole[[name for name in whole.data_vars if name not in estimated]])


@pytest.fixture(scope="module")
def exact() -> xr.Dataset:
    return sn.measure(make_problem(), [1, 40])


def awkward() -> xr.Dataset:
    """Values that a careless writer loses."""
    return results.dataset(
        {
            "noise_scale": ("batch_size", [np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308]),
            "loss": ((), np.float32(1 / 3)),
            "noise_scale_status": ((), "not resolvable with this budget"),
        },
        {"batch_size": np.array([1, 2, 3, 4, 5, 2**62]), "layer": np.array(["(model)", "Schicht ä", ""])},
        {"l2": 1e-300, "seed": 2**40, "layers": ["a", "b"], "flag": True, "empty": "", "text": "ü"},
    )


def assert_same(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a, b)
    for name in a.variables:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].values.tobytes() == b[name].values.tobytes(), name
    assert list(a.attrs.items()) == list(b.attrs.items())


@pytest.mark.parametrize("name", ["result", "result.zarr", "result.zip"])
def test_what_is_saved_comes_back_to_the_bit(tmp_path, name, everything, exact):
    for result in (everything, exact, awkward()):
        assert sn.save(result, tmp_path / name) == tmp_path / name  # the second and third overwrite
        assert_same(sn.load(tmp_path / name), result)
        assert_same(sn.load(str(tmp_path / name)), result)
    assert [p.name for p in tmp_path.iterdir()] == [name], "something was left behind"
    assert (tmp_path / name).is_file() == name.endswith(".zip")
    with pytest.raises(AssertionError):
        assert_same(sn.load(tmp_path / name), awkward().assign(loss=np.float32(0.333)))


def test_the_loaded_result_does_not_need_its_file(tmp_path, exact):
    sn.save(exact, tmp_path / "a.zip")
    loaded = sn.load(tmp_path / "a.zip")
    (tmp_path / "a.zip").unlink()
    assert_same(loaded, exact)


def test_xarray_opens_it_without_us(tmp_path, everything):
    sn.save(everything, tmp_path / "store")
    opened = xr.open_zarr(tmp_path / "store", consolidated=False, chunks=None).load()
    del opened.attrs[results.DIGEST]
    assert_same(opened, everything)


def test_only_stores_are_overwritten(tmp_path, exact):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "fake.zip").write_text("not an archive")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("holiday.jpg", "pixels")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name in ("folder", "notes.txt", "fake.zip", "photos.zip"):
        with pytest.raises(InputError, match=f"{name} exists and is not a Zarr store.*nothing was overwritten"):
            sn.save(exact, tmp_path / name)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_failed_save_keeps_the_old_result(tmp_path, exact, everything, monkeypatch):
    for name in ("store", "store.zip"):
        sn.save(exact, tmp_path / name)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "_write", full)
    for name in ("store", "store.zip"):
        with pytest.raises(InputError, match=r"cannot write .*: No space left on device; choose a folder"):
            sn.save(everything, tmp_path / name)
        assert_same(sn.load(tmp_path / name), exact)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.zip"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, exact):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"cannot write .*choose a folder you may write to"):
            sn.save(exact, tmp_path / "a.zip")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which even root cannot write")
def test_a_folder_in_which_nobody_writes(exact):
    with pytest.raises(InputError, match=r"cannot write /proc/a\.zip: .*choose a folder you may write to"):
        sn.save(exact, "/proc/a.zip")


def test_a_folder_that_is_not_there(tmp_path, exact):
    with pytest.raises(InputError, match=r"cannot write .*none.a\.zip: No such file or directory; choose a folder"):
        sn.save(exact, tmp_path / "none" / "a.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*Not a directory"):
        sn.save(exact, tmp_path / "file" / "a.zarr")


def test_nothing_to_load(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; expected a Zarr store written by shotnoise\.save"):
        sn.load(tmp_path / "nowhere")


def damage(path, how):
    if path.is_file():
        content = path.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"PK\3\4 nonsense"}[how])
        return
    victims = [p for p in path.rglob("*") if p.is_file() and ("zarr.json" in p.name) == (how == "other")]
    for victim in victims:
        content = victim.read_bytes()
        victim.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"{"}[how])


@pytest.mark.parametrize("name", ["store", "store.zip"])
@pytest.mark.parametrize("how", ["truncated", "empty", "other"])
def test_a_damaged_store(tmp_path, name, how, exact):
    path = sn.save(exact, tmp_path / name)
    damage(path, how)
    with pytest.raises(DataError, match=f"{name} cannot be read as a Zarr store .*damaged"):
        sn.load(path)


@pytest.mark.parametrize("kind", ["folder", "text"])
def test_something_else_is_not_a_store(tmp_path, kind):
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="cannot be read as a Zarr store"):
        sn.load(path)


def refuse_constant(text):
    raise ValueError(f"{text} is not JSON")


def test_json_is_strict_and_complete(everything):
    for result in (everything, awkward()):
        content = json.loads(results.to_json(result), parse_constant=refuse_constant)
        assert set(content) == {"coordinates", "variables", "attributes"}
        assert set(content["variables"]) == set(result.data_vars)
        assert set(content["coordinates"]) == set(result.coords)
        for name, entry in {**content["variables"], **content["coordinates"]}.items():
            assert entry["dims"] == list(result[name].dims)
            if result[name].dtype.kind == "f":
                back = np.array(entry["values"], dtype=float)
                np.testing.assert_array_equal(back, result[name].values)
    assert content["variables"]["noise_scale"]["values"][:3] == ["NaN", "Infinity", "-Infinity"]
    assert content["variables"]["noise_scale"]["attrs"] == {"long_name": "gradient noise scale", "units": "samples"}
    assert content["attributes"]["layers"] == ["a", "b"]


def test_json_takes_numpy_numbers_in_attributes(tmp_path):
    result = sn.measure(make_problem(), [1], samples=np.int64(20), seed=np.int64(3))
    assert json.loads(results.to_json(result))["attributes"]["samples_used"] == 20
    assert_same(sn.load(sn.save(result, tmp_path / "a")), result.assign_attrs(samples_used=20, seed=3))


def test_provenance_says_where_it_comes_from():
    problem = make_problem()
    result = sn.measure(problem, [1], sn.sampling.WithReplacement(), samples=20, seed=5, confidence=0.9)
    found = dict(result.attrs)
    created = datetime.fromisoformat(found.pop("created"))
    assert abs((datetime.now(created.tzinfo) - created).total_seconds()) < 60
    assert found == {
        "model": "Sequential",
        "parameters": 13,
        "loss_name": "mse",
        "l2": 0.01,
        "n_samples": 40,
        "dtype": "float32",
        "device": "cpu",
        **problem.fingerprints(),
        "shotnoise_version": version("shotnoise"),
        "torch_version": torch.__version__,
        "numpy_version": np.__version__,
        "python_version": found["python_version"],
        "sampling": "WithReplacement()",
        "samples_used": 20,
        "seed": 5,
        "confidence": 0.9,
    }
    assert version("shotnoise") == sn.__version__


def test_fingerprints_know_weights_and_data_apart():
    def prints(**change):
        found = results.provenance(make_problem(**change))
        return found["model_fingerprint"], found["data_fingerprint"]

    model, data = prints()
    assert prints() == (model, data)
    other_model, same_data = prints(weight=1e-6)
    assert other_model != model and same_data == data
    same_model, other_data = prints(shift=1e-6)
    assert same_model == model and other_data != data


def test_every_variable_says_what_it_is(everything, exact):
    for result in (everything, exact):
        for name, variable in result.data_vars.items():
            base = str(name).removeprefix("layer_").removesuffix("_stderr")
            assert base in results.GLOSSARY
            assert variable.attrs["long_name"].startswith(results.GLOSSARY[base][0])
            assert variable.attrs["units"] == results.GLOSSARY[base][1]
            assert ("by layer" in variable.attrs["long_name"]) == str(name).startswith("layer_")
            assert ("standard error" in variable.attrs["long_name"]) == str(name).endswith("_stderr")


def test_every_word_of_the_glossary_is_used(everything):
    first = list(results.GLOSSARY).index("gradient_variance")  # from here on the words of simulate and predict
    assert set(list(results.GLOSSARY)[:first]) <= set(everything.data_vars)


def test_a_word_that_is_not_in_the_glossary_is_refused():
    with pytest.raises(KeyError, match="wobble"):
        results.dataset({"wobble": ((), 1.0)}, {}, {})


def test_every_estimate_has_its_standard_error(everything):
    without = {"noise_scale_low", "noise_scale_high", "noise_scale_status", "noise_scale_samples_needed"}
    of_all_samples = {name for name in everything.data_vars if str(name).startswith(("noise_e", "noise_f", "param"))}
    for name in set(map(str, everything.data_vars)) - without - of_all_samples:
        if not name.endswith("_stderr"):
            assert everything[f"{name}_stderr"].dims == everything[name].dims, name


def test_exact_results_have_no_standard_error(exact):
    assert not [name for name in exact.data_vars if str(name).endswith("_stderr")]


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip"])
def test_values_that_are_not_those_saved_are_noticed(exact, tmp_path, name):
    """A chunk that is gone reads as if it were empty, without an error from the store."""
    path = sn.save(exact, tmp_path / "a.zarr")
    (chunk,) = [file for file in (path / "noise_trace" / "c").parent.rglob("*") if file.name == "c"]
    chunk.unlink()
    if name.endswith(".zip"):
        results._pack(path, path := tmp_path / name)
    with pytest.raises(DataError, match="is damaged: its values are not those that were saved"):
        sn.load(path)


def test_a_store_is_replaced_whole(exact, tmp_path, monkeypatch):
    path, real = sn.save(exact, tmp_path / "a.zarr"), results.os.replace

    def failing(source, target):
        if str(target) == str(path) and "before" not in str(source):
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(results.os, "replace", failing)
    with pytest.raises(InputError, match="no space left"):
        sn.save(exact.isel(batch_size=[0]), path)
    monkeypatch.undo()
    assert sn.load(path).identical(exact) and [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
