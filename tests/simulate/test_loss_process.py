"""Delta_t given the weights along quantiles of the loss, against enumeration of batches and slow loops; phases."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

import shotnoise as sn
from shotnoise.errors import InputError
from shotnoise.simulate.loss_process import _window
from shotnoise.simulate.phases import turning_phases

RATE, ALARM = 0.3, 1e-6


def line(n, dimension):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (dimension, 1))
    torch.manual_seed(0)
    return sn.Problem(torch.nn.Linear(dimension, 1, dtype=torch.float64), "mse", x, y)


@pytest.fixture(scope="module")
def runs():
    record = ["loss", "gradient_norm", sn.simulate.loss_change(12, steps=[0, 10, 30])]
    return sn.simulate(line(20, 3), sn.rules.SGD(0.05), [2, 5], 30, 60, initial=start, record=record, every=10)


def start(rng):
    return rng.normal(size=4)


def by_loops(runs, t, b, q, width):
    """One entry from the definition."""
    at = runs.sel(batch_size=b)
    loss, change = at["loss"].sel(step=t).values, at["loss_change"].sel(loss_change_step=t).values
    order = sorted(range(len(loss)), key=lambda r: loss[r])
    inside = [order[k] for k in range(len(order)) if abs((k + 0.5) / len(order) - q) <= width / 2]
    means = [change[r].mean() for r in inside]
    variances = [change[r].var(ddof=1) for r in inside]
    norms = [float(at["gradient_norm"].sel(step=t)[r]) for r in inside]
    return np.mean(means), np.mean(variances), np.mean(norms), len(inside)


@pytest.mark.parametrize(("t", "b", "q"), [(0, 2, 0.1), (10, 5, 0.5), (30, 2, 0.9)])
def test_equals_slow_loops(runs, t, b, q):
    found = sn.simulate.loss_process(runs, width=0.1).sel(step=t, batch_size=b, loss_quantile=q)
    mean, variance, size, count = by_loops(runs, t, b, q, 0.1)
    assert float(found["loss_change"]) == pytest.approx(mean, rel=1e-12)
    assert float(found["conditional_loss_change_variance"]) == pytest.approx(variance, rel=1e-12)
    assert float(found["gradient_norm"]) == pytest.approx(size, rel=1e-12)
    assert int(found["window_runs"]) == count == 6


def enumerated(case, b):
    """Mean and variance of Delta over all n^b batches, from the definition, at the problem's weights."""
    x, y = case.samples.batch(torch.arange(case.n))
    model, w = case.model, [p.detach().clone() for p in case.model.parameters()]
    before, found = case.loss(), []
    for batch in itertools.product(range(case.n), repeat=b):
        loss = 0.5 * (model(x[list(batch)]) - y[list(batch)]).square().sum() / b
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), w, gradients, strict=True):
                p.copy_(v - RATE * g)
        found.append(case.loss() - before)
        with torch.no_grad():
            for p, v in zip(model.parameters(), w, strict=True):
                p.copy_(v)
    return np.mean(found), np.var(found)


def test_redraws_agree_with_all_batches_of_a_quadratic_loss():
    case = line(5, 2)
    mean, variance = enumerated(case, 3)
    seen = sn.simulate(case, sn.rules.SGD(RATE), 3, 1, 1, record=["loss", sn.simulate.loss_change(4000, steps=[0])])
    found = sn.simulate.loss_process(seen, at=[0.5]).isel(batch_size=0, step=0, loss_quantile=0)

    def z(name, true):
        return abs(float(found[name]) - true) / float(found[f"{name}_stderr"])

    limit = norm.isf(ALARM / 4)
    assert z("loss_change", mean) < limit and z("conditional_loss_change_variance", variance) < limit
    assert z("loss_change", 1.2 * mean) > limit and z("conditional_loss_change_variance", 1.2 * variance) > limit


def test_redraws_agree_with_the_exact_variance_of_theory():
    case = line(30, 3)
    exact = sn.predict.bounds.one_step(case, RATE, 4).sel(noise="batches")
    seen = sn.simulate(case, sn.rules.SGD(RATE), 4, 1, 1, record=["loss", sn.simulate.loss_change(4000, steps=[0])])
    found = sn.simulate.loss_process(seen, at=[0.5]).isel(batch_size=0, step=0, loss_quantile=0)
    limit = norm.isf(ALARM / 4)
    for name, true in (("loss_change", "second_order_mean"),
                       ("conditional_loss_change_variance", "second_order_variance")):  # fmt: skip
        off = abs(float(found[name]) - float(exact[true])) / float(found[f"{name}_stderr"])
        wrong = abs(float(found[name]) - 1.5 * float(exact[true])) / float(found[f"{name}_stderr"])
        assert off < limit < wrong


def test_windows_hold_the_nearest_run_at_least():
    assert _window(10, 0.5, 0.0) == slice(4, 5) and _window(10, 0.0, 0.0) == slice(0, 1)
    assert _window(100, 0.1, 0.1) == slice(5, 15)
    assert _window(1, 0.9, 0.05) == slice(0, 1)


def single_pair_threshold(logs, alarm):
    """The broken rule: no allowance for how many pairs of steps are looked at."""
    T = logs.shape[1]
    return turning_phases(logs, alarm * T * (T - 1))


def test_turns_that_are_not_there_are_reported_as_seldom_as_said():
    rng, alarm, trials = np.random.default_rng(0), 0.05, 300
    falling = -0.02 * np.arange(12)
    noisy = [falling + rng.normal(size=(30, 12)) for _ in range(trials)]
    limit = binom.isf(1e-6, trials, alarm)
    assert sum(len(turning_phases(logs, alarm)) > 1 for logs in noisy) <= limit
    assert sum(len(single_pair_threshold(logs, alarm)) > 1 for logs in noisy) > limit


@pytest.mark.parametrize(
    ("shape", "kinds"),
    [([0, 1, 2, 0, -3], "rise fall"), ([0, -1, -2], "fall"), ([0, 2, 0, 2, 0], "rise fall rise fall"), ([0, 0, 0], "")],
)
def test_phases_that_are_there_are_found(shape, kinds):
    logs = np.array(shape) + 0.2 * np.random.default_rng(1).normal(size=(40, len(shape)))
    assert " ".join(p.kind for p in turning_phases(logs, 1e-3)) == kinds


def test_phases_of_runs(runs):
    found = sn.simulate.phases(runs).sel(batch_size=2)
    assert found["phase_kind"].values[0] == "fall" and int(found["phase_count"]) == 1
    assert float(found["phase_factor"][0]) == pytest.approx(
        float(found["loss_change_spread"][-1] / found["loss_change_spread"][0])
    )
    assert int(found["phase_runs"]) == 60


def test_what_cannot_be_looked_at_is_refused(runs):
    with pytest.raises(InputError, match="at least 3 redraws"):
        sn.simulate.loss_process(runs.drop_vars("loss_change"))
    with pytest.raises(InputError, match="at least 3 redraws"):
        sn.simulate.phases(runs.isel(redraw=slice(2)))
    with pytest.raises(InputError, match="between 0 and 1"):
        sn.simulate.loss_process(runs, at=[1.5])
    with pytest.raises(InputError, match="a probability"):
        sn.simulate.phases(runs, alarm=1.0)
    with pytest.raises(InputError, match="phases need 8"):
        sn.simulate.phases(runs.isel(run=slice(5)))
    with pytest.raises(InputError, match="nothing else was recorded"):
        sn.simulate.loss_process(runs.sel(step=[0, 30]))


def test_diverged_runs_are_left_out(runs):
    lost = runs.copy(deep=True)
    lost["divergence_step"][:, :10] = 5
    whole, kept = sn.simulate.loss_process(runs.isel(run=slice(10, None))), sn.simulate.loss_process(lost)
    assert np.array_equal(whole["loss_change"].sel(step=10), kept["loss_change"].sel(step=10))
