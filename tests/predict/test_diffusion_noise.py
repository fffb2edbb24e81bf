"""Noise sources and estimators by enumeration, epochs by all orders, densities and inference by closed forms, verdicts."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch

import shotnoise as sn

df = sn.predict.diffusion
WITH, WITHOUT, EPOCHS = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement(), sn.sampling.ReshuffledEpochs()
H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
G = np.random.default_rng(0).normal(size=(6, 2))  # gradients of six samples
SIGMA = np.cov(G.T, bias=True)


@pytest.mark.parametrize("sampling", [WITH, WITHOUT], ids=str)
def test_the_sources_over_all_data_sets_and_batches(sampling):
    """A population of two values, all data sets of three, all batches of two."""
    values, n, b = np.array([0.0, 1.0]), 3, 2
    batch, total = [], []
    for data in product(values, repeat=n):
        draws = product(data, repeat=b) if sampling == WITH else combinations(data, b)
        means = np.array([np.mean(draw) for draw in draws])
        batch.append(means.var())
        total.append(((means - 0.5) ** 2).mean())
    s = df.noise_sources([0.25], n, b, sampling)
    found = s["noise_covariance"].values.ravel()
    assert found[0] == pytest.approx(np.mean(batch)) and found[2] == pytest.approx(np.mean(total))
    assert found[1] == pytest.approx(0.25 / n)
    expected = (1 / b + 1 / n - 1 / (n * b)) if sampling == WITH else 1 / b
    assert float(s["noise_factor"].sel(source="total")) == pytest.approx(expected)


def estimates(sampling, m, b, **options):
    """The estimator averaged over every way to draw m batches."""
    if sampling == WITH:
        single = [G[list(i)].mean(0) for i in product(range(6), repeat=b)]
        ways = product(single, repeat=m)
    elif sampling == WITHOUT:
        ways = product([G[list(i)].mean(0) for i in combinations(range(6), b)], repeat=m)
    else:
        ways = ([G[list(order[k * b : (k + 1) * b])].mean(0) for k in range(m)] for order in permutations(range(6)))
    found = [
        df.covariance_from_batches(np.array(way), b, 6, sampling, **options)["per_sample_covariance"].values
        for way in ways
    ]
    return np.mean(found, 0)


@pytest.mark.parametrize(("sampling", "m", "b"), [(WITH, 3, 1), (WITHOUT, 3, 5), (EPOCHS, 3, 2)], ids=str)
@pytest.mark.parametrize("known", [False, True])
def test_the_estimator_is_unbiased_however_batches_are_drawn(sampling, m, b, known):
    """And the printed one, which ignores how, is not unless they are drawn with replacement."""
    options = {"full_gradient": G.mean(0)} if known else {}
    mean = estimates(sampling, m, b, **options)
    np.testing.assert_allclose(mean, SIGMA, rtol=1e-10, atol=1e-14)
    printed = {WITH: 1.0, WITHOUT: (6 - b) / (6 - 1), EPOCHS: 6 / 5}[sampling]  # what 1.8.5 would give, over Sigma_emp
    if sampling != WITH:
        assert abs(printed - 1) > 0.15


def test_standard_errors_of_the_estimator():
    """Spread of estimates over repeats against what they say of themselves; a tenth of it would be seen."""
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        batches = G[rng.integers(6, size=(60, 3))].mean(1)
        e = df.covariance_from_batches(batches, 3, 6, WITH)
        found.append([float(e[name]) for name in ("noise_trace", "noise_trace_stderr")]
                     + [float(e[f"per_sample_covariance{end}"][0, 1]) for end in ("", "_stderr")])  # fmt: skip
    found = np.array(found)
    for value, error in ((0, 1), (2, 3)):
        ratio = found[:, value].std(ddof=1) / np.sqrt((found[:, error] ** 2).mean())
        assert ratio == pytest.approx(1, abs=0.13)  # 0.035 is one standard error of such a ratio


def test_correlations_within_an_epoch_by_all_orders():
    b, per_epoch = 2, 3
    g = G[:, 0] - G[:, 0].mean()
    lagged = {h: [] for h in range(4)}
    for first in permutations(range(6)):
        noise = [g[list(first[k * b : (k + 1) * b])].mean() for k in range(per_epoch)]
        for h, values in lagged.items():  # what follows in the next epoch is independent and of mean zero
            values.append(np.mean([noise[j] * noise[j + h] if j + h < per_epoch else 0.0 for j in range(per_epoch)]))
    variance = np.mean(lagged[0])
    expected = [np.mean(values) / variance for values in lagged.values()]
    found = df.epoch_correlation(6, b, range(4))["noise_correlation"].values
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.6])
@pytest.mark.parametrize("n", [6, 5])  # five: one sample is left over in each epoch
def test_weights_under_epochs_by_all_orders(n, mu):
    """The covariance after two epochs from the stationary state, over all orders of both: it must be that state again."""
    h, c, eta, b = 0.8, G[:n, 0] - G[:n, 0].mean(), 0.3, 2
    e = df.epoch_covariance([h], [c.var()], eta, b, n, mu)
    per_epoch = n // b
    ends = []  # of (w, v) after one epoch from rest
    middles = []
    for order in permutations(range(n)):
        w = v = 0.0
        for k in range(per_epoch):
            if k == 1:
                middles.append((w, v))
            v = mu * v - eta * (h * w + c[list(order[k * b : (k + 1) * b])].mean())
            w = w + v
        ends.append((w, v))
    step = np.array([[1 - eta * h, mu], [-eta * h, mu]])
    noise, F = np.cov(np.array(ends).T, bias=True), np.linalg.matrix_power(step, per_epoch)
    X = np.zeros((2, 2))
    for _ in range(4000):
        X = F @ X @ F.T + noise
    assert float(e["weight_covariance"].sel(phase=0).item()) == pytest.approx(X[0, 0], rel=1e-9)
    after_one = step @ X @ step.T + np.cov(np.array(middles).T, bias=True)
    assert float(e["weight_covariance"].sel(phase=1).item()) == pytest.approx(after_one[0, 0], rel=1e-9)


def test_epochs_of_a_regression_exactly_with_its_multiplicative_noise():
    """`predict.regression` over all orders of 1-d data: variance ratios fall as rate^2, as in the theory of constant noise."""
    x = np.array([1.0, 0.8, 1.2, 0.9, 1.1, 1.0])[:, None]
    y = x[:, 0] + np.array([0.5, -0.3, 0.2, -0.6, 0.4, 0.1])
    h, w = float((x**2).mean()), float(x[:, 0] @ y / (x[:, 0] @ x[:, 0]))
    c = x[:, 0] * (x[:, 0] * w - y)
    for rate, tolerance in ((0.1, 0.15), (0.05, 0.08)):
        late = 3 * int(30 / rate / 3)
        exact = sn.predict.regression(x, y, [w], rate, [2], late, sampling=EPOCHS)["weights_variance"].values[0]
        e = df.epoch_covariance([h], [c.var()], rate, 2, 6)["weight_covariance"].values.ravel()
        np.testing.assert_allclose(exact[late - 2], e[1], rtol=tolerance)
        np.testing.assert_allclose(exact[late - 1], e[2], rtol=tolerance)


def test_slow_directions_hardly_move_under_epochs():
    e = df.epoch_covariance([1.0, 0.01], [1.0, 0.01], 0.1, 10, 100)
    ratio = e["mean_variance_ratio"].values  # modes by rising curvature
    assert ratio[0] < 0.02 and 0.3 < ratio[1] < 1
    with pytest.raises(sn.InputError, match="1 flat directions"):
        df.epoch_covariance([1.0, 0.0], [1.0, 0.01], 0.1, 10, 100)


LAND = df.Landscape(1, lambda w: w / 2, lambda w: (w**2 / 2 + 1)[:, :, None])


def test_the_third_worked_example():
    x = np.linspace(-60, 60, 20001)
    t = df.tempered_posterior(LAND, 0.4, 5, x)
    values = dict(zip(t["theory"].values, t["weights_variance"].values, strict=True))
    for theory, variance in [("ito", 0.0833333), ("stratonovich", 0.0869565), ("hanggi-klimontovich", 0.0909091),
                             ("printed, eq. 29", 0.0772146)]:  # fmt: skip
        assert values[theory] == pytest.approx(variance, abs=6e-8)
    # Sigma = 1 at the minimum: beta = 2 / eps = 25 on L = w^2 / 4, variance 2 / 25; eq. 28 has a quarter of beta.
    assert values["tempered posterior"] == pytest.approx(0.08, rel=1e-9)
    assert values["printed, eq. 28"] == pytest.approx(0.32, rel=1e-9)
    other = sn.predict.stationary.label_noise([0.5], 2.0, 0.4, 5)["weight_covariance"].item()
    assert other == pytest.approx(0.0930233, abs=6e-8)  # what SGD does


def test_tempered_where_it_is_right_and_total_variation():
    x = np.linspace(-4, 4, 4001)
    constant = df.Landscape(1, lambda w: w**3 - w, [[2.0]])
    t = df.tempered_posterior(constant, 0.3, 1, x)
    assert float(t["total_variation"].sel(theory="tempered posterior")) < 1e-12
    exact = np.exp(-2 / (0.3 * 2) * (x**4 / 4 - x**2 / 2))
    np.testing.assert_allclose(t["density"].sel(theory="ito"), exact / np.trapezoid(exact, x), rtol=1e-9)
    off = t.sel(theory="printed, eq. 28")
    direct = np.trapezoid(np.abs(off["density"].values - exact / np.trapezoid(exact, x)), x) / 2
    assert float(off["total_variation"]) == pytest.approx(direct) and direct > 0.1


def test_densities_against_the_grid_solver():
    land = df.Landscape(1, lambda w: w**3 - w, lambda w: (0.5 + 0.4 * torch.tanh(2 * w))[:, :, None])
    for convention in df.CONVENTIONS:
        s = df.FokkerPlanck(land, 0.3, 1, [(-3, 3)], 1500, convention=convention).stationary()
        t = df.tempered_posterior(land, 0.3, 1, s["x"].values).sel(theory=convention)
        np.testing.assert_allclose(s["density"], t["density"], atol=2e-4)


def test_detailed_balance_needs_a_gradient():
    h = torch.tensor([1.0, 4.0], dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)

    def loss(w):
        return (h * w**2).sum(1)[:, None, None] / 2

    points = np.random.default_rng(0).normal(size=(5, 2))
    cases = {
        "isotropic": (lambda w: (2 * loss(w) + 0.3) * one, True),
        "decoupled": (lambda w: 2 * (loss(w) + 0.3) * torch.diag(h), False),
        "one direction each": (lambda w: torch.diag_embed(1 + w**2), True),
    }
    for name, (noise, expected) in cases.items():
        d = df.detailed_balance(df.Landscape(2, lambda w: h * w, noise), 0.1, 2, points)
        assert bool(d["reversible"]) == expected, name
        assert (float(d["asymmetry"].max()) > 1e-3) != expected, name
    three = df.Quadratic(np.diag([1.0, 2.0, 3.0]), np.eye(3) + 0.3 * np.ones((3, 3)))
    assert not df.detailed_balance(three, 0.1, 2, np.zeros((1, 3)))["reversible"]


def test_sgd_as_inference():
    n, B = 50, 4
    a = df.approximate_inference(H, C, 0.02, B, n)
    X, P = a["weight_covariance"].values, np.linalg.inv(n * H)

    def divergence(rate):
        Y = X * rate / 0.02
        return 0.5 * (np.trace(np.linalg.solve(P, Y)) - 2 + np.log(np.linalg.det(P) / np.linalg.det(Y)))

    assert float(a["posterior_divergence"]) == pytest.approx(divergence(0.02))
    best = float(a["optimal_learning_rate"])
    assert best == pytest.approx(2 * 2 * B / (n * np.trace(C)))
    assert float(a["least_divergence"]) == pytest.approx(divergence(best))
    assert divergence(best) < min(divergence(0.9 * best), divergence(1.1 * best))
    assert float(a["tempered_divergence"]) == pytest.approx(
        float(a["least_divergence"])
    )  # beta plays the part of the rate
    assert float(df.approximate_inference(H, np.eye(2), 0.02, B, n)["tempered_divergence"]) == pytest.approx(
        0, abs=1e-12
    )
    well = df.approximate_inference(H, H, 0.02, B, n)  # well specified: X is a multiple of I, not of H^-1
    np.testing.assert_allclose(well["weight_covariance"], 0.02 / B / 2 * np.eye(2), atol=1e-15)


def line(n=40, d=2, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, d)))
    y = x.sum(1, keepdim=True) + noise * torch.from_numpy(rng.normal(size=(n, 1)))
    model = torch.nn.Linear(d, 1, dtype=torch.float64)
    return sn.Problem(model, "mse", x, y)


def checks(found):
    return {str(name): (float(value), bool(passed)) for name, value, passed in
            zip(found["check"].values, found["value"].values, found["passed"].values, strict=True)}  # fmt: skip


def test_verdict_on_a_regression():
    problem = line()
    good = df.validity(problem, 0.02, 20)
    assert str(good["status"].values) == "diffusion" and good["passed"].all()
    bad = df.validity(problem, 0.5, 20)
    found = checks(bad)
    assert str(bad["status"].values) == "not a diffusion"
    assert not found["step size"][1] and not found["stationary moments"][1] and found["normality"][1]
    x = np.column_stack([problem.samples.inputs.numpy(), np.ones(40)])
    y = problem.samples.targets.numpy()[:, 0]
    model = df.LinearModel.of_data(x, y)
    setting = sn.predict.diffusion.settings.Setting.of(0.5, 20, 0.0, WITH, 40)
    first, discrete = model.stationary("first order", setting), model.stationary("discrete", setting)
    assert found["stationary moments"][0] == pytest.approx(np.linalg.norm(first - discrete) / np.linalg.norm(discrete))
    exact = sn.predict.regression_stationary(x, y, 0.5, [20], sampling=WITH)["weight_covariance"].values[0, 0]
    np.testing.assert_allclose(discrete, exact, rtol=1e-8)
    curvature = np.linalg.eigvalsh(x.T @ x / 40)[-1]
    assert found["step size"][0] == pytest.approx(0.25 * curvature, rel=1e-3)
    assert checks(df.validity(problem, 5.0, 20))["stationary moments"][0] == np.inf


def test_verdict_on_normality_and_epochs():
    """A single sample's gradient is far from normal, sixty together are near; epochs are not white at any rate."""
    problem = line(noise=2.0)
    rough, smooth = (checks(df.validity(problem, 0.02, b))["normality"] for b in (1, 30))
    assert df.validity(problem, 0.01, 1)["status"].item() == "diffusion, but for its tails"
    assert not rough[1] and smooth[1] and rough[0] > 5 * smooth[0]
    epochs = checks(df.validity(problem, 0.02, 10, sampling=EPOCHS))["independence"]
    assert epochs[0] > 0.5 and not epochs[1]
    assert checks(df.validity(problem, 0.02, 10, sampling=WITHOUT))["independence"] == (0.0, True)


def test_verdict_on_a_network_by_amplification():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x = torch.randn(30, 2, dtype=torch.float64)
    problem = sn.Problem(model, "mse", x, torch.sin(2 * x[:, :1]))
    small = df.validity(problem, 0.02, 8, steps=10, runs=40)
    assert checks(small)["amplification"][1] and "stationary moments" not in small["check"].values
    amplified = df.svag(problem, 0.9, 2, 15, 60, [1, 8], seed=1)
    large = checks(df.validity(problem, 0.9, 2, amplified=amplified))["amplification"]
    assert not large[1] and abs(large[0]) > 0.05
    assert "amplification" not in df.validity(problem, 0.02, 8, steps=0)["check"].values


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: df.covariance_from_batches(G, 2, 6, EPOCHS), "6 batches of 2 are more than one epoch"),
        (lambda: df.covariance_from_batches(G[:2], 2, 6, WITH), "at least three batches"),
        (lambda: df.covariance_from_batches(G, 6, 6, WITHOUT), "the whole data set"),
        (lambda: df.covariance_from_batches(G, 2, 6, WITH, full_gradient=[1.0]), "full_gradient: 2 numbers"),
        (lambda: df.noise_sources([1.0], 1, 1), "at least two samples"),
        (lambda: df.epoch_correlation(6, 4, [1]), "an epoch of one batch"),
        (lambda: df.epoch_covariance([50.0], [1.0], 0.1, 2, 6), "the mean diverges"),
        (lambda: df.tempered_posterior(LAND, 0.1, 1, [1.0, 0.0]), "a rising grid"),
        (lambda: df.tempered_posterior(df.Landscape(1, lambda w: w, lambda w: (w**2)[:, :, None]), 0.1, 1, np.linspace(-1, 1, 9)), "without noise there is no density"),
        (lambda: df.detailed_balance(df.Quadratic(H, C), 0.1, 1, [[1.0]]), "points: 2 weights each"),
        (lambda: df.approximate_inference([1.0, 0.0], [1.0, 0.0], 0.1, 1, 10), "flat directions have no posterior"),
        (lambda: df.approximate_inference([1.0, 1.0], [1.0, 0.0], 0.1, 1, 10), "is singular"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()


def test_densities_and_balance_of_a_problem():
    """A regression of one weight, by its samples: the law of its quadratic noise; two weights: detailed balance or not."""
    x = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None]
    y = x + 0.3 * torch.cos(7 * x)
    problem = sn.Problem(torch.nn.Linear(1, 1, bias=False, dtype=torch.float64), "mse", x, y)
    each = lambda w: x[:, 0] * (x[:, 0] * w - y[:, 0])  # noqa: E731
    land = df.Landscape(1, lambda w: each(w).mean(1, True), lambda w: each(w).var(1, correction=0)[:, None, None])
    grid = np.linspace(0, 2, 401)
    own, same = (df.tempered_posterior(where, 0.5, 2, grid)["density"] for where in (problem, land))
    np.testing.assert_allclose(own, same, rtol=1e-8)
    less = df.tempered_posterior(problem, 0.5, 2, grid, sampling=WITHOUT)["weights_variance"].values[0]
    assert less < df.tempered_posterior(problem, 0.5, 2, grid)["weights_variance"].values[0]
    assert not df.detailed_balance(line(), 0.1, 4, np.zeros((1, 3)))["reversible"]
