"""Tail indices against the table, special functions, exact moments and runs; Hill's estimator."""

from itertools import permutations, product

import mpmath
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import lambertw, roots_genlaguerre

import shotnoise as sn

st = sn.predict.stationary


def index(strength, S, name="tail_index"):
    return float(st.tail_index(1.0, strength, S)[name])


TABLE = [
    (0.2, 4, 30.563, 36), (0.2, 64, 467.54, 576), (0.5, 1, 2.904, 3), (0.5, 32, 71.95, 96), (1.0, 2, 2, 2), (1.0, 4, 3.505, 4),
    (1.0, 64, 42.62, 64), (1.5, 1, 0.477, 0.333), (1.5, 16, 4.017, 5.333), (1.5, 64, 13.24, 21.333), (1.8, 4, 0.905, 0.444), (1.8, 32, 2.843, 3.556),
]  # fmt: skip


@pytest.mark.parametrize(("strength", "S", "exact", "printed"), TABLE)
def test_the_table(strength, S, exact, printed):
    assert index(strength, S) == pytest.approx(exact, abs=6e-3 if exact > 100 else 6e-4 if exact < 10 else 6e-3)
    assert index(strength, S, "tail_index_paper") == pytest.approx(printed, abs=1e-3)
    assert index(strength, S, "tail_index_continuous") == pytest.approx(2 * S / strength + 1, rel=1e-12)
    assert index(strength, S, "highest_moment") == np.ceil(index(strength, S)) - 1


def test_one_number_to_ten_digits():
    assert index(0.5, 4) == pytest.approx(9.97838414964, rel=1e-11)
    assert float(st.tail_index(2.5, 0.2, 4)["tail_index"]) == pytest.approx(
        9.97838414964, rel=1e-11
    )  # a lambda alone counts


@pytest.mark.parametrize(("strength", "S"), [(0.5, 1), (1.0, 4), (1.8, 8), (1.5, 3)])
def test_the_moment_is_one_there_by_special_functions(strength, S):
    k, theta, beta = mpmath.mpf(S) / 2, mpmath.mpf(S) / (2 * mpmath.mpf(strength)), mpmath.mpf(index(strength, S))
    below = mpmath.hyp1f1(k, k + beta + 1, -theta) / mpmath.gamma(k + beta + 1)
    above = mpmath.exp(-theta) * mpmath.hyperu(beta + 1, beta + k + 1, theta) / mpmath.gamma(k)
    assert float(theta**k * mpmath.gamma(beta + 1) * (below + above)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("S", [1, 2, 4, 50, 1000])
def test_it_is_two_where_the_variance_ends(S):
    limit = float(st.critical_learning_rate([1.0], S)["critical_learning_rate"])
    assert index(limit, S) == pytest.approx(2, abs=1e-8)
    assert index(limit, S, "tail_index_paper") == pytest.approx(2, abs=1e-8)


def test_limits_of_large_batches_and_small_rates():
    for strength, slope in ((0.2, 7.282), (0.5, 2.211), (1.0, 0.650), (1.5, 0.192), (1.8, 0.0591)):
        assert index(strength, 4000) / 4000 == pytest.approx(slope, rel=0.01)
    expected = float(np.exp(1 + lambertw(1 / np.e).real) / 2)
    assert index(0.002, 4) / (4 / 0.002) == pytest.approx(expected, rel=0.01)
    assert expected == pytest.approx(1.7956, abs=1e-4)


@pytest.mark.parametrize(("S", "edge"), [(4, 2.66), (8, 2.49), (64, 2.07)])
def test_a_law_exists_beyond_the_stable_mean(S, edge):
    r = st.tail_index(1.0, [edge - 0.01, edge + 0.01], S)
    assert r["status"].values.tolist() == ["stationary", "diverges"]
    assert 0 < float(r["tail_index"][0]) < 0.2 and np.isnan(r["tail_index"][1])
    assert float(r["tail_index_paper"][0]) < 0


def test_several_dimensions_agree_where_the_answer_is_known():
    """One dimension; and beta = 2 at the critical rate, with correlated features, a matrix of rates, momentum."""
    A = np.array([[1.0, 0.4], [0.4, 0.5]])
    small = {"particles": 1000, "steps": 100, "replicates": 6}
    cases = [(st.tail_index_matrix([1.0], 1.0, 4, **small), index(1.0, 4), 0.03)]
    rate = np.array([[0.6, 0.2], [0.2, 0.8]])
    for momentum in (0.0, 0.5):
        limit = float(st.label_noise(A, 1.0, rate, 2, momentum)["critical_learning_rate"])
        cases.append((st.tail_index_matrix(A, limit * rate, 2, momentum, **small), 2.0, 0.03))
    for r, expected, bias in cases:
        error = float(r["tail_index_stderr"])
        assert abs(float(r["tail_index"]) - expected) < 4.5 * error + bias * expected
        assert error < 0.1 * expected and float(r["lyapunov_exponent"]) < 0
        assert abs(float(r["tail_index"]) - 1.5 * expected) > 4.5 * error + bias * expected  # and not just anything
    gone = st.tail_index_matrix([1.0, 1.0], 8.0, 4, particles=50, steps=50)
    assert gone["status"] == "diverges" and np.isnan(gone["tail_index"])


@pytest.mark.parametrize("sampling", [sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()], ids=str)
@pytest.mark.parametrize("S", [1, 2, 3])
def test_a_data_set_batch_by_batch(S, sampling):
    """The moment is one over all draws of indices, and the index is two at the exact critical rate of the regression."""
    x = np.array([0.3, -1.0, 2.0, 0.7, -1.4])
    draws = (
        product(range(5), repeat=S) if isinstance(sampling, sn.sampling.WithReplacement) else permutations(range(5), S)
    )
    squares = np.array([np.mean(x[list(batch)] ** 2) for batch in draws])
    r = st.tail_index_data(x, 1.2, S, sampling=sampling)
    beta = float(r["tail_index"])
    assert np.mean(np.abs(1 - 1.2 * squares) ** beta) == pytest.approx(1, abs=1e-9)
    assert float(r["lyapunov_exponent"]) == pytest.approx(np.mean(np.log(np.abs(1 - 1.2 * squares))), rel=1e-9)
    limit = float(sn.predict.regression_stability(x[:, None], [S], sampling=sampling)["critical_learning_rate"].item())
    assert float(st.tail_index_data(x, limit, S, sampling=sampling)["tail_index"]) == pytest.approx(2, abs=1e-7)
    bounded = st.tail_index_data(x, 0.1, S, sampling=sampling)
    assert np.isinf(bounded["tail_index"]) and np.isinf(bounded["highest_moment"])


def isotropic(strength, S, p, beta):
    """E[((1 - t)^2 + t r)^(beta/2)] for a I: t ~ Gamma(S/2), r ~ Gamma((p-1)/2), both at the rate S / (2 a lambda)."""
    theta = S / (2 * strength)
    (t, v), (r, w) = roots_genlaguerre(80, S / 2 - 1), roots_genlaguerre(80, (p - 1) / 2 - 1)
    t, r = t[:, None] / theta, r / theta
    return v @ ((1 - t) ** 2 + t * r) ** (beta / 2) @ w / (v.sum() * w.sum())


def test_isotropic_features_against_their_own_integral():
    r = st.tail_index_matrix(np.eye(3), 0.75, 4, particles=1000, steps=100, replicates=6)
    beta = brentq(lambda b: isotropic(0.75, 4, 3, b) - 1, 0.5, 20)
    assert beta == pytest.approx(4.33664, abs=1e-4)
    assert abs(float(r["tail_index"]) - beta) < 4.5 * float(r["tail_index_stderr"]) + 0.02 * beta
    assert float(r["tail_index_stderr"]) < 0.05 * beta


@pytest.fixture(scope="module")
def runs():
    """One weight at a lambda = 1.5, S = 4: 1000 runs, every eighth step of 400."""
    rng, w, kept = np.random.default_rng(0), np.zeros(1000), []
    for step in range(480):
        x = rng.normal(size=(4, 1000))
        w = w - 1.5 * (x * (x * w - 0.1 * rng.normal(size=(4, 1000)))).mean(0)
        if step >= 80 and step % 8 == 0:
            kept.append(w.copy())
    return np.array(kept).T


def test_hill_on_runs_finds_the_exact_index_and_not_the_others(runs):
    r = st.tail_index(1.0, 1.5, 4)
    found = st.hill(runs, [250, 500, 1000])

    def inside(beta):
        return bool(((found["tail_index_low"] < beta) & (beta < found["tail_index_high"])).all())

    assert inside(float(r["tail_index"]))
    assert not inside(float(r["tail_index_continuous"]))
    assert found.sizes["tail_samples"] == 3 and found.attrs["chosen"] in (250, 500, 1000)


def test_hill_against_its_definition_and_its_interval():
    rng = np.random.default_rng(1)
    x = rng.pareto(2.0, 5000) + 1
    r = st.hill(x, 100)
    top = np.sort(x)[::-1]
    assert float(r["tail_index"]) == pytest.approx(1 / np.mean(np.log(top[:100] / top[100])), rel=1e-12)
    assert float(r["tail_threshold"]) == pytest.approx(top[100])
    assert float(r["tail_index_stderr"]) == pytest.approx(2 / np.sqrt(100), rel=0.3)  # beta / sqrt(k)
    covered = 0
    for _ in range(100):
        one = st.hill(rng.pareto(2.0, 2000) + 1, 200, resamples=100)
        covered += bool(one["tail_index_low"] < 2 < one["tail_index_high"])
    assert covered >= 84  # of 95 expected; fewer has a probability of 2e-5


def test_hill_over_whole_runs_is_wider_where_they_are_correlated():
    rng = np.random.default_rng(2)
    same = np.repeat(rng.pareto(2.0, (200, 1)) + 1, 50, axis=1) * rng.uniform(1, 1.01, (200, 50))
    clustered, plain = st.hill(same, 1000), st.hill(same.reshape(-1), 1000)
    assert float(clustered["tail_index_stderr"]) > 3 * float(plain["tail_index_stderr"])


def test_the_stability_plot():
    r = st.hill(np.random.default_rng(3).pareto(3.0, 20000) + 1)
    assert r["tail_samples"].values[0] == 10 and r["tail_samples"].values[-1] == 2000
    assert r["tail_index"].dims == ("tail_samples",)
    flat = r["tail_index"].sel(tail_samples=slice(300, None))
    assert float(flat.max() - flat.min()) < 0.4 and r.attrs["chosen"] >= 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.tail_index(-1.0, 0.1, 4), "one positive number; see `tail_index_matrix`"),
        (lambda: st.tail_index(1.0, np.eye(1), 4), "see `tail_index_matrix` for matrices"),
        (lambda: st.tail_index_data(np.zeros(3), 0.1, 1), "not all zero"),
        (lambda: st.tail_index_data(np.ones(3), 0.1, 1, sampling=sn.sampling.CyclicEpochs()), "WithReplacement.. or"),
        (lambda: st.tail_index_data(np.ones(3), 0.1, 4), "batch_size=4 but only n=3"),
        (lambda: st.tail_index_data(np.ones(100), 0.1, 10), "different batches of 10 from 100 samples"),
        (lambda: st.tail_index_matrix([1.0], [0.1, 0.2], 4), "one each; call again"),
        (lambda: st.tail_index_matrix([1.0], 0.1, 4, replicates=1), "at least 2 of each"),
        (lambda: st.tail_index_matrix([1.0], 0.001, 64, particles=10, steps=10), "the tail index is above 64"),
        (lambda: st.hill(np.ones((3, 100))), "ten runs at least"),
        (lambda: st.hill(np.ones(50)), "50 are too few"),
        (lambda: st.hill(np.ones(1000)), "such samples have no tail"),
        (lambda: st.hill(np.arange(1000.0), 5), "whole numbers from 10 to 999"),
        (lambda: st.hill(np.arange(1000.0), 100, level=1.0), "a level between 0 and 1"),
    ],
)
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()
