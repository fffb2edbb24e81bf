"""Where second moments stop to exist, the scaling rule, weight decay, second-order methods."""

import numpy as np
import pytest
from scipy.optimize import brentq

import shotnoise as sn
from affine_twin import Twin, observed

st = sn.predict.stationary
A = np.array([[1.0, 0.4], [0.4, 0.5]])
G = np.array([[0.1, -0.2], [-0.2, 0.1]])


def radius(rate, S, momentum=0.0, l2=0.0, cov=A):
    return Twin(*observed(cov, np.ones(len(cov))), rate, S, momentum, l2).radius()


@pytest.mark.parametrize("l2", [0.0, 0.3, G], ids=["none", "number", "matrix"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_critical_rate_and_batch_size(momentum, l2):
    limit = st.critical_learning_rate(A, [1, 4], momentum, l2=l2)
    for S in (1, 4):
        assert radius(float(limit["critical_learning_rate"].sel(batch_size=S)), S, momentum, l2) == pytest.approx(
            1, abs=1e-9
        )
    mean = float(limit["mean_critical_learning_rate"])
    assert mean == pytest.approx(
        2 * (1 + momentum) / np.linalg.eigvalsh(A + l2 * np.eye(2) if np.ndim(l2) == 0 else A + l2)[-1]
    )
    batch = float(st.critical_batch_size(A, 0.5, momentum, l2=l2)["critical_batch_size"])
    assert radius(0.5, batch, momentum, l2) == pytest.approx(1, abs=1e-9)
    assert np.isinf(st.critical_batch_size(A, mean, momentum, l2=l2)["critical_batch_size"])


def test_known_limits():
    """One dimension with momentum; isotropic; the pole of kappa."""
    for mu in (0.0, 0.5):
        found = st.critical_learning_rate([2.0], 3, mu)["critical_learning_rate"]
        assert float(found) == pytest.approx(2 * (1 - mu) / ((1 - mu) / (1 + mu) + 2 / 3) / 2, rel=1e-12)
    assert float(st.critical_learning_rate(np.eye(7), 5)["critical_learning_rate"]) == pytest.approx(10 / 13, rel=1e-12)
    values, S = np.array([1.0, 0.5, 0.1]), 6
    pole = brentq(lambda c: (c * values / (2 - (1 + 1 / S) * c * values)).sum() - S, 0.1, 1.71)
    assert float(st.critical_learning_rate(values, S)["critical_learning_rate"]) == pytest.approx(pole, rel=1e-11)
    rate = np.array([[0.2, 0.05], [0.05, 0.3]])
    multiple = float(st.critical_learning_rate(A, 4, 0.5, preconditioner=rate)["critical_learning_rate"])
    assert radius(multiple * rate, 4, 0.5) == pytest.approx(1, abs=1e-9)
    noisy = st.critical_learning_rate(A, 2, input_covariance=0.5 * np.eye(2))["critical_learning_rate"]
    assert radius(float(noisy), 2, cov=A + 0.5 * np.eye(2)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_critical_width(momentum):
    width = float(st.critical_width(0.3, 5, 0.8, momentum)["critical_width"])
    for p in (int(np.floor(width)), int(np.floor(width)) + 1):
        stable = st.label_noise(0.8 * np.eye(p), 1.0, 0.3, 5, momentum)["status"] == "stationary"
        assert stable == (p < width)
    falling = 1 / np.arange(1.0, 200.0) ** 0.5
    found = st.critical_width([0.5, 0.01], [4], falling, momentum)["critical_width"].values[:, 0]
    p = int(found[0])
    assert st.label_noise(falling[:p], 1.0, 0.5, 4, momentum)["status"] == "diverges"
    assert st.label_noise(falling[: p - 1], 1.0, 0.5, 4, momentum)["status"] == "stationary"
    assert np.isinf(found[1])
    assert st.critical_width(3.0, 4)["critical_width"] == 0


def test_the_critical_rate_of_wide_models():
    """Sec. 6.2: 2 S / (S + width + 1), so that a summand of tau has order S / width; printed is width / S."""
    for p in (40, 160):
        limit = float(st.critical_learning_rate(np.ones(p), 8)["critical_learning_rate"])
        assert limit == pytest.approx(16 / (9 + p), rel=1e-11)
        summand = limit / (2 - (1 + 1 / 8) * limit)
        assert summand == pytest.approx(8 / p, rel=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("keep", ["weights", "loss"])
def test_scaling_the_learning_rate_with_the_batch(keep, momentum):
    options = {"label_variance": 0.5, "l2": G, "target": [1.0, -1.0], "momentum": momentum}
    r = st.linear_scaling(A, 0.1, 8, [4, 32, 4000], keep=keep, **options)

    def fluctuation(rate, S):
        Sigma = st.gaussian(A, rate, S, **options)["weight_covariance"].values
        return np.trace(Sigma if keep == "weights" else (A + G) @ Sigma)

    before = fluctuation(0.1, 8)
    for S in (4, 32):
        here = r.sel(batch_size=S)
        assert float(here["scaled_learning_rate"]) == pytest.approx(0.1 * S / 8)
        assert float(here["fluctuation_ratio"]) == pytest.approx(fluctuation(0.1 * S / 8, S) / before, rel=1e-9)
        assert fluctuation(float(here["proposed_learning_rate"]), S) == pytest.approx(before, rel=1e-8)
    assert r["status"].values.tolist() == ["stationary", "stationary", "diverges"]
    assert np.isnan(r["fluctuation_ratio"].sel(batch_size=4000))
    assert fluctuation(float(r["proposed_learning_rate"].sel(batch_size=4000)), 4000) == pytest.approx(before, rel=1e-6)


def test_the_rule_fails_at_large_rates_not_at_small_batches():
    """In one dimension the ratio is (2 - lambda a - 2 rho a) / (2 - lambda' a - 2 rho a): S enters through lambda alone."""
    for S in (1, 100):
        rho = 0.1 / S
        r = st.linear_scaling([1.0], 0.1, S, 4 * S, label_variance=1.0)
        assert float(r["fluctuation_ratio"]) == pytest.approx((1.9 - 2 * rho) / (1.6 - 2 * rho), rel=1e-12)
    small = [
        float(st.linear_scaling([1.0], rate, 1, 2, label_variance=1.0)["fluctuation_ratio"]) - 1
        for rate in (0.02, 0.01)
    ]
    assert small[0] / small[1] == pytest.approx(2, rel=0.05)


def test_the_table_of_weight_decay():
    r = st.optimal_weight_decay([2.0], [1.0], 1.0, 16)
    expected = {
        "lowest_l2": -1.70710678119,
        "highest_l2": -0.292893218813,
        "optimal_l2": -0.406929669183,
        "test_loss": 0.285283667877,
    }
    for name, value in expected.items():
        assert float(r[name]) == pytest.approx(value, rel=1e-7 if name == "optimal_l2" else 1e-10), name
    assert np.isnan(r["test_loss_undecayed"])


@pytest.mark.parametrize(
    ("S", "strength"), [(1, 0.69), (2, 0.9), (3, 1.15), (3, 1.21), (8, 1.5), (8, 1.7), (64, 1.96), (64, 3.0)]
)
def test_the_sign_of_the_best_decay(S, strength):
    """Negative iff S > 2 and 2 S / (S + 2) < a lambda < sqrt(S / 2); positive for S = 1 beyond 2/3; 0 wherever 0 is stable."""
    a, rate = 2.0, strength / 2.0
    r = st.optimal_weight_decay([a], [1.5], rate, S)
    best = float(r["optimal_l2"])
    if strength < 2 * S / (S + 2):
        assert best == pytest.approx(0, abs=1e-7)
    elif strength < np.sqrt(S / 2):
        assert best < 0 if S > 2 else best > 0
    else:
        assert r["status"] == "diverges" and np.isnan(best)
    if np.isfinite(best):
        root = np.sqrt(1 - 2 / S * strength**2)
        assert float(r["lowest_l2"]) == pytest.approx((1 - strength - root) / rate, abs=1e-10)
        assert float(r["highest_l2"]) == pytest.approx((1 - strength + root) / rate, abs=1e-10)
        assert radius(rate, S, l2=float(r["highest_l2"]), cov=[[a]]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.4])
def test_with_label_noise_its_sign_is_that_of_one_minus_the_strength(strength):
    best = float(st.optimal_weight_decay([2.0], [1.0], strength / 2, 16, label_variance=0.5)["optimal_l2"])
    assert np.sign(np.round(best, 7)) == np.sign(1 - strength)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_several_dimensions_against_the_general_solver(momentum):
    u = np.array([1.0, -2.0])
    rate = 1.01 * float(st.critical_learning_rate(A, 20, momentum)["critical_learning_rate"])
    assert np.isnan(st.optimal_weight_decay(A, u, 3 * rate, 20, momentum=momentum)["optimal_l2"])
    r = st.optimal_weight_decay(A, u, rate, 20, label_variance=0.2, momentum=momentum)
    low, best, high = (float(r[name]) for name in ("lowest_l2", "optimal_l2", "highest_l2"))
    assert radius(rate, 20, momentum, low) == pytest.approx(1, abs=1e-9)
    assert radius(rate, 20, momentum, high) == pytest.approx(1, abs=1e-9)

    def loss(gamma):
        return float(st.regularised(A, u, gamma, rate, 20, momentum, 0.2)["test_loss"])

    assert loss(best) == pytest.approx(float(r["test_loss"]), rel=1e-9)
    assert all(loss(best) < loss(g) for g in np.linspace(low + 1e-3, high - 1e-3, 40))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_newton(momentum):
    S, sigma2 = 8, 0.5
    s = st.damped_newton(A, sigma2, [0.5, 5.0], S, momentum)
    g = 2 * (1 - momentum) - ((1 - momentum) / (1 + momentum) + 1 / S) * 0.5
    np.testing.assert_allclose(
        s["weight_covariance"][0], 0.5 * sigma2 / (g * S - 0.5 * 2) * np.linalg.inv(A), rtol=1e-10
    )
    exact = Twin(*observed(A, np.ones(2), sigma2), 0.5 * np.linalg.inv(A), S, momentum).stationary()
    np.testing.assert_allclose(s["weight_covariance"][0], exact["covariance"], rtol=1e-9)
    assert s["status"].values.tolist() == ["stationary", "diverges"]
    isotropic = st.critical_learning_rate(np.eye(2), S, momentum)["critical_learning_rate"]
    assert float(s["critical_learning_rate"]) == pytest.approx(float(isotropic), rel=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_natural_gradient_is_the_frozen_method(momentum):
    S = 8
    s = st.natural_gradient(A, 0.5, 0.2, S, momentum)
    frozen = 0.2 / S * np.linalg.inv(s["noise_covariance"].values)
    exact = Twin(*observed(A, np.ones(2), 0.5), frozen, S, momentum).stationary()
    np.testing.assert_allclose(s["weight_covariance"], exact["covariance"], rtol=1e-9)
    np.testing.assert_allclose(s["noise_covariance"], exact["noise"], rtol=1e-9)
    assert float(s["newton_learning_rate"]) * np.linalg.inv(A) == pytest.approx(frozen, rel=1e-10)
    nothing = st.natural_gradient(A, 0.0, 0.2, S, momentum)
    assert nothing["status"] == "diverges" and np.isnan(nothing["weight_covariance"]).all()


@pytest.mark.parametrize(("sigma2", "low", "high"), [(1.0, 0.02, 0.06), (0.1, 0.25, 0.45)])
def test_how_far_the_real_natural_gradient_is_from_it(sigma2, low, high):
    """lambda J(w)^-1 g with J(w) = 2 w^2 + sigma^2 in one dimension: the formula is low by as much as the docstring says."""
    rng, runs, S, rate = np.random.default_rng(0), 10000, 8, 0.2
    w, second = np.zeros(runs), []
    for t in range(300):
        x = rng.normal(size=(S, runs))
        g = (x * (x * w - np.sqrt(sigma2) * rng.normal(size=(S, runs)))).mean(0)
        w = w - rate / (2 * w**2 + sigma2) * g
        if t >= 100:
            second.append((w**2).mean())
    formula = float(st.natural_gradient([1.0], sigma2, rate, S)["weight_covariance"].item())
    assert low < 1 - formula / np.mean(second) < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.critical_learning_rate(A, 4, preconditioner=2.0), "preconditioner: a symmetric positive definite"),
        (lambda: st.critical_learning_rate(A, 4, 1.0), "momentum=1.0: at least 0 and below 1"),
        (
            lambda: st.critical_learning_rate(A, 4, input_covariance=A, fourth_moment=lambda S: S),
            "and no input_covariance",
        ),
        (lambda: st.critical_width(0.1, 4, [1.0, 0.0]), "feature_variance: a positive number"),
        (lambda: st.critical_width(np.eye(1), 4), "a matrix belongs to one width"),
        (lambda: st.linear_scaling(A, [0.1, 0.2], 8, 16, label_variance=1.0), "one number each, from which to scale"),
        (lambda: st.linear_scaling(A, 5.0, 8, 16, label_variance=1.0), "is not below the critical one"),
        (lambda: st.linear_scaling(A, 0.1, 8, 16), "there is no noise at the minimum"),
        (lambda: st.linear_scaling(A, 0.1, 8, 16, label_variance=1.0, keep="all"), "keep='all'"),
        (lambda: st.optimal_weight_decay(A, [1.0, 1.0], [0.1, 0.2], 8), "one number each; call again"),
        (lambda: st.optimal_weight_decay([1.0, 0.0], [1.0, 1.0], 0.1, 8), "feature_covariance is singular"),
        (lambda: st.damped_newton([1.0, 0.0], 1.0, 0.1, 8), "second-order methods divide by it"),
        (lambda: st.damped_newton(A, 1.0, np.eye(2), 8), "brings its own matrix"),
        (lambda: st.natural_gradient(A, 1.0, np.eye(2), 8), "brings its own matrix"),
    ],
)
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()
