"""Variances over runs by layer: from the runs' own gradients, summing to the whole, in memory and in a store."""

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise.simulate import recorders

RUNS, STEPS = 24, 4
NAMES = ["layer_gradient_variance", "layer_full_gradient_variance"]
WHOLE = ["gradient_variance", "full_gradient_variance"]


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return sn.Problem(model, "mse", torch.randn(30, 3).double(), torch.randn(30, 2).double())


def runs(problem, record, **options):
    options = {"workers": 1, "seed": 5} | options
    return sn.simulate(problem, sn.rules.SGD(0.2), [2, 8], STEPS, RUNS, record=record, **options)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("block", [RUNS, 10])
def test_each_layer_from_the_gradients_of_the_runs(problem, engine, block):
    def gradients(state):
        return state.gradients

    def full(state):
        return state.full_gradients

    recorded = runs(problem, {"g": gradients, "f": full}, engine=engine, block=block)
    found = runs(problem, NAMES, engine=engine, block=block)
    assert found["layer"].values.tolist() == ["0", "2"]
    slices = [slice(0, 16), slice(16, 26)]
    blocks = [np.arange(k, min(k + block, RUNS)) for k in range(0, RUNS, block)]
    for name, raw in zip(NAMES, ("g", "f"), strict=True):
        values = recorded[raw].transpose("batch_size", "step", "run", ...).values
        for k, part in enumerate(slices):
            each = np.array([values[:, :, rows, part].var(2, ddof=1).sum(-1) for rows in blocks])
            weights = np.array([len(rows) - 1 for rows in blocks])
            expected = (weights[:, None, None] * each).sum(0) / weights.sum()
            np.testing.assert_allclose(found[name].isel(layer=k), expected, rtol=1e-9, atol=1e-18)
            wrong = recorded[raw].isel({f"{raw}_0": slice(1, 17)}).var("run", ddof=1).sum(f"{raw}_0")
            assert not np.allclose(found[name].isel(layer=k, step=slice(1, None)), wrong.isel(step=slice(1, None)))


def test_the_layers_sum_to_the_whole(problem):
    found = runs(problem, NAMES + WHOLE, block=10)
    for name in WHOLE:
        layered = found[f"layer_{name}"]
        np.testing.assert_allclose(layered.sum("layer"), found[name], rtol=1e-9, atol=1e-18)
        assert layered.dims == ("batch_size", "step", "layer")
        assert (found[f"layer_{name}_stderr"].isel(step=slice(1, None)) > 0).all()
    assert found[NAMES[1]].attrs["long_name"] == "variance of the full gradient over runs, by layer"


def test_a_store_keeps_them(problem, tmp_path):
    kept = runs(problem, NAMES, block=10)
    stored = runs(problem, NAMES, block=10, store=tmp_path / "runs.zarr").load()
    for name in NAMES:
        np.testing.assert_array_equal(stored[name], kept[name])
    again = sn.simulate.load(tmp_path / "runs.zarr")
    assert again["layer"].values.tolist() == ["0", "2"]
    assert "layer_gradient_variance" in sn.simulate.summary(again.load())


def test_columns_that_are_no_neighbours_are_collected():
    vectors = torch.arange(12.0).view(2, 6)
    near, apart = (recorders._columns(vectors, [slice(1, 3), other]) for other in (slice(3, 4), slice(5, 6)))
    assert near.tolist() == [[1, 2, 3], [7, 8, 9]] and near.data_ptr() == vectors[:, 1:].data_ptr()
    assert apart.tolist() == [[1, 2, 5], [7, 8, 11]]
