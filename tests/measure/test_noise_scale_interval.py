"""Does the interval of the noise scale cover the truth as often as it says?

95 % intervals should cover between 92 and 98 %. Every test here counts how often they do and rejects only a coverage
outside [0.92, 0.98] at a false-alarm rate of 1e-4. Intervals spoilt on purpose must be rejected.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coverage_families import (
    ALARM,
    BUDGETS,
    FAMILIES,
    NETWORKS,
    Network,
    Setting,
    along,
    at_random,
    covers,
    decaying,
    flat,
    trained,
    within,
)
from measure_cases import CASES, MLP, products_of
from scipy import stats

import shotnoise as sn
from shotnoise.measure import interval
from shotnoise.measure.estimate import Estimates, Products, estimate
from shotnoise.measure.scale import noise_scale, ratio, samples_to_resolve
from shotnoise.results import ESTIMATED, UNRESOLVED


def two_sided(quantile: float) -> float:
    return float(2 * stats.norm.cdf(quantile) - 1)


HALVED = two_sided(stats.norm.isf(0.025) / 2)  # the confidence of an interval of half the width


def coverage(setting: Setting, runs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per run: does the 95 % interval cover, does one of half the width, does a normal one without Tr Sigma^2."""
    products, true = setting.draw(np.random.default_rng(seed), runs)
    estimates = estimate(products)
    return (
        covers(noise_scale(products, estimates, 0.95), true),
        covers(noise_scale(products, estimates, HALVED), true),
        without_quadratic_term(products, estimates, true, setting),
    )


def without_quadratic_term(products: Products, estimates: Estimates, true: float, setting: Setting) -> np.ndarray:
    """|A - T/B| within 1.96 standard errors of 2 g.(mean noise): the noise's own square forgotten."""
    along_gradient = setting.towards @ (setting.spectrum * setting.towards)
    variance = 4 * products.unseen * along_gradient * estimates.values[1] / true / products.samples
    return np.abs(estimates.values[2] - estimates.values[1] / true) <= 1.96 * np.sqrt(variance)


def test_the_judge_can_tell():
    rng = np.random.default_rng(0)
    for probability, fine in ((0.93, True), (0.97, True), (0.86, False), (1.0, False)):
        assert within(rng.random(4000) < probability) is fine


SETTINGS = [
    Setting(64, flat(10), along(10), 3.0),
    Setting(128, decaying(50), along(50, 0), 0.3),
    Setting(128, flat(50), along(50), 3.0),
    Setting(64, decaying(10), along(10), 1.0, share=0.5),
    Setting(128, flat(20), along(20), 0.3, tails="heavy"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_intervals_cover_as_promised(setting):
    right, halved, linear = coverage(setting, runs=300)
    assert within(right), right.mean()
    assert not within(halved), halved.mean()
    assert setting.b_over_m < 3 or not within(linear), linear.mean()


MANY = [
    Setting(m, spectrum(p), along(p), scale, tails, share)
    for m in (64, 128)
    for spectrum, p in ((flat, 2), (flat, 10), (flat, 100))
    for scale in (0.1, 1.0, 10.0)
    for tails, share in (("normal", 0.0), ("heavy", 0.0), ("normal", 0.5))
] + [Setting(m, decaying(p), along(p, 0), scale) for m in (64, 128) for p in (10, 100) for scale in (0.1, 1.0, 10.0)]


@pytest.mark.slow
@pytest.mark.parametrize("setting", MANY, ids=lambda setting: setting.name)
def test_intervals_cover_as_promised_in_many_settings(setting):
    right, halved, _ = coverage(setting, runs=1000, seed=1)
    assert within(right), right.mean()
    assert not within(halved), halved.mean()


QUIET = Setting(128, decaying(50, 2), along(50, 20), 15 / 128)


def test_a_gradient_in_a_quiet_direction_is_not_covered_too_often(monkeypatch):
    """Nor when the noise along it is not asked for, but taken to be as large as it may be: that must be rejected."""
    products, true = QUIET.draw(np.random.default_rng(0), 600)
    estimates = estimate(products)
    right = covers(noise_scale(products, estimates, 0.95), true)
    assert within(right), right.mean()
    monkeypatch.setattr(interval, "noise_along_gradient", lambda known, s: np.full_like(s, known.tau))
    typical = covers(noise_scale(products, estimates, 0.95), true)
    assert not within(typical) and typical.mean() > 0.98, typical.mean()


UNEVEN = Setting(40, decaying(60, 1.5), along(60), 10 / 40, "uneven")


def test_samples_of_uneven_scale_are_not_covered_too_seldom(monkeypatch):
    """A few large samples make T, and by it all variances; without the correction for that, misses are too many."""
    products, true = UNEVEN.draw(np.random.default_rng(1), 1500)
    estimates = estimate(products)
    right = covers(noise_scale(products, estimates, 0.95), true)
    assert within(right), right.mean()
    monkeypatch.setattr(interval, "MOST_RAISED", 1.0)
    plain = covers(noise_scale(products, estimates, 0.95), true)
    assert not within(plain) and plain.mean() < 0.92, plain.mean()


@pytest.mark.parametrize("confidence", [0.68, 0.9, 0.99])
def test_other_confidences(confidence):
    """As far from what is asked, in quantiles of the normal distribution, as 92 and 98 % are from 95 %."""
    products, true = Setting(128, decaying(50), along(50), 1.0).draw(np.random.default_rng(2), 400)
    estimates, quantile = estimate(products), stats.norm.isf((1 - confidence) / 2)
    low, high = (two_sided(quantile * stats.norm.isf((1 - c) / 2) / stats.norm.isf(0.025)) for c in (0.92, 0.98))
    assert within(covers(noise_scale(products, estimates, confidence), true), low, high)
    assert not within(covers(noise_scale(products, estimates, two_sided(quantile / 2)), true), low, high)


@pytest.mark.parametrize("network", [Network("linear", 0), Network("mlp", 300)], ids=str)
def test_intervals_cover_the_truth_of_networks(network):
    products, true = network.draw(64, np.random.default_rng(0), 400)
    estimates = estimate(products)
    assert within(covers(noise_scale(products, estimates, 0.95), true))
    assert not within(covers(noise_scale(products, estimates, HALVED), true))


@pytest.mark.slow
@pytest.mark.parametrize("m", BUDGETS)
@pytest.mark.parametrize("true", [30, 200])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_intervals_cover_in_all_families(family, true, m):
    spectrum, towards, tails = FAMILIES[family]
    right, halved, _ = coverage(Setting(m, spectrum, towards, true / m, tails), runs=600, seed=2)
    assert within(right), right.mean()
    assert not within(halved), halved.mean()


@pytest.mark.slow
@pytest.mark.parametrize("m", [*BUDGETS, 1024])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_intervals_cover_the_truth_of_all_networks(network, m):
    """The last, where one sample in 1,797 carries a twelfth of the noise, is the known exception: 90 to 100 %."""
    products, true = network.draw(m, np.random.default_rng(1), 400)
    hits = covers(noise_scale(products, estimate(products), 0.95), true)
    assert within(hits, *((0.9, 1.0) if network == Network("cnn", 1500) else (0.92, 0.98))), hits.mean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_intervals_cover_in_settings_at_random(seed):
    right, halved, _ = coverage(at_random(seed), runs=800, seed=seed)
    assert within(right), right.mean()
    assert not within(halved), halved.mean()


@pytest.mark.slow
def test_a_gradient_along_one_direction_of_middling_noise_is_covered_too_seldom():
    """Known weakness, where it is largest: 91 %. The noise along it and A err together less than is assumed."""
    right, _, _ = coverage(Setting(128, decaying(60, 1.5), along(60, 4), 10 / 128), runs=2000)
    assert within(right, 0.9, 0.98), right.mean()


@pytest.mark.parametrize("network", [Network("linear", 0), Network("linear", 200)], ids=str)
def test_intervals_of_measure_cover(network):
    problem, samples = trained(network), 128
    truth = float(sn.measure(problem, [1])["noise_scale"])

    def hits(confidence: float, runs: int) -> np.ndarray:
        found = [sn.measure(problem, [1], samples=samples, seed=seed, confidence=confidence) for seed in range(runs)]
        low, high = (np.array([float(f[f"noise_scale_{end}"]) for f in found]) for end in ("low", "high"))
        return (low <= truth) & (truth <= high)

    assert within(hits(0.95, 150))
    assert not within(hits(0.4, 60))


def test_a_gradient_that_cannot_be_seen_is_said_to_be_so():
    """y = x.w + noise at the best w of the population: its gradient is 0 and no budget resolves it."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(5, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    unresolved, high, needed = 0, [], []
    for _ in range(60):
        x, y = torch.randn(64, 5, generator=generator), torch.randn(64, 1, generator=generator)
        result = sn.measure(sn.Problem(model, "mse", x, y), [8], sn.sampling.Online())
        is_open = str(result["noise_scale_status"].values) == UNRESOLVED
        unresolved += is_open
        high.append(np.isinf(float(result["noise_scale_high"])) == is_open)
        needed.append((float(result["noise_scale_samples_needed"]) > 64) == is_open)
        assert np.isinf(float(result["noise_scale_stderr"])) == is_open
        assert float(result["noise_scale_low"]) > 0
        assert np.isfinite(float(result["noise_scale_samples_needed"]))
    assert all(high) and all(needed)
    assert stats.binom.cdf(unresolved, 60, 0.95) > ALARM  # nearly always: a resolved one has missed the truth
    plain = sn.measure(CASES[0].problem(n=400), [8], samples=200)
    assert str(plain["noise_scale_status"].values) == ESTIMATED
    assert float(plain["noise_scale_samples_needed"]) == 200


def test_what_is_said_to_be_needed_does_resolve():
    """Taken at its word in those runs that do not resolve but see a positive gradient, it mostly works."""
    rng = np.random.default_rng(0)
    setting = Setting(32, flat(10), along(10), 1.0)
    products, _ = setting.draw(rng, 100)
    estimates = estimate(products)
    open_ended = np.isinf(noise_scale(products, estimates, 0.95).high)
    needed = samples_to_resolve(products, estimates, 0.95)
    assert open_ended.sum() > 20 and (needed[open_ended] > 32).all()
    enough = int(np.median(needed[open_ended]))
    assert enough < 32 * 20
    more, _ = replace(setting, m=2 * enough, b_over_m=32 / (2 * enough)).draw(rng, 50)
    assert np.isfinite(noise_scale(more, estimate(more), 0.95).high).mean() > 0.8


def test_a_finite_data_set_is_always_resolved_by_all_of_it():
    products, _ = Setting(16, flat(10), along(10), 10.0, share=0.25).draw(np.random.default_rng(0), 100)
    needed = samples_to_resolve(products, estimate(products), 0.95)
    assert ((needed > 16) & (needed <= 64)).all()


def test_confidence_orders_the_intervals():
    products, _ = Setting(128, flat(10), along(10), 0.1).draw(np.random.default_rng(0), 20)
    estimates = estimate(products)
    wide, usual, narrow = (noise_scale(products, estimates, c) for c in (0.99, 0.95, 0.5))
    assert (wide.low < usual.low).all() and (usual.low < narrow.low).all()
    assert (wide.high > usual.high).all() and (usual.high > narrow.high).all()
    inside = (narrow.low < usual.value) & (usual.value < narrow.high)
    assert inside.all() and (usual.status == ESTIMATED).all()


def test_without_pairs_of_samples_the_interval_is_wider_not_narrower():
    """Models so large that one sample fills a chunk: Tr Sigma^2 is not known then, and must not count as 0."""
    products, _ = Setting(64, flat(10), along(10), 0.3).draw(np.random.default_rng(0), 20)
    estimates = estimate(products)
    blind = replace(products, trace_squared=np.zeros(20), trace_cubed=np.zeros(20))
    a, b = noise_scale(products, estimates, 0.95), noise_scale(blind, estimates, 0.95)
    assert (b.low <= a.low).all() and (b.high >= a.high).all()
    problem = MLP.problem(n=60)
    problem.chunk_size  # noqa: B018  (looks at the model once)
    usual = sn.measure(problem, [1], samples=30)
    problem._chunk_size = 1
    alone = sn.measure(problem, [1], samples=30)
    assert float(alone["noise_scale_high"]) >= float(usual["noise_scale_high"])


def test_no_gradient_and_no_noise():
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(
        ratio(np.array([2.0, 2, 0, 0, 2]), np.array([4.0, 0, 0, 1, -1])), [0.5, inf, nan, 0, inf]
    )
    g = np.zeros((1, 10, 3))
    g[..., 0] = 2
    products = products_of(g)
    found = noise_scale(products, estimate(products), 0.95)
    assert (found.value, found.low, found.high, found.stderr) == (0, 0, 0, 0)
