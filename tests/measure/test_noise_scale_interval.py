"""Does the interval of the noise scale cover the truth as often as it says?

The issue asks that 95 % intervals cover between 92 and 98 %. Every test here counts how often they do and rejects
only a coverage outside [0.92, 0.98] at a false-alarm rate of 1e-4. Intervals spoilt on purpose must be rejected.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from measure_cases import CASES, MLP, covariance, products_of
from scipy import stats

import shotnoise as sn
from shotnoise.measure.estimate import Estimates, Products, estimate
from shotnoise.measure.scale import NoiseScale, noise_scale, ratio, samples_to_resolve
from shotnoise.results import ESTIMATED, UNRESOLVED

ALARM = 1e-4
HALVED = 2 * stats.norm.cdf(stats.norm.isf(0.025) / 2) - 1  # the confidence of an interval of half the width


@dataclass(frozen=True)
class Setting:
    """m gradients whose noise has `spectrum`, their mean along the unit vector `towards`; B in units of m.

    share: m/n; 0 for an unlimited population.
    """

    m: int
    spectrum: np.ndarray
    towards: np.ndarray
    b_over_m: float
    tails: str = "normal"
    share: float = 0.0

    @property
    def name(self) -> str:
        part = f" {self.share:g} of all" if self.share else ""
        return f"m={self.m} p={len(self.spectrum)} B/m={self.b_over_m:g} {self.tails}{part}"

    def draw(self, rng: np.random.Generator, runs: int) -> tuple[Products, float]:
        """Products with a run in each column, and the true noise scale."""
        p = len(self.spectrum)
        true = self.b_over_m * self.m
        mean = np.sqrt(self.spectrum.sum() / true) * self.towards
        noise = {
            "normal": lambda size: rng.normal(size=size),
            "heavy": lambda size: rng.standard_t(5, size=size) / np.sqrt(5 / 3),
            "skew": lambda size: rng.exponential(size=size) - 1,
        }[self.tails]
        if not self.share:
            return products_of(noise((runs, self.m, p)) * np.sqrt(self.spectrum) + mean), true
        n = round(self.m / self.share)
        whole = noise((n, p)) * np.sqrt(self.spectrum)
        whole += mean - whole.mean(0)
        drawn = np.stack([whole[rng.choice(n, self.m, replace=False)] for _ in range(runs)])
        return products_of(drawn, n), float(np.trace(covariance(whole)) / (mean @ mean))


def flat(p):
    return np.ones(p)


def decaying(p):
    return 1 / np.arange(1, p + 1)


def along(p, *coordinates):
    unit = np.zeros(p)
    unit[list(coordinates) or range(p)] = 1
    return unit / np.linalg.norm(unit)


def covers(found: NoiseScale, true: float) -> np.ndarray:
    return (found.low <= true) & (true <= found.high)


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


def within(hits: np.ndarray, low: float = 0.92, high: float = 0.98) -> bool:
    """Is this number of hits compatible with a coverage between `low` and `high`?"""
    count, runs = int(hits.sum()), len(hits)
    too_few = stats.binom.cdf(count, runs, low) < ALARM / 2
    too_many = stats.binom.sf(count - 1, runs, high) < ALARM / 2
    return not (too_few or too_many)


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


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("tails", ["normal", "skew"])
def test_a_gradient_in_a_quiet_direction_is_covered_too_often_rather_than_too_seldom(scale, tails):
    """Known weakness: nothing but the noise along the other directions bounds the interval, which is too wide."""
    setting = Setting(128, np.append(decaying(20), 1e-3), along(21, 20), scale, tails)
    right, _, _ = coverage(setting, runs=1000)
    assert within(right, 0.92, 1.0), right.mean()


def end_to_end(problem, truth, samples, seeds, confidence=0.95):
    found = [sn.measure(problem, [1], samples=samples, seed=seed, confidence=confidence) for seed in range(seeds)]
    low, high = (np.array([float(f[f"noise_scale_{end}"]) for f in found]) for end in ("low", "high"))
    return (low <= truth) & (truth <= high)


def trained_digits(steps: int, hidden: tuple[int, ...] = ()) -> sn.Problem:
    data = sn.datasets.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = (data.inputs[0].numel(), *hidden, data.classes)
        layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
        model = torch.nn.Sequential(torch.nn.Flatten(), *[part for x in layers for part in (x, torch.nn.Tanh())][:-1])
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(data.inputs), data.targets)
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= 0.1 * g
    return sn.Problem(model, "cross_entropy", data.inputs, data.targets)


def test_intervals_cover_the_truth_of_a_real_model():
    problem = trained_digits(steps=0)
    truth = float(sn.measure(problem, [1])["noise_scale"])
    assert within(end_to_end(problem, truth, 128, 160))
    assert not within(end_to_end(problem, truth, 128, 160, HALVED))


def test_intervals_of_a_trained_model_do_not_cover_too_seldom():
    """Known weakness: after training the gradient is in quiet directions, and 95 % intervals cover more than 98 %."""
    problem = trained_digits(steps=200)
    truth = float(sn.measure(problem, [1])["noise_scale"])
    assert within(end_to_end(problem, truth, 256, 120), high=1.0)
    assert not within(end_to_end(problem, truth, 256, 120, confidence=0.4), high=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (16,)], ids=["softmax", "mlp"])
@pytest.mark.parametrize("steps", [0, 30, 300])
@pytest.mark.parametrize("samples", [32, 128, 512])
def test_intervals_cover_the_truth_of_real_models(hidden, steps, samples):
    """Between 92 and 98 % at the start; after training, or from 32 samples, only not too seldom (see above)."""
    problem = trained_digits(steps, hidden)
    truth = float(sn.measure(problem, [1])["noise_scale"])
    hits = end_to_end(problem, truth, samples, 600)
    assert within(hits, high=0.98 if steps == 0 and samples > 32 else 1.0), hits.mean()


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
