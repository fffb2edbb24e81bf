"""Estimates from part of the data: unbiased, with honest standard errors, judged over many seeds."""

import numpy as np
import pytest
import torch
from measure_cases import CASES, MLP, covariance, explicit_gradients, products_of
from scipy import stats

import shotnoise as sn
from shotnoise.measure.estimate import Estimates, Products, estimate
from shotnoise.measure.moments import of_sample
from shotnoise.measure.products import sampled_parameter_variance

ALARM = 1e-4
UNBIASED = ["loss", "gradient_norm_sq", "second_moment_trace", "noise_trace"]


def z_of_mean(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many standard errors the mean over runs (axis 0) is from the truth."""
    return (values.mean(0) - truth) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def unbiased(values: np.ndarray, truth: np.ndarray) -> bool:
    z = np.abs(z_of_mean(values, truth))
    return bool(z.max() < stats.norm.isf(ALARM / 2 / z.size))


def honesty(values: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Mean squared standard error over the variance that is seen."""
    return (stderr**2).mean(0) / values.var(0, ddof=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("population", [23, None])
def test_products_are_those_of_the_written_out_gradients(case, population):
    problem = case.problem(n=23)
    indices = torch.tensor([1, 2, 3, 5, 8, 13, 14, 15, 21, 22])
    found = of_sample(problem, indices, population).products
    by_layer = [g[indices] for g in explicit_gradients(problem).values()]
    for column, g in enumerate([*by_layer, np.concatenate(by_layer, 1)]):
        expected = products_of(g[None], population)
        for name in ("norms", "along_mean"):
            np.testing.assert_allclose(
                getattr(found, name)[:, column], getattr(expected, name)[:, 0], rtol=1e-9, err_msg=name
            )
        for name in ("trace_squared", "trace_cubed"):
            np.testing.assert_allclose(getattr(found, name)[column], getattr(expected, name)[0], rtol=1e-9, atol=1e-14)
    assert (found.samples, found.population) == (10, population)


def test_trace_squared_and_cubed_are_unbiased():
    rng = np.random.default_rng(0)
    spectrum = np.array([3.0, 1.0, 0.5])
    found = products_of(rng.normal(size=(4000, 64, 3)) * np.sqrt(spectrum) + 2.0)
    for value, power in ((found.trace_squared, 2), (found.trace_cubed, 3)):
        truth = np.array([(spectrum**power).sum()])
        assert unbiased(value[:, None], truth)
        assert not unbiased(1.2 * value[:, None], truth)


@pytest.mark.parametrize("population", [40, None])
def test_estimates_against_the_jackknife_written_out(population):
    g = np.random.default_rng(3).normal(1, 2, size=(12, 4))

    def statistics(g: np.ndarray) -> np.ndarray:
        m, n = len(g), np.inf if population is None else population
        square = ((g - g.mean(0)) ** 2).sum() / (m - 1)
        return np.array([(g**2).sum(1).mean(), square * (1 - 1 / n), (g.mean(0) ** 2).sum() - square * (1 / m - 1 / n)])

    products = products_of(g[None], population)
    found = estimate(products)
    np.testing.assert_allclose(found.values[:, 0], statistics(g))
    without = np.stack([statistics(np.delete(g, i, 0)) for i in range(12)])
    share = 1 if population is None else 1 - 12 / 40
    expected = share * np.cov(without.T, bias=True) * 11
    quadratic = 2 * (share / 12) ** 2 * float(products.trace_squared[0])  # what the jackknife counts twice
    expected[2, 2] = max(expected[2, 2] - quadratic, quadratic)
    np.testing.assert_allclose(found.covariance[:, :, 0], expected, rtol=1e-9)


def gaussian_runs(
    m: int, runs: int, signal: float, population: int | None, seed: int = 0
) -> tuple[Estimates, Products, np.ndarray]:
    """Estimates from `runs` data sets of m gradients with noise 2, 1, 1/2, 1/2 and a mean along all of them."""
    rng = np.random.default_rng(seed)
    scale, mean = np.sqrt([2, 1, 0.5, 0.5]), np.full(4, signal / 2)
    if population is None:
        g = rng.normal(size=(runs, m, 4)) * scale + mean
        truth = np.array([4 + signal**2, 4.0, signal**2])
    else:
        whole = rng.normal(size=(population, 4)) * scale + mean
        g = np.stack([whole[rng.choice(population, m, replace=False)] for _ in range(runs)])
        square = (whole.mean(0) ** 2).sum()
        truth = np.array([(whole**2).sum(1).mean(), np.trace(covariance(whole)), square])
    products = products_of(g, population)
    return estimate(products), products, truth


@pytest.mark.parametrize("population", [None, 48, 160])
@pytest.mark.parametrize("signal", [0.0, 2.0])
def test_estimates_are_unbiased(population, signal):
    found, products, truth = gaussian_runs(32, 4000, signal, population)
    assert unbiased(found.values.T, truth)
    naive = products.along_mean.mean(0)  # ||g||^2 has the noise of the mean in it
    assert not unbiased(naive[:, None], truth[2:])
    if population == 48:  # the divisor m - 1 is for an unlimited population
        assert not unbiased(found.values[1][:, None] * 48 / 47, truth[1:2])


@pytest.mark.parametrize("population", [None, 64])
def test_standard_errors_are_honest(population):
    m = 32
    found, _, _ = gaussian_runs(m, 4000, signal=2.0, population=population, seed=1)
    ratio = honesty(found.values.T, found.stderr.T)
    assert ((ratio > 0.85) & (ratio < 1.2)).all(), ratio
    if population:  # without the factor 1 - m/n they would be twice too large
        assert (ratio / (1 - m / population) > 1.5).all()


def test_standard_error_of_a_vanishing_gradient():
    """A is then a degenerate statistic; its error is kept above the part that is there whatever the gradient."""
    found, products, _ = gaussian_runs(64, 4000, signal=0.0, population=None, seed=2)
    quadratic = 2 * (products.unseen / 64) ** 2 * products.trace_squared
    a, variance = found.values[2][:, None], found.covariance[2, 2]
    assert 0.9 < honesty(a, np.sqrt(quadratic)[:, None])[0] < 1.1  # this part is all there is
    assert (variance >= quadratic).all() and 1 < honesty(a, np.sqrt(variance)[:, None])[0] < 2
    assert honesty(a, np.sqrt(variance + quadratic)[:, None])[0] > 2  # with the jackknife's second helping


def sampled_runs(problem, samples, seeds, **arguments):
    runs = [sn.measure(problem, [1, 8], samples=samples, seed=seed, **arguments) for seed in range(seeds)]
    return {
        name: np.stack([np.atleast_1d(run[name].values).ravel() for run in runs])
        for name in runs[0].data_vars
        if runs[0][name].dtype.kind == "f"
    }


@pytest.mark.parametrize("name", ["mlp-l2", "custom-l2"])
def test_measure_with_a_budget_is_unbiased_and_honest(name):
    """150 draws of 24 from 60 samples: a ratio of variances is known to some 15 %, less well with heavy tails.

    Where the gradient is not seen, its standard error errs on the safe side, at most twofold in the variance for an
    unlimited population and 2 / (1 - m/n) fold for a finite one.
    """
    problem = next(case for case in CASES if case.name == name).problem(n=60)
    truth = sn.measure(problem, [1, 8])
    runs = sampled_runs(problem, 24, 150)
    for quantity in [*UNBIASED, "conditional_gradient_variance", "layer_noise_trace", "layer_gradient_norm_sq"]:
        expected = np.atleast_1d(truth[quantity].values).ravel()
        assert unbiased(runs[quantity], expected), quantity
        ratio = honesty(runs[quantity], runs[f"{quantity}_stderr"])
        most = 2 / (1 - 24 / 60) * 1.3 if "gradient" in quantity and "variance" not in quantity else 2
        assert ((ratio > 0.5) & (ratio < most)).all(), (quantity, ratio)
        assert not unbiased(1.3 * runs[quantity], expected), quantity


def test_derived_standard_errors_are_honest_when_the_gradient_is_plain():
    """Ratios are not unbiased, but their delta-method errors should fit where the gradient is well seen."""
    problem = CASES[0].problem(n=400)
    truth = sn.measure(problem, [1, 8])
    assert float(truth["noise_scale"]) < 30
    runs = sampled_runs(problem, 200, 150)
    for quantity in ("noise_scale", "noise_share", "signal_to_noise"):
        ratio = honesty(runs[quantity], runs[f"{quantity}_stderr"])
        assert ((ratio > 0.5) & (ratio < 2)).all(), (quantity, ratio)
        assert (np.abs(runs[quantity].mean(0) - truth[quantity].values) < runs[quantity].std(0)).all(), quantity


def test_online_estimates_are_those_of_the_population():
    """Fresh data sets of 40 from y = x.w + noise at w = 0: the moments of the population are known.

    g = -x (x.u + e) for x normal in d dimensions: mean -u, E ||g||^2 = (d + 2) |u|^2 + d s^2.
    """
    u, noise, d = torch.tensor([0.8, -0.5, 0.3], dtype=torch.float64), 0.7, 3
    model = torch.nn.Linear(d, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    generator = torch.Generator().manual_seed(0)
    square = float(u @ u)
    second = (d + 2) * square + d * noise**2
    truth = {
        "gradient_norm_sq": square,
        "second_moment_trace": second,
        "noise_trace": second - square,
        "loss": 0.5 * (square + noise**2),
    }
    found: dict[str, list[float]] = {name: [] for name in truth}
    errors: dict[str, list[float]] = {name: [] for name in truth}
    for _ in range(160):
        x = torch.randn(40, d, generator=generator, dtype=torch.float64)
        y = x @ u[:, None] + noise * torch.randn(40, 1, generator=generator, dtype=torch.float64)
        result = sn.measure(sn.Problem(model, "mse", x, y), [4], sn.sampling.Online())
        for name in truth:
            found[name].append(float(result[name]))
            errors[name].append(float(result[f"{name}_stderr"]))
        variance = result["conditional_gradient_variance"].sel(batch_size=4)
        assert float(variance) == pytest.approx(float(result["noise_trace"]) / 4)
    for name, expected in truth.items():
        values = np.array(found[name])[:, None]
        assert unbiased(values, np.array([expected])), name
        assert 0.5 < honesty(values, np.array(errors[name])[:, None])[0] < 2, name
    assert not unbiased(np.array(found["noise_trace"])[:, None] * 39 / 40 * 0.9, np.array([truth["noise_trace"]]))


@pytest.mark.parametrize("n", [8, 10, 49, 93])  # 49 * (1 / 49) is not 1
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_budget_of_all_the_data_is_exact(n, dtype):
    problem = MLP.problem(n=n, dtype=dtype)
    exact, sampled = sn.measure(problem, [1, 4]), sn.measure(problem, [1, 4], samples=n)
    for name in exact.data_vars:
        if name == "noise_scale_status":
            continue
        np.testing.assert_allclose(sampled[name], exact[name], rtol=1e-8 if dtype == torch.float64 else 1e-3)
    for name in sampled.data_vars:
        if str(name).endswith("_stderr"):
            assert (sampled[name] == 0).all(), name
    assert sampled["noise_scale_low"] == sampled["noise_scale_high"]
    online = sn.measure(problem, [1, 4], sn.sampling.Online())
    assert online["noise_trace_stderr"] > 0
    np.testing.assert_allclose(online["noise_trace"], exact["noise_trace"] * n / (n - 1), rtol=1e-3)


def test_the_seed_chooses_the_samples():
    problem = MLP.problem(n=60)
    a, b, c = (sn.measure(problem, [1], samples=20, seed=seed) for seed in (1, 1, 2))
    assert float(a["noise_trace"]) == float(b["noise_trace"]) != float(c["noise_trace"])


def test_noise_scale_of_batches_is_measure_with_that_budget():
    problem = MLP.problem(n=60)
    a = sn.measure.noise_scale(problem, 8, 4, seed=3, confidence=0.9)
    b = sn.measure(problem, [8], samples=32, seed=3, confidence=0.9)
    assert a.drop_attrs().identical(b.drop_attrs())
    assert a.attrs["samples_used"] == 32 and a.attrs["confidence"] == 0.9


@pytest.mark.parametrize("scheme", [None, sn.sampling.Online()], ids=["finite", "online"])
def test_parameter_variance_of_a_budget(scheme):
    problem = CASES[0].problem(n=60)
    whole = sn.measure(problem, [1], per_parameter=True)["parameter_noise_variance"].values
    truth = whole if scheme is None else whole * 60 / 59  # a draw of a draw is a draw of the population
    runs = [sn.measure(problem, [1], scheme, samples=24, seed=s, per_parameter=True) for s in range(120)]
    values, stderr = (
        np.stack([run[name].values for run in runs])
        for name in ("parameter_noise_variance", "parameter_noise_variance_stderr")
    )
    assert unbiased(values, truth)
    assert not unbiased(1.3 * values, truth)
    share = 1 if scheme is None else 1 - 24 / 60  # what is seen here has the factor of the finite data in it
    ratio = honesty(values, stderr) * share
    assert ((ratio > 0.5) & (ratio < 2)).all(), ratio


def test_the_error_of_a_sampled_parameter_variance_shrinks_with_what_is_left_unseen():
    problem, some = CASES[0].problem(n=60), torch.arange(0, 60, 2)[:24]
    unlimited, finite, seen = (sampled_parameter_variance(problem, some, n) for n in (None, 60, 24))
    for name in problem.parameters:
        (v, e), (v60, e60), (_, nothing) = ((x[name] for x in found) for found in (unlimited, finite, seen))
        torch.testing.assert_close(v60, v * 59 / 60)
        torch.testing.assert_close(e60, e * 59 / 60 * (1 - 24 / 60) ** 0.5)
        assert bool((e > 0).all()) and bool((nothing == 0).all())
