"""`shotnoise reproduce teacher-student` on a small network: what it says, writes and rejects."""

import sys

import pytest

import shotnoise as sn
import shotnoise.reproduce.teacher_student

recipe = sys.modules["shotnoise.reproduce.teacher_student"]
FILES = ["first_layer.svg", "second_layer.png", "exact_first.svg", "counterexample.svg", "report.html", "law.zip"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(recipe, "WIDTHS", (4, 6, 3))
    monkeypatch.setitem(recipe.PRESETS, "quick", recipe.Preset(200, 6, 2, (1, 8, 64), 100, 500, 1000))


def test_what_it_says_and_writes(run, tmp_path):
    code, said, err = run("reproduce", "teacher-student", "--out", tmp_path, "--workers", 1)
    assert code == 0, (said, err)
    assert "The decreasing property held: of 24 pairs" in said
    assert "first layer agrees with runs" in said and "second layer agrees with runs" in said
    assert "has 1.42 times the variance at b = 2" in said and "runs agree" in said
    for name in FILES:
        assert (tmp_path / name).exists() and name in err
    again, said_again, _ = run("reproduce", "teacher-student", "--out", tmp_path, "--workers", 1)
    assert again == 0 and said_again == said


def test_the_broken_twin_does_not_hold(tmp_path, monkeypatch):
    """The other layer's polynomial."""
    true = recipe._exact
    monkeypatch.setattr(recipe, "_exact", lambda pair, layer, sizes: true(pair, 1 - layer, sizes))
    found = sn.reproduce.teacher_student(tmp_path, workers=1)
    assert not found.holds and "DISAGREES" in " ".join(found.sentences)


def test_an_unknown_preset_is_refused(run, tmp_path):
    code, _, err = run("reproduce", "teacher-student", "--preset", "huge", "--out", tmp_path / "o")
    assert code == 2 and "preset 'huge': one of quick, paper" in err
