"""Figures of bounds and of advice show the stored numbers."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import shotnoise as sn
from shotnoise import show


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(6, 2)))
    torch.manual_seed(0)
    return sn.Problem(nn.Linear(2, 1).double(), "mse", x, x[:, :1] + 1)


def by_id(axes, gid):
    return [artist for artist in [*axes.lines, *axes.patches] if str(artist.get_gid()).startswith(gid)]


def test_one_step(problem):
    found = sn.predict.bounds.one_step(problem, 0.1, 2, tail_probabilities=[0.1, 0.01])
    axes = show.loss_change(found).axes[0]
    (mean,) = by_id(axes, "mean")
    assert mean.get_xdata()[0] == float(found["loss_change_mean"])
    at = found["loss_change_bound"].sel(side="upper", tail_probability=0.01)
    lines = {line.get_gid().removeprefix("bound "): line.get_xdata()[0] for line in by_id(axes, "bound")}
    best = float(at.where(at["bound_model"] == "real batches").min())
    assert lines == {name: best if name == "batches" else float(at.sel(bound=name)) for name in lines}
    assert 0 < len(lines) <= 3
    assert len(lines) == 3 - axes.get_title(loc="left").count(" at ")
    (band,) = by_id(axes, "interval")
    assert band.get_x() == float(found["loss_change_lower"].sel(form="batch"))
    with pytest.raises(sn.InputError, match=r"tail_probability=0\.3"):
        show.loss_change(found, 0.3)
    with pytest.raises(sn.InputError, match="expected a result of predict.bounds.one_step"):
        show.loss_change(xr.Dataset())


def test_several_steps(problem):
    parts = [(t, sn.predict.bounds.one_step(problem, 0.1, 2)) for t in (0, 5, 10)]
    figure = show.loss_change(sn.results.along_steps(parts, {}))
    assert [axes.get_title(loc="left").split(";")[0] for axes in figure.axes[:3]] == ["step 0", "step 5", "step 10"]
    assert not figure.axes[3].get_visible()


def test_the_process(problem):
    found = sn.predict.bounds.loss_process(problem, 0.1, 2, 4, runs=3)
    axes = show.loss_process(found).axes[0]
    bounds = by_id(axes, "bound batches")
    expected = found["martingale_bound"].sel(noise="batches", tail_probability=0.01).values
    np.testing.assert_array_equal(bounds[0].get_ydata(), expected)
    np.testing.assert_array_equal(bounds[1].get_ydata(), -expected)
    with pytest.raises(sn.InputError, match="with the variable martingale"):
        show.loss_process(xr.Dataset())


def test_distributions():
    groups = {
        name: xr.Dataset({"a": ("run", np.arange(1.0, 9) + k), "b": ("run", np.zeros(8))})
        for k, name in enumerate("xy")
    }
    figure = show.distributions(groups, {"a": "A", "b": "B"}, ["b"])
    medians = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert medians == [4.5, 5.5] and figure.axes[1].get_title(loc="left") == "no positive value"


def test_advice(problem):
    sheet = show.advice_sheet(sn.advise(problem, 0.1, 2))
    assert sheet.rows[0][0] == "stability limit" and sheet.rows[2][3] == "exact"
