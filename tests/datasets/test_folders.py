import pytest

from shotnoise.datasets.folders import data_folder, read_bytes, search_folders
from shotnoise.errors import DataError


def test_argument_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOTNOISE_DATA", str(tmp_path))
    (tmp_path / "given").mkdir()
    assert data_folder(None, wanted_for="toy", how_to_get="") == tmp_path
    assert data_folder(tmp_path / "given", wanted_for="toy", how_to_get="") == tmp_path / "given"


def test_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("SHOTNOISE_DATA", "")
    with pytest.raises(DataError, match=r"toy is read from files, but no folder is named.*\nAsk the author\."):
        data_folder(None, wanted_for="toy", how_to_get="Ask the author.")


def test_only_subfolders_that_exist_are_searched(tmp_path):
    (tmp_path / "one").mkdir()
    assert search_folders(tmp_path, ["one", "two"]) == (tmp_path, tmp_path / "one")


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_bytes(tmp_path)
