"""`shotnoise reproduce gauss-bounds`: small versions of every figure, and a verdict that can fail."""

import sys

import numpy as np
import pytest

import shotnoise as sn
import shotnoise.reproduce


@pytest.fixture(autouse=True)
def small(monkeypatch):
    module = sys.modules["shotnoise.reproduce.gauss_bounds"]
    monkeypatch.setitem(module.PRESETS, "quick", module.Preset(12, 5, 100))
    monkeypatch.setitem(module.LABELS, "15 % random labels", (0.15, 1500))
    monkeypatch.setitem(module.LOOKS, "true labels", (0, 50))
    monkeypatch.setitem(module.LOOKS, "15 % random labels", (0, 100))
    return module


@pytest.mark.parametrize("figure", ["fig25", pytest.param("fig11", marks=pytest.mark.slow)])
def test_the_weighted_norm_grows_with_random_labels(run, tmp_path, figure):
    code, said, err = run("reproduce", "gauss-bounds", figure, "--out", tmp_path, "--workers", 1)
    assert code == 0, said
    assert "|w|^2/s^2: median" in said and "larger with random labels" in said
    assert "no better than guessing (0.9) in 100 % (true labels) and 100 % (15 % random labels)" in said
    for name in (f"{figure}.svg", f"{figure}.png", "report.html"):
        assert (tmp_path / figure / name).exists() and name in err


def test_the_bounds_on_one_step_hold(tmp_path):
    found = sn.reproduce.gauss_bounds(tmp_path, "loss-change")
    assert found.holds and "The mean change lies in its interval in 4 of 4 cases." in found.sentences
    spread = np.sqrt(found.data["loss_change_0"]["loss_change_variance"].values)
    assert spread[1] > 4 * spread[0]  # it rises before it falls
    assert {path.name for path in found.save(tmp_path)} >= {"loss_change_0.svg", "report.html"}


def test_a_bound_that_is_exceeded_is_noticed(tmp_path, small, monkeypatch):
    """The broken twin: real batches that exceed a third of the bound."""
    right = small.bounds.one_step

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        return found.assign(exceedance=found["exceedance"] + 0.2)

    monkeypatch.setattr(small.bounds, "one_step", wrong)
    for labels in small.LABELS:
        monkeypatch.setitem(small.LOOKS, labels, (0,))
    assert not sn.reproduce.gauss_bounds(tmp_path, "loss-change").holds


def test_names(run, tmp_path):
    code, _, err = run("reproduce", "gauss-bounds", "fig9", "--out", tmp_path)
    assert code == 2 and "figure 'fig9': one of loss-change, fig11, fig25" in err
    code, _, err = run("reproduce", "gauss-bounds", "fig11", "--preset", "huge", "--out", tmp_path)
    assert code == 2 and "preset 'huge': one of quick, paper" in err
