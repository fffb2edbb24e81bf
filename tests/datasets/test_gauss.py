import numpy as np
import pytest
import torch

from shotnoise.datasets import load
from shotnoise.datasets.gauss import _spread_over_classes
from shotnoise.errors import InputError


def test_default_is_the_recipe_that_trains():
    data = load("gauss-10")
    assert data.inputs.shape == (100, 50) and data.inputs.dtype == torch.float32
    assert data.targets.bincount().tolist() == [10] * 10 and data.classes == 10
    assert data.inputs.abs().max() < (10 + 6) / 5


def test_clouds_have_unit_noise_around_centres_in_the_cube():
    data = load("gauss", k=4, n=40_000, dimension=3, scale=1.0, seed=1)
    for label in range(4):
        cloud = data.inputs[data.targets == label].double()
        standard_error = 1 / len(cloud) ** 0.5
        assert cloud.mean(0).abs().max() < 10 + 5 * standard_error
        assert (cloud.std(0) - 1).abs().max() < 5 * standard_error / 2**0.5


def test_centres_fill_the_cube_evenly():
    data = load("gauss", k=2000, n=2000, dimension=50, scale=1.0)
    variance = 20**2 / 12 + 1
    assert data.inputs.double().var().item() == pytest.approx(variance, rel=0.02)


def test_scale_divides_the_inputs():
    raw, scaled = load("gauss-2", scale=1.0), load("gauss-2")
    torch.testing.assert_close(raw.inputs, 5 * scaled.inputs)


def test_seed_fixes_everything_and_random_labels_leave_the_inputs_alone():
    assert load("gauss-10", seed=1).inputs.equal(load("gauss-10", seed=1).inputs)
    assert not load("gauss-10", seed=1).inputs.equal(load("gauss-10", seed=2).inputs)
    assert load("gauss-10", seed=1).inputs.equal(load("gauss-10", seed=1, random_labels=0.2).inputs)


@pytest.mark.parametrize(("k", "n", "count"), [(10, 100, 15), (2, 100, 20), (3, 11, 7), (3, 11, 11), (4, 4, 0)])
def test_redrawn_samples_are_spread_evenly(k, n, count):
    chosen = _spread_over_classes(np.random.default_rng(0), n, k, count)
    assert len(set(chosen.tolist())) == len(chosen) == count
    per_class = np.bincount(chosen % k, minlength=k)
    assert per_class.max() - per_class.min() <= 1


def test_every_sample_may_be_redrawn():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[_spread_over_classes(np.random.default_rng(seed), 20, 4, 6)] += 1
    standard_error = (2000 * 0.3 * 0.7) ** 0.5
    assert np.abs(counts - 600).max() < 5 * standard_error


def test_share_of_wrong_labels_is_r_times_one_minus_one_over_k():
    data = load("gauss", k=5, n=50_000, dimension=1, random_labels=0.4)
    wrong = (data.targets != torch.arange(50_000) % 5).double().mean().item()
    assert wrong == pytest.approx(0.4 * 0.8, abs=5 * (0.32 * 0.68 / 50_000) ** 0.5)
    few = load("gauss-10", random_labels=0.15)
    assert (few.targets != torch.arange(100) % 10).sum() <= 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "expected k >= 2"),
        ({"k": 10, "n": 9}, "n >= k samples"),
        ({"dimension": 0}, "dimension >= 1"),
        ({"random_labels": 15}, "random_labels=15; expected a share between 0 and 1"),
        ({"scale": 0.0}, "scale=0.0; the inputs are divided by it"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        load("gauss", **options)
