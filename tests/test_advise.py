"""Advice: against exact theory, enumeration and divergence of real dynamics; refusals; the command line."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise.measure.curvature import extreme

WITH = sn.sampling.WithReplacement()
LINES = [
    "stability limit", "mean stability limit", "critical batch size", "scaling, flat directions",
    "scaling, sharpest direction", "variance, half the batch", "variance, double the batch",
]  # fmt: skip


def regression(p=3, n=12, l2=0.0):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(n, p)))
    y = x[:, :1] + torch.from_numpy(rng.normal(size=(n, 1)))
    model = nn.Linear(p, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
    return sn.Problem(model, "mse", x, y, l2=l2)


def classes(n=60):
    torch.manual_seed(0)
    x, y = torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return sn.Problem(model, "cross_entropy", x, y)


def general_rule(monkeypatch, problem, *arguments, **options):
    """As for a model that is not known to be linear."""
    with monkeypatch.context() as patched:
        patched.setattr("shotnoise.advice._linear_limit", lambda *_: None)
        return sn.advise(problem, *arguments, **options)


def value(found, line, what="value"):
    return float(found[f"advice_{what}"].sel(advice=line))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("sampling", [WITH, sn.sampling.WithoutReplacement()], ids=["with", "without"])
def test_the_limit_of_linear_regression_is_exact_and_the_general_one_above_it(sampling, momentum, monkeypatch):
    problem, options = regression(l2=0.1), {"sampling": sampling, "momentum": momentum}
    x = problem.samples.batch(torch.arange(12))[0].numpy()
    exact = sn.predict.regression_stability(x, [2], sampling=sampling, l2=0.1, momentum=momentum)
    found = sn.advise(problem, 0.05, 2, **options)
    assert found["advice"].values.tolist() == LINES
    assert value(found, "stability limit") == pytest.approx(float(exact["critical_learning_rate"][0]), rel=1e-9)
    assert value(found, "mean stability limit") == pytest.approx(float(exact["mean_critical_learning_rate"]), rel=1e-6)
    general = general_rule(monkeypatch, problem, 0.05, 2, **options)
    assert value(found, "stability limit") <= value(general, "stability limit") <= value(found, "mean stability limit")
    assert "at most this" in str(general["certainty"].sel(advice="stability limit").values)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_in_one_dimension_the_general_limit_is_the_exact_one(momentum, monkeypatch):
    exact = sn.advise(regression(p=1), 0.05, 2, momentum=momentum)
    general = general_rule(monkeypatch, regression(p=1), 0.05, 2, momentum=momentum)
    assert value(general, "stability limit") == pytest.approx(value(exact, "stability limit"), rel=1e-9)


def test_an_intercept_and_a_flattened_image_are_linear_too():
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(9, 2, 2)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
    found = sn.advise(sn.Problem(model, "mse", x, x[:, 0, :1], l2=0.2), 0.01, 3)
    columns = np.concatenate([x.flatten(1).numpy(), np.ones((9, 1))], 1)  # the penalty is on the intercept too
    exact = sn.predict.regression_stability(columns, [3], l2=0.2)
    assert value(found, "stability limit") == pytest.approx(float(exact["critical_learning_rate"][0]), rel=1e-9)


def test_curvatures_of_samples_by_differences():
    from shotnoise.advice import _curvatures

    problem = classes(12)
    v = np.random.default_rng(0).normal(size=problem.parameter_count)
    w, step = problem.flatten(problem.parameters).detach(), 1e-4
    losses = []
    for shift in (-1, 0, 1):
        own = problem.replica()
        with torch.no_grad():
            for name, value_ in own.unflatten(w + shift * step * torch.from_numpy(v)).items():
                own.parameters[name].copy_(value_)
        losses.append(own.losses().numpy())
    expected = (losses[0] - 2 * losses[1] + losses[2]) / step**2
    np.testing.assert_allclose(_curvatures(problem, v), expected, rtol=1e-4, atol=1e-5)
    line = regression()
    np.testing.assert_allclose(_curvatures(line, np.eye(3)[0]), line.samples.batch(torch.arange(12))[0][:, 0] ** 2)


def test_a_curvature_that_did_not_converge_is_refused_with_its_residual(monkeypatch):
    monkeypatch.setattr("shotnoise.advice.extreme", lambda *_, **options: extreme(*_, **options, most=3))
    with pytest.raises(sn.InputError, match=r"did not converge: \S+ or more, with a residual of"):
        sn.advise(classes(), 0.1, 8)


def test_beyond_the_limit_runs_diverge_and_below_they_do_not():
    """Second moments of 20,000 runs in one dimension, at 0.9 and 1.3 of the limit."""
    problem = regression(p=1)
    limit = value(sn.advise(problem, 0.05, 2, sampling=WITH), "stability limit")
    x = problem.samples.batch(torch.arange(12))[0][:, 0].numpy()
    rng = np.random.default_rng(1)
    for share, grows in ((0.9, False), (1.3, True)):
        factors = 1 - share * limit * (x[rng.integers(12, size=(20_000, 2))] ** 2).mean(1)
        assert ((factors**2).mean() > 1) == grows


@pytest.mark.parametrize("sampling", [WITH, sn.sampling.WithoutReplacement()], ids=["with", "without"])
def test_noise_and_variance_lines_are_what_measure_says(sampling):
    problem = classes()
    found, measured = sn.advise(problem, 0.1, 8, sampling=sampling), sn.measure(problem, [4, 8, 16], sampling)
    for line, b in (("half", 4), ("double", 16)):
        expected = float(measured["conditional_gradient_variance"].sel(batch_size=b))
        assert value(found, f"variance, {line} the batch") == pytest.approx(expected, rel=1e-12)
    critical = value(found, "critical batch size")
    B, n = float(measured["noise_scale"]), 60
    kappa = 1 / critical if sampling == WITH else (n - critical) / (critical * (n - 1))
    assert kappa * B == pytest.approx(1, rel=1e-9)
    flat = value(found, "scaling, flat directions")
    assert flat == pytest.approx(1.0 if sampling == WITH else (60 - 16) / (60 - 8))
    assert value(found, "scaling, sharpest direction") > 0


def test_the_scaling_line_is_the_stationary_theory_in_one_dimension():
    """The ratio of stationary variances of the exact theory, additive and multiplicative noise in it."""
    problem, rate, b = regression(p=1, n=12), 0.1, 2
    x, y = (t.numpy() for t in problem.samples.batch(torch.arange(12)))
    before, after = (
        float(
            sn.predict.stationary.finite_data(x, y[:, 0], k * rate, k * b, sampling=WITH)["weight_covariance"].squeeze()
        )
        for k in (1, 2)
    )
    found = sn.advise(problem, rate, b, sampling=WITH)
    assert value(found, "scaling, sharpest direction") == pytest.approx(after / before, rel=1e-6)
    far = sn.advise(problem, 0.9 * value(found, "stability limit"), b, sampling=WITH)
    assert value(far, "scaling, sharpest direction") > 5


def test_a_budget_gives_intervals():
    found = sn.advise(classes(200), 0.1, 8, samples=100)
    for line in ("critical batch size", "variance, half the batch"):
        assert value(found, line, "low") < value(found, line) < value(found, line, "high")
        assert str(found["certainty"].sel(advice=line).values).startswith("estimate")


def test_at_the_ends():
    problem = classes(20)
    whole = sn.advise(problem, 0.1, 20)
    assert np.isnan(value(whole, "variance, double the batch")) and np.isnan(value(whole, "scaling, flat directions"))
    single = sn.advise(problem, 0.1, 1)
    assert "There is no batch of 0 samples" in str(single["sentence"].sel(advice="variance, half the batch").values)
    assert "unstable: beyond it" in str(sn.advise(problem, 1e4, 1)["sentence"].sel(advice="stability limit").values)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.0, 4), {}, "learning_rate=0.0"),
        ((0.1, 40), {}, "batch_size=40 but only n=20"),
        ((0.1, 4), {"momentum": 1.0}, "momentum=1.0"),
        ((0.1, 4), {"sampling": sn.sampling.Online()}, "advice is for a data set"),
    ],
)
def test_what_does_not_fit(arguments, options, message):
    with pytest.raises(sn.InputError, match=message):
        sn.advise(classes(20), *arguments, **options)


def test_the_command(run, tmp_path):
    out, store = tmp_path / "a.json", tmp_path / "a.zip"
    code, said, err = run("advise", "--data", "diabetes", "--model", "linear", "--learning-rate", 0.1, "--batch-size", 16,
                          "--json", out, "--save", store)  # fmt: skip
    assert code == 0, err
    assert "Keep the learning rate below" in said and "formula: largest rate with bounded second moments" in said
    assert json.loads(out.read_text())["variables"]["advice_value"]["dims"] == ["advice"]
    assert sn.load(store)["advice"].values.tolist() == LINES
    code, _, err = run("advise", "--data", "diabetes", "--learning-rate", -1, "--batch-size", 16)
    assert code == 2 and "learning_rate=-1.0" in err
