"""Propagation on populations: against the exact coefficient of 1/b of Gaussian networks, in standard errors."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise.errors import InputError
from shotnoise.predict.propagation.path import Path
from shotnoise.predict.propagation.validity import noise_trace

LIMIT = 4.5  # standard errors; below 1e-5 for one number
RATE = 0.05


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(3)
    student = [rng.normal(size=(3, 2)) / 2, rng.normal(size=(2, 3)) / 2]
    target = rng.normal(size=(2, 2))
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        for weight, value in zip(model.parameters(), student, strict=True):
            weight.copy_(torch.from_numpy(value))
    population = sn.TeacherStudent(model, torch.from_numpy(target))
    leading = np.array([
        [float(sn.predict.networks.gradient_variance_polynomial(student, target, RATE, t, k).coefficients[1])
         for k in range(2)] for t in range(2)
    ])  # fmt: skip
    return population, leading


def test_the_leading_coefficient_is_the_exact_one(setting):
    population, leading = setting
    law = sn.predict.propagation(population, None, RATE, 1, [1, 10], probes=2000)
    z = (law["layer_gradient_variance_leading"] - leading) / law["layer_gradient_variance_leading_stderr"]
    assert abs(z).max() < LIMIT
    assert (law["layer_gradient_variance_leading_stderr"] < 0.15 * leading).all()
    np.testing.assert_allclose(law["gradient_variance"].sel(batch_size=10), law["gradient_variance_leading"] / 10)
    full = law["layer_full_gradient_variance_leading"]
    assert (full.isel(step=0) == 0).all() and (full.isel(step=1) > 0).all()
    # the points that stand for the population in closed form have its mean gradient, but not its noise
    points = sn.predict.propagation(population.problem, None, RATE, 1, [1], probes=2000)
    wrong = (points["layer_gradient_variance_leading"] - leading) / law["layer_gradient_variance_leading_stderr"]
    assert abs(wrong).max() > LIMIT


def test_what_the_noise_does_to_the_full_gradient(setting):
    population, _ = setting
    student = [w.detach().numpy() for w in population.problem.model.parameters()]
    target = population.teacher.weight.detach().numpy()
    exact = [
        float(sn.predict.networks.full_gradient_variance_polynomial(student, target, RATE, 1, k).coefficients[1])
        for k in range(2)
    ]
    law = sn.predict.propagation(population, None, RATE, 1, [1], probes=2000, seed=1).isel(step=1)
    name = "layer_full_gradient_variance_leading"
    assert (abs(law[name] - exact) < LIMIT * law[f"{name}_stderr"]).all()


def test_the_noise_is_about_the_mean_at_the_weights_of_the_moment():
    """A scalar network, where a third of E ||g||^2 is the mean's; where it stands, and displaced."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        for weight, value in zip(model.parameters(), (1.0, 2.0), strict=True):
            weight.fill_(value)
    path = Path.of(sn.TeacherStudent(model, torch.tensor([[0.5]], dtype=torch.float64)), None)

    def exact(weights):
        student = [[[w]] for w in weights]
        found = [sn.predict.networks.gradient_variance_polynomial(student, [[0.5]], 1.0, 0, k) for k in range(2)]
        return sum(float(p.coefficients[1]) for p in found)

    for weights, stale in (((1.0, 2.0), False), ((1.5, 1.0), True)):
        path.problem.place(torch.tensor(weights, dtype=torch.float64))
        gradient = path.problem.flatten(path.problem.gradient())
        draws = np.array([noise_trace(path, gradient, seed) for seed in range(60)])
        mean, error = draws.mean(), draws.std(ddof=1) / np.sqrt(len(draws))
        assert abs(mean - exact(weights)) < LIMIT * error
        here = path.problem.flatten(path.problem.gradient()).square().sum()
        at_start = path.gradient.square().sum()
        shift = float(here - at_start) if stale else float(here)  # a mean of other weights, or none
        assert abs(mean + shift - exact(weights)) > LIMIT * error


def test_the_next_order_of_a_linear_student_is_exact_on_average(monkeypatch):
    """One layer: second moments of the weights are all that the variance asks for, so runs of any batch size obey them."""
    monkeypatch.setattr(sys.modules["shotnoise.predict.propagation.validity"], "PAIRS", 250)
    student, teacher, b = np.array([[0.3, -0.2]]), np.array([[1.0, 0.5]]), 32
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(student))
    population = sn.TeacherStudent(model, torch.from_numpy(teacher))
    law = sn.predict.propagation(population, None, RATE, 3, [b], probes=250).isel(batch_size=0)
    polynomial = sn.predict.networks.gradient_variance_polynomial([student], teacher, RATE, 3, 0)
    leading = float(polynomial.coefficients[1])
    missed = float(polynomial(b)) * b / leading - 1
    found, error = float(law["next_order"]), float(law["next_order_stderr"])
    assert abs(found - missed) < LIMIT * error
    assert not abs(found) < LIMIT * error and not abs(found - 2 * missed) < LIMIT * error


def test_it_says_what_it_rests_on(setting):
    population, _ = setting
    law = sn.predict.propagation(population, None, RATE, 2, [1, 1000], probes=8)
    assert law.attrs["sampling"] == "Online()" and law.attrs["n_samples"] == 0 and law.attrs["probes"] == 8
    assert float(abs(law["next_order"].sel(batch_size=1000))) < float(abs(law["next_order"].sel(batch_size=1)))
    again = sn.predict.propagation(population, None, RATE, 2, [1, 1000], probes=8)
    assert law.drop_attrs().equals(again.drop_attrs())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sampling": sn.sampling.WithReplacement()}, "sampled online"), ({"order": 2}, "needs a data set")],
)
def test_refusals(setting, options, message):
    with pytest.raises(InputError, match=message):
        sn.predict.propagation(setting[0], None, RATE, 1, [1], **options)
    with pytest.raises(InputError, match="a data set is not"):
        sn.predict.propagation(setting[0].problem, None, RATE, 1, [1], sampling=sn.sampling.Online())
