"""An unwritable path is found before the work, and a failed write leaves what was there."""

import os

import pytest

from shotnoise.errors import InputError
from shotnoise.files import write_atomically
from shotnoise.show import check_writable


def test_a_good_path_is_good_and_left_alone(tmp_path):
    assert check_writable(tmp_path / "new.html") == tmp_path / "new.html"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.html").write_text("old")
    check_writable(tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text() == "old"


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the directory .*missing does not exist\. Create it first"):
        check_writable(tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match=r"it is a directory\. Name a file, such as .*report\.html"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        check_writable(tmp_path / "file" / "report.html")
    with pytest.raises(InputError, match="not a regular file"):
        check_writable(os.devnull)
    with pytest.raises(InputError, match=r"cannot write .*null"):
        check_writable("a\0b")
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / ("x" * 300))


def test_permissions_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission to write in the directory"):
        check_writable(tmp_path / "report.html")
    (tmp_path / "old.html").write_text("old")
    with pytest.raises(InputError, match="write-protected"):
        check_writable(tmp_path / "old.html")


def test_links_are_followed_and_circles_noticed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "a")


def test_text_is_utf8_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    assert write_atomically(path, "‖∇L‖²") == path
    assert path.read_bytes() == "‖∇L‖²".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"No space left on device\. Free some space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
