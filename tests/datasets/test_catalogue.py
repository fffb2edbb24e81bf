import pytest

from shotnoise import datasets
from shotnoise.errors import DataError, InputError


@pytest.mark.parametrize("name", ["digits", "diabetes", "gauss", "gauss-2", "gauss-10"])
def test_sets_without_files_need_no_folder_and_ignore_one(name, no_default_folder, tmp_path):
    assert len(datasets.load(name)) == len(datasets.load(name, data_dir=tmp_path / "absent")) > 0


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_sets_with_files_say_how_to_name_a_folder_and_get_the_files(name, no_default_folder):
    expected = f"(?s){name} is read from files.*data_dir.*--data-dir.*SHOTNOISE_DATA.*libraries that download"
    with pytest.raises(DataError, match=expected):
        datasets.load(name)


def test_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SHOTNOISE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        datasets.load("mnist")
    assert str(tmp_path) in str(caught.value) and "train-images-idx3-ubyte[.gz]" in str(caught.value)


def test_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="which is not a folder"):
        datasets.load("mnist", data_dir=tmp_path / "absent")


def test_named_gauss_sets_are_the_general_one():
    named, general = datasets.load("gauss-2", seed=4), datasets.load("gauss", k=2, seed=4)
    assert named.inputs.equal(general.inputs) and named.name == "gauss-2"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet", {}, "no data set 'imagenet'; the names are digits, diabetes, gauss,"),
        ("digits", {"k": 2}, "'digits' has no option k; its options: none"),
        (
            "gauss-2",
            {"k": 3},
            "'gauss-2' has no option k; its options: n, dimension, random_labels, scale, seed",
        ),
        ("csv", {"path": "x.csv"}, "'csv' needs the option target"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(InputError, match=message):
        datasets.load(name, **options)
