"""The test behind the interval of the noise scale, piece by piece; how often the whole covers is asked elsewhere."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from coverage_families import ALARM, Setting, along, decaying, flat
from measure_cases import products_of
from scipy import stats

from shotnoise.measure.estimate import estimate
from shotnoise.measure.interval import (
    GRID,
    Evidence,
    evidence,
    interval,
    noise_along_gradient,
    noise_along_the_others,
    null_distribution,
    plausibility,
    tail_by_density,
)
from shotnoise.measure.moments import _PairMoments

KNOWN = Evidence(
    m=64, f=1.0, t=3.0, a=0.1, noise=3 / 64, q=0.02, trace_squared=1.6, tau=0.7, variance_t=0.01, correlation=0.2
)


def z(values: np.ndarray, truth: float) -> float:
    return float((values.mean() - truth) / (values.std(ddof=1) / np.sqrt(len(values))))


LIMIT = stats.norm.isf(ALARM / 2)


@pytest.mark.parametrize("shape", [0.3, 1.0, 1.5, 4.0, 50.0, 3000.0])
def test_the_tail_by_density_against_a_fine_grid(shape):
    law = stats.gamma(shape)
    grid = np.linspace(0, 1, 400_002)[1:-1]  # equally likely values
    density = law.logpdf(law.ppf(grid))
    y = law.ppf([0.001, 0.1, 0.4, 0.6, 0.9, 0.97, 0.9999])
    expected = np.array([(density <= law.logpdf(at)).mean() for at in y])
    np.testing.assert_allclose(tail_by_density(np.full(7, shape), y), expected, atol=1e-5)
    equal_tails = 2 * np.minimum(law.cdf(y), law.sf(y))
    assert shape > 1000 or np.abs(equal_tails - expected).max() > 0.01


def test_the_tail_by_density_at_the_ends():
    shape = np.array([0.5, 1.0, 1.0 + 1e-9, 2.0, 2.0, 2.0, 1e6])
    y = np.array([0.0, 0.0, 1e-12, 0.0, 1.0, 1e4, 0.0])
    np.testing.assert_allclose(tail_by_density(shape, y), [1, 1, 1, 0, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("true", [0.05, 0.3, 0.7, 1.2])
@pytest.mark.parametrize("excess", [-0.3, -0.1, 0.0, 0.2, 0.8])
def test_lambda_solves_its_equation(true, excess):
    """Q made from lambda, S and A by the equation in the docstring gives lambda back, or a larger solution."""
    s = np.geomspace(0.5, 5, 20)
    for each, q in zip(s, true * s + c_of(true, s) * excess, strict=True):
        known = replace(KNOWN, a=each + excess, q=q)
        found = noise_along_gradient(known, np.array([each]))[0]
        assert found * each + c_of(found, each) * excess == pytest.approx(q)
        assert found == pytest.approx(true) or found > true
        blind = q / each  # as if Q had no error in common with A
        assert excess == 0 or blind != pytest.approx(true, rel=1e-2)


def c_of(along_gradient: float, s: np.ndarray) -> np.ndarray:
    w = KNOWN.null / (KNOWN.null + 4 * KNOWN.f * along_gradient * s / KNOWN.m)
    return w * KNOWN.tau + (1 - w) * (along_gradient + KNOWN.tau) / 2


def test_lambda_stays_between_nothing_and_the_largest_eigenvalue():
    s = GRID[1:]
    for a, q in ((0.1, 5.0), (0.1, -5.0), (-0.1, 0.0), (-3.0, 1.0), (3.0, -1.0)):
        found = noise_along_gradient(replace(KNOWN, a=a, q=q), s)
        assert (found >= 0).all() and (found**2 <= KNOWN.trace_squared * (1 + 1e-12)).all()


SPECTRUM = decaying(12, 1.5)


def gradients(signal: float, m: int, runs: int, skew: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = rng.exponential(size=(runs, m, 12)) - 1 if skew else rng.normal(size=(runs, m, 12))
    mean = signal * along(12, 0, 3, 7)
    return noise * np.sqrt(SPECTRUM) + mean, mean


@pytest.mark.parametrize("skew", [False, True], ids=["normal", "skew"])
def test_the_noise_along_the_others_is_what_it_should_be(skew):
    g, mean = gradients(0.6, 12, 6000, skew)
    products = products_of(g)
    found = np.array([noise_along_the_others(products, c) for c in range(len(g))])
    truth = mean @ (SPECTRUM * mean) + (SPECTRUM**2).sum() / 10
    assert abs(z(found, truth)) < LIMIT
    with_itself = products.along_mean.var(0, ddof=1)
    assert abs(z(with_itself, truth)) > LIMIT
    own = evidence(products, estimate(products), 5)
    assert own.q == pytest.approx(found[5] - products.trace_squared[5] / 10)


def test_the_error_that_q_has_in_common_with_a():
    """Without a gradient the regression of Q on A has slope Tr Sigma^3 / Tr Sigma^2."""
    g, _ = gradients(0.0, 100, 1500, skew=False)
    products = products_of(g)
    a = estimate(products).values[2]
    q = np.array([noise_along_the_others(products, c) for c in range(len(g))])
    tau = (SPECTRUM**3).sum() / (SPECTRUM**2).sum()
    slope, error = stats.linregress(a, q).slope, bootstrap_slope(a, q)
    assert abs(slope - tau) < LIMIT * error
    assert abs(slope - SPECTRUM.mean()) > LIMIT * error


def bootstrap_slope(a: np.ndarray, q: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    picks = (rng.integers(len(a), size=len(a)) for _ in range(200))
    return float(np.std([stats.linregress(a[i], q[i]).slope for i in picks]))


@pytest.mark.parametrize("f", [1.0, 0.5])
def test_the_moments_of_the_squared_norm(f):
    """200,000 sample means: mean and variance of ||g||^2 are those of the gamma distribution, lambda being known."""
    m, mean = 32, 0.7 * along(12, 0, 3, 7)
    t, s = SPECTRUM.sum(), mean @ mean
    second, third = ((SPECTRUM**k).sum() for k in (2, 3))
    known = Evidence(m, f, t, s, f * t / m, mean @ (SPECTRUM * mean), second, third / second, 0.0, 0.0)
    shape, y = null_distribution(known, np.array([s / t]))
    expected = s + f * t / m  # A was put at S, so the observed ||g||^2 at its mean
    variance = expected**2 / shape[0]
    assert y == pytest.approx(shape)
    drawn = np.random.default_rng(0).normal(size=(200_000, 12)) * np.sqrt(f * SPECTRUM / m) + mean
    squares = (drawn**2).sum(1)
    assert abs(z(squares, expected)) < LIMIT
    deviations = (squares - squares.mean()) ** 2
    assert abs(z(deviations, variance)) < LIMIT
    assert abs(z(deviations, variance - known.null)) > LIMIT and abs(z(deviations, variance / f**0.5 * 1.05)) > LIMIT


def test_what_the_error_of_the_trace_adds():
    """A - x T over 6,000 samples of skew noise, in which T and A err together: its variance is as the formula says."""
    g, mean = gradients(1.2, 40, 6000, skew=True)
    products = products_of(g)
    _, t, a = estimate(products).values
    s, trace, second, third = mean @ mean, SPECTRUM.sum(), (SPECTRUM**2).sum(), (SPECTRUM**3).sum()
    together, x = np.corrcoef(a, t)[0, 1], np.array([s / trace])
    noise, q = trace / 40, mean @ (SPECTRUM * mean)
    known = Evidence(40, 1.0, trace, s, noise, q, second, third / second, t.var(), together)
    difference = a - x * t
    deviations = (difference - difference.mean()) ** 2
    assert together > 0.3
    assert abs(z(deviations, variance_of(known, x)[0])) < LIMIT
    for wrong in (replace(known, correlation=-together), replace(known, variance_t=0.0)):
        assert abs(z(deviations, variance_of(wrong, x)[0])) > LIMIT


def test_an_uncertain_trace_raises_the_variance_where_a_is_large():
    x = np.array([0.02])
    plain = replace(KNOWN, a=0.5, variance_t=0.0)
    for variance_t in (0.3, 3.0, 300.0):
        known = replace(plain, variance_t=variance_t, correlation=0.0)
        base = variance_of(plain, x) + x**2 * variance_t
        factor = 1 + x * variance_t * (known.a - x * known.t) / (known.t * base)
        assert variance_of(known, x) == pytest.approx(base * min(factor, 2.0) ** 2)
        low = replace(known, a=-0.02)
        assert variance_of(low, x) == pytest.approx(variance_of(replace(low, variance_t=0.0), x) + x**2 * variance_t)


def variance_of(known: Evidence, x: np.ndarray) -> np.ndarray:
    return (x * known.t + known.noise) ** 2 / null_distribution(known, x)[0]


def test_the_interval_is_what_the_test_does_not_reject():
    for a in (2.0, 0.3, 0.1, 0.02, -0.01):
        for confidence in (0.5, 0.95):
            known = replace(KNOWN, a=a, q=0.2 * max(a, 0))
            low, high = interval(known, confidence)
            x = np.append(np.geomspace(1e-5, 30, 50_000), 0)
            accepted = x[plausibility(known, x) > 1 - confidence]
            assert 1 / low == pytest.approx(accepted.max(), rel=1e-3)
            assert accepted.min() == 0 if np.isinf(high) else 1 / high == pytest.approx(accepted.min(), rel=1e-3)


def test_an_improbably_small_gradient_is_not_proof_of_an_infinite_noise_scale():
    known = replace(KNOWN, trace_squared=0.09, tau=0.03, a=-0.025, q=0.0)  # 100 directions; less than noise explains
    assert plausibility(known, np.array([0.0]))[0] < 0.05
    low, high = interval(known, 0.95)
    assert 0 < low < np.inf and high == np.inf
    assert low < interval(known, 0.9)[0] < np.inf
    assert low > interval(replace(known, a=-0.015), 0.95)[0]
    assert interval(replace(known, a=-known.noise), 0.95) == (0, np.inf)  # no g at all: not from this distribution


@pytest.mark.parametrize("population", [None, 80])
def test_the_evidence_adds_up_to_what_was_observed(population):
    products, _ = Setting(40, flat(4), along(4, 0), 1.0, share=40 / 80 if population else 0.0).draw(
        np.random.default_rng(0), 20
    )
    estimates = estimate(products)
    for column in range(20):
        known = evidence(products, estimates, column)
        assert known.a + known.noise == pytest.approx(products.along_mean[:, column].mean(), rel=1e-12)


def squared_by_loops(g: np.ndarray) -> float:
    """Over all distinct i, j, k, h: the mean of ((g_i - g_j).(g_k - g_h))^2 / 4."""
    terms = [((g[i] - g[j]) @ (g[k] - g[h])) ** 2 / 4 for i, j, k, h in permutations(range(len(g)), 4)]
    return float(np.mean(terms))


def cubed_by_loops(g: np.ndarray) -> float:
    p = [g[i] - g[i + 1] for i in range(0, len(g) - 1, 2)]
    return float(np.mean([(a @ b) * (b @ c) * (c @ a) / 8 for a, b, c in permutations(p, 3)]))


def test_traces_against_loops():
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(9, 3)) + 2, rng.normal(size=(9, 4)) * 3]
    moments = _PairMoments(3)
    moments.add(torch.as_tensor(g @ g.T) for g in layers)
    squared, cubed = moments.traces()
    for column, g in enumerate([*layers, np.concatenate(layers, 1)]):
        assert squared[column] == pytest.approx(squared_by_loops(g), rel=1e-9)
        assert cubed[column] == pytest.approx(cubed_by_loops(g), rel=1e-9)


def test_traces_over_chunks_are_weighted_means_and_tiny_chunks_know_nothing():
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(k, 4)) for k in (8, 6, 3, 1)]
    moments = _PairMoments(2)
    for g in chunks:
        moments.add(iter([torch.as_tensor(g @ g.T)]))
    expected = np.average([squared_by_loops(g) for g in chunks[:2]], weights=[8 * 7, 6 * 5])
    np.testing.assert_allclose(moments.traces()[0], expected)
    nothing = _PairMoments(2)
    nothing.add(iter([torch.ones(3, 3)]))
    assert (nothing.traces()[0] == 0).all()


def test_all_pairs_know_the_trace_better_than_some():
    """Twice as well for few directions: which is why coverage holds at 32 samples."""
    products, _ = Setting(32, flat(2), along(2, 0), 3.0).draw(np.random.default_rng(0), 400)
    rng = np.random.default_rng(1)
    g = rng.normal(size=(400, 32, 2))
    differences = g[:, ::2] - g[:, 1::2]
    inner = np.einsum("rkp,rlp->rkl", differences, differences)
    inner[:, range(16), range(16)] = 0
    some = (inner**2).sum((1, 2)) / (4 * 16 * 15)
    assert abs(z(products.trace_squared, 2.0)) < LIMIT and abs(z(some, 2.0)) < LIMIT
    assert products.trace_squared.var() < 0.75 * some.var()
