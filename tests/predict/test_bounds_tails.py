"""Tails with explicit constants: against exact laws, sampling at a stated false-alarm rate, and broken constants."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, special, stats

from shotnoise.predict.bounds import QuadraticForm
from shotnoise.predict.bounds.step import BatchDeviation, Step, batch_tails
from shotnoise.predict.bounds.tails import BERNSTEIN, CHERNOFF, PRINTED, SUB_GAMMA, BatchTail, NoiseTail

FORMS = (SUB_GAMMA, BERNSTEIN, CHERNOFF, PRINTED)
ALARM = 1e-6


def worked_example():
    return Step.of_matrices([0.3, -0.4], np.diag([0.5, 0.2]))


def violated(outside, runs, probability):
    """Were the true share at most `probability`, this would be so with probability ALARM."""
    return stats.binom.sf(outside - 1, runs, probability) < ALARM


class TestWorkedExample:
    def test_to_all_digits(self):
        step, rate, L, kappa = worked_example(), 0.5, 1.0, 0.25
        assert step.second_moment_trace() == pytest.approx(0.95, abs=1e-15)
        assert step.second_moment_trace(kappa) == pytest.approx(0.425, abs=1e-15)
        low, high = step.expectation(rate, L, kappa)
        assert (high, low) == pytest.approx((-0.071875, -0.178125), abs=1e-15)
        up, down = step.tails(rate, L, kappa)
        assert up.alphas == pytest.approx((0.0346860923, 0.0168286400, 0.015625), abs=5e-11)
        assert down.alphas[0] == pytest.approx(0.1040582769, abs=5e-11)
        assert (up.v, up.c) == pytest.approx((0.00176953125, 0.03125), abs=1e-14)
        assert np.exp(up.log_probability(0.2)) == pytest.approx(0.0465874, abs=5e-8)
        assert np.exp(up.log_probability(0.2, BERNSTEIN)) == pytest.approx(0.0825863, abs=5e-8)
        assert up.threshold(0.05) == pytest.approx(0.1965831, abs=5e-8)

    def test_from_gradients_as_from_matrices(self):
        rng = np.random.default_rng(0)
        for n, p in ((7, 3), (4, 9)):
            G = rng.normal(size=(n, p)) + 1
            mu = G.mean(0)
            whole, short = Step.of_matrices(mu, (G - mu).T @ (G - mu) / n), Step.of_gradients(G)
            for one, other in zip(whole.tails(0.1, 2.0, 0.3), short.tails(0.1, 2.0, 0.3), strict=True):
                assert one.alphas == pytest.approx(other.alphas, rel=1e-10)
                assert one.log_mgf(0.05 / one.c) == pytest.approx(other.log_mgf(0.05 / one.c), rel=1e-9)


def forms(seed=0, count=20):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        r = int(rng.integers(1, 12))
        yield NoiseTail(rng.exponential(size=r) * rng.integers(0, 2, size=r), rng.normal(size=r) * rng.exponential())


class TestNoiseModel:
    @pytest.mark.parametrize("form", FORMS)
    def test_the_exact_law_never_exceeds_the_bound(self, form):
        for tail in forms():
            law = QuadraticForm(-tail.eigenvalues.sum(), tail.linear, tail.eigenvalues)
            for s in np.sqrt(tail.v) * np.array([0.3, 1.0, 3.0, 6.0]):
                assert law.sf(s) <= np.exp(tail.log_probability(s, form)) * (1 + 1e-9) + 1e-14

    def test_they_are_ordered_and_inverse_to_each_other(self):
        for tail in forms(1):
            for p in (0.3, 0.05, 1e-4):
                s = [tail.threshold(p, form) for form in (CHERNOFF, SUB_GAMMA, BERNSTEIN, PRINTED)]
                assert s[0] <= s[1] * (1 + 1e-9) and s[1] <= s[2] and s[2] <= s[3]
                for form, x in zip((CHERNOFF, SUB_GAMMA, BERNSTEIN, PRINTED), s, strict=True):
                    assert tail.log_probability(x, form) == pytest.approx(np.log(p), rel=1e-5)

    def test_chernoff_is_the_gaussian_bound_without_curvature(self):
        tail = NoiseTail(np.zeros(2), np.array([3.0, 4.0]))
        assert tail.log_probability(10.0, CHERNOFF) == pytest.approx(-(10**2) / (2 * 25), rel=1e-9)
        assert tail.log_probability(10.0) == pytest.approx(-2.0, rel=1e-12)

    def test_the_printed_constant_is_the_largest_that_the_derivation_allows(self):
        """c = 1/10 holds for every form; with c = 1 a form of one eigenvalue violates it."""
        tail = NoiseTail(np.array([1.0]), np.array([1.0]))
        law, s = QuadraticForm(-1.0, tail.linear, tail.eigenvalues), 8.0
        assert np.log(law.sf(s)) < tail.log_probability(s, PRINTED)
        assert np.log(law.sf(s)) > 10 * tail.log_probability(s, PRINTED)

    @pytest.mark.parametrize(("p", "draws"), [(2, 40_000), (30, 40_000)])
    def test_sampling_from_the_sphere_and_the_gaussian(self, p, draws):
        """Coverage of each bound at a stated false-alarm rate, and a broken twin: alpha_2 without its factor 2 in v and
        c halved twice are rejected."""
        rng = np.random.default_rng(p)
        tail = NoiseTail(np.full(p, 1.0), np.full(p, 0.01))
        z = rng.normal(size=(draws, p))
        for noise in (z, z * np.sqrt(p) / np.linalg.norm(z, axis=1, keepdims=True)):
            x = (tail.eigenvalues * (noise**2 - 1) + tail.linear * noise).sum(1)
            for form in FORMS:
                for q in (0.1, 0.01, 0.001):
                    assert not violated(int((x >= tail.threshold(q, form)).sum()), draws, q)
        x = (tail.eigenvalues * (z**2 - 1) + tail.linear * z).sum(1)
        v, c, q = tail.v / 4, tail.c / 4, -np.log(0.01)
        assert violated(int((x >= np.sqrt(2 * v * q) + c * q).sum()), draws, 0.01)

    def test_the_printed_gaussian_tail_fails(self):
        """(78): exp(-s^2/|a|^2) in place of exp(-s^2/(2 |a|^2)), on a sphere of 1150 dimensions at s = 3 |a|."""
        p, s = 1150, 3.0
        exact = 0.5 * special.betainc((p - 1) / 2, 0.5, 1 - s**2 / p)  # of one coordinate of sqrt(p) S^{p-1}
        assert exact == pytest.approx(1.3e-3, rel=0.05)
        assert np.exp(-(s**2)) < exact < np.exp(-(s**2) / 2)


class TestRealBatches:
    def test_one_outlier_breaks_the_noise_model_and_not_the_batch_bound(self):
        g = np.zeros((1000, 1))
        g[0] = 1.0
        rate, L = 1.0, 1.0
        step, mu = Step.of_gradients(g), g.mean(0)
        up, _ = step.tails(rate, L, 1.0)
        excess = (-rate * g[0] * mu + 0.5 * rate**2 * L * g[0] ** 2)[0] - step.expectation(rate, L, 1.0)[1]
        assert up.log_probability(excess * (1 - 1e-9)) < np.log(1e-3) - 100  # its true probability is 1e-3
        real, _ = batch_tails((g**2).sum(1), g @ mu, rate, L, 1)
        for form in (BERNSTEIN, CHERNOFF):
            assert real.log_probability(real.largest * (1 - 1e-9), form) >= np.log(1e-3) - 1e-6

    @pytest.mark.parametrize("replacement", [True, False])
    def test_coverage_by_enumeration(self, replacement):
        """Every batch of three of seven, heavy tails: no threshold is exceeded more often than stated."""
        from itertools import combinations, product

        Y = np.random.default_rng(3).pareto(1.5, size=7)
        batches = product(range(7), repeat=3) if replacement else combinations(range(7), 3)
        means = np.array([Y[list(batch)].mean() for batch in batches]) - Y.mean()
        tail = BatchTail(Y, 3)
        for form in (BERNSTEIN, CHERNOFF):
            for q in (0.5, 0.1, 0.01, 1e-4):
                assert (means >= tail.threshold(q, form) + 1e-12).mean() <= q
            assert (means >= 0.3 * tail.threshold(0.1, form)).mean() > 0.1  # a third of it is too little
        assert tail.threshold(0.01, CHERNOFF) <= tail.threshold(0.01, BERNSTEIN)
        assert tail.threshold(1e-9, CHERNOFF) == pytest.approx(tail.largest)

    @pytest.mark.parametrize("replacement", [True, False])
    def test_the_length_of_the_noise(self, replacement):
        """Talagrand's inequality on 30 heavy-tailed gradients, batches of 4, on either side; without its deviations it
        fails."""
        rng = np.random.default_rng(0)
        G = rng.normal(size=(30, 6)) * rng.pareto(2.5, size=(30, 1)) + 0.2
        mu, m, rate, L, draws = G.mean(0), 4, 0.3, 2.0, 20_000
        step = Step.of_gradients(G)
        picks = rng.integers(30, size=(draws, m)) if replacement else rng.random((draws, 30)).argsort(1)[:, :m]
        g = G[picks].mean(1)
        noise = rate**2 * L / 2 * (g**2).sum(1)
        for sign in (1.0, -1.0):
            change = sign * -rate * g @ mu + noise  # the worst that an L-smooth loss can do
            bound = BatchDeviation.of(G - mu, step, G @ mu, rate, L, m, sign)
            for p in (0.2, 0.05, 0.01):
                assert not violated(int((change >= bound.bound(p)).sum()), draws, p)
            still = replace(bound.line, values=np.zeros(30))
            flat = replace(bound, line=still, radius=np.sqrt(bound.trace / m))
            assert violated(int((change >= flat.bound(0.05)).sum()), draws, 0.05)
        many = [replace(bound, line=replace(bound.line, batch_size=size)).bound(0.01) for size in (10, 100, 10_000)]
        assert many[0] > many[1] > many[2] > bound.centre

    def test_nothing_varies(self):
        tail = BatchTail(np.ones(4), 2)
        assert tail.threshold(0.1) == tail.threshold(0.1, CHERNOFF) == 0 and tail.log_probability(0.1) == -np.inf
        assert NoiseTail(np.zeros(0), np.zeros(0)).threshold(0.1, CHERNOFF) == 0


class TestLaw:
    @pytest.mark.parametrize("dof", [1, 2, 3, 10, 100])
    def test_chi_square(self, dof):
        law = QuadraticForm(0.0, np.zeros(dof), np.ones(dof))
        for x in dof * np.array([0.1, 0.5, 1.0, 2.0, 5.0]):
            value, error = law.sf_with_error(x)
            assert value == pytest.approx(stats.chi2.sf(x, dof), rel=1e-11)
            assert error < 1e-12
        assert law.isf(0.01) == pytest.approx(stats.chi2.isf(0.01, dof), rel=1e-9)

    def test_the_straight_contour_is_not_enough_and_says_so(self):
        """One eigenvalue decays like a power along a vertical line, and at the mean the line runs through the pole."""
        law = QuadraticForm(0.0, np.zeros(1), np.ones(1))
        start, second = law._start(3.0)
        straight, error = law._along(start, second, 0.0, 3.0)
        assert abs(straight - stats.chi2.sf(3.0, 1)) > 1e-5 and error > 1e-5
        for x in (1.0, 1.0001):  # at and near the mean
            assert law.sf(x) == pytest.approx(stats.chi2.sf(x, 1), rel=1e-11)

    def test_noncentral_from_either_side(self):
        scale, d = 0.7, 1.3
        for sign in (1.0, -1.0):
            law = QuadraticForm(sign * scale * d**2, np.array([2 * sign * scale * d]), np.array([sign * scale]))
            for x in (0.01, 0.5, 3.0, 10.0):
                exact = stats.ncx2.sf(x / scale, 1, d**2) if sign > 0 else stats.ncx2.cdf(x / scale, 1, d**2)
                assert law.sf(sign * x) == pytest.approx(exact, rel=1e-11)

    def test_difference_of_two_squares(self):
        law = QuadraticForm(0.0, np.zeros(2), np.array([1.0, -1.0]))
        for x in (0.1, 1.0, 5.0):
            exact = integrate.quad(lambda u: special.k0(u / 2) / (2 * np.pi), x, np.inf, epsabs=1e-15)[0]
            assert law.sf(x) == pytest.approx(exact, rel=1e-10) and law.sf(-x) == pytest.approx(1 - exact, rel=1e-10)

    def test_normal_and_degenerate(self):
        law = QuadraticForm(1.0, np.array([2.0]), np.zeros(1))
        assert law.sf(4.0) == pytest.approx(stats.norm.sf(1.5), rel=1e-12) and law.support == (-np.inf, np.inf)
        still = QuadraticForm(1.0, np.zeros(0), np.zeros(0))
        assert still.sf(0.5) == 1 and still.sf(1.5) == 0
        square = QuadraticForm(0.0, np.zeros(1), np.ones(1))
        assert square.sf(-1.0) == 1 and square.support == (0.0, np.inf)

    def test_saddle_point(self):
        """Within 8 % down to 1e-3, undefined at the mean."""
        law = QuadraticForm(0.0, np.array([0.5, 0.2, 0.0]), np.array([1.0, 0.3, -0.2]))
        for p in (0.3, 0.1, 0.01, 0.001):
            x = law.isf(p)
            assert law.sf(x) == pytest.approx(p, rel=1e-8)
            assert law.saddlepoint_sf(x) == pytest.approx(p, rel=0.08)
        assert np.isnan(law.saddlepoint_sf(law.mean))

    def test_many_eigenvalues_against_sampling(self):
        rng = np.random.default_rng(0)
        values = np.geomspace(1, 1e-8, 40) * np.where(np.arange(40) % 7 == 3, -1, 1)
        law = QuadraticForm(0.3, np.linspace(0, 1, 40), values)
        z = rng.normal(size=(200_000, 40))
        x = 0.3 + (values * z**2 + law.linear * z).sum(1)
        for p in (0.9, 0.5, 0.05):
            inside = int((x > law.isf(p)).sum())
            assert stats.binomtest(inside, len(x), p).pvalue > ALARM
            assert stats.binomtest(inside, len(x), p * 1.05).pvalue < ALARM
        assert law.variance == pytest.approx(x.var(), rel=0.05)


@pytest.mark.parametrize("probability", [0.3, 0.05, 1e-4])
class TestThresholdAndProbabilityAreOneBound:
    """The thresholds are judged by sampling; each form's probability must be its inverse."""

    @pytest.mark.parametrize("form", [BERNSTEIN, CHERNOFF])
    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_of_real_batches(self, probability, form, batch_size):
        tail = BatchTail(np.random.default_rng(0).exponential(size=2000), batch_size)
        s = tail.threshold(probability, form)
        if (form, batch_size, probability) == (CHERNOFF, 1, 1e-4):  # rarer than any of 2,000: nothing lies beyond
            assert s == tail.largest
        else:
            assert np.exp(tail.log_probability(s, form)) == pytest.approx(probability, rel=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_of_the_noise_model(self, probability, form):
        tail = NoiseTail(np.array([0.5, 0.2, 0.1]), np.array([0.3, -0.2, 0.6]))
        s = tail.threshold(probability, form)
        assert np.exp(tail.log_probability(s, form)) == pytest.approx(probability, rel=1e-6)
