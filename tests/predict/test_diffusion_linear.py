"""The Ornstein-Uhlenbeck answers and their rotation, against dense solves, brute recursion, rates and printed digits."""

import numpy as np
import pytest
from scipy.linalg import expm, solve_continuous_lyapunov, solve_discrete_lyapunov

import shotnoise as sn
from shotnoise.predict.diffusion import linear
from shotnoise.predict.diffusion.settings import Setting

df = sn.predict.diffusion
H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
ETAS = np.array([0.2, 0.1, 0.05, 0.025])


def random_pair(d, seed=0, rank=None):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(d, d)), rng.normal(size=(d, rank or d))
    return a @ a.T / d + 0.2 * np.eye(d), b @ b.T / d


def test_the_worked_example_without_momentum():
    s = df.ornstein_uhlenbeck(H, C, 0.1, 4)
    X = [[0.00761904761905, -0.00547619047619], [-0.00547619047619, 0.0102380952381]]
    discrete = [[0.00826840359309, -0.00562444915689], [-0.00562444915689, 0.0106677443848]]
    np.testing.assert_allclose(s["weight_covariance"].sel(theory="first order"), X, rtol=1e-11)
    np.testing.assert_allclose(s["weight_covariance"].sel(theory="discrete"), discrete, rtol=1e-11)
    errors = dict(zip(s["theory"].values, s["relative_error"].values, strict=True))
    assert [round(100 * -errors[name], 2) for name in list(errors)[:3]] == [5.15, 9.91, 0.74]
    r = df.rotation(H, C, 0.1, 4)
    assert float(r["rotation"][0, 1]) == pytest.approx(-0.00208333333333, rel=1e-11)
    assert float(r["entropy_production"]) == pytest.approx(0.16339869281, rel=1e-10)
    assert float(r["velocity_curl"]) == pytest.approx(-0.77479338843, rel=1e-10)
    steps = [float(df.rotation(H, C, eta, 4)["entropy_per_step"]) / eta for eta in (0.2, 0.1, 0.05)]
    assert np.round(steps, 4).tolist() == [0.1850, 0.1735, 0.1683]


def test_the_worked_example_with_momentum():
    s = df.ornstein_uhlenbeck(H, C, 0.1, 4, 0.9)
    under = [[0.0601648351648, -0.0387362637363], [-0.0387362637363, 0.118406593407]]
    discrete = [[0.0630072733156, -0.0391101454763], [-0.0391101454763, 0.121036278402]]
    momenta = [[0.100961538462, -0.0134615384615], [-0.0134615384615, 0.0990384615385]]
    np.testing.assert_allclose(s["weight_covariance"].sel(theory="underdamped"), under, rtol=1e-11)
    np.testing.assert_allclose(s["weight_covariance"].sel(theory="discrete"), discrete, rtol=1e-11)
    np.testing.assert_allclose(s["momentum_covariance"], momenta, rtol=1e-11)
    assert float(s["position_momentum_covariance"][0, 1]) == pytest.approx(-0.0152032579816, rel=1e-11)
    assert float(s["position_momentum_covariance"][1, 0]) == pytest.approx(0.0152032579816, rel=1e-11)


@pytest.mark.parametrize(
    ("eta", "mu", "over", "under"),
    [(0.1, 0.9, 21.6, 2.7), (0.01, 0.9, 6.8, 0.42), (0.1, 0.5, 3.5, 3.8), (0.1, 1e-9, 5.1, 5.5)],
)
def test_errors_of_both_limits_of_momentum(eta, mu, over, under):
    errors = np.abs(df.ornstein_uhlenbeck(H, C, eta, 4, mu)["relative_error"].values) * 100
    assert errors[0] == pytest.approx(over, abs=0.06) and errors[1] == pytest.approx(under, abs=0.05)


@pytest.mark.parametrize("d", [1, 3, 6])
@pytest.mark.parametrize("mu", [0.0, 0.6])
def test_every_model_solves_its_lyapunov_equation(d, mu):
    h, c = random_pair(d, d)
    s = df.ornstein_uhlenbeck(h, c, 0.05, 3, mu)
    for theory in s["theory"].values:
        minimum = linear.Minimum(h, c, Setting.of(0.05, 3, mu, None, None))
        system = minimum.system(theory)
        solve = (
            solve_discrete_lyapunov(system.matrix, system.noise)
            if system.time is None
            else solve_continuous_lyapunov(system.matrix, system.noise)
        )
        np.testing.assert_allclose(s["weight_covariance"].sel(theory=theory), solve[:d, :d], rtol=1e-8, atol=1e-14)
        if theory == "underdamped":
            np.testing.assert_allclose(s["position_momentum_covariance"], solve[:d, d:], atol=1e-10)
            np.testing.assert_allclose(s["momentum_covariance"], solve[d:, d:], rtol=1e-8, atol=1e-12)


def test_the_discrete_chain_is_pytorch_momentum():
    """Written out: m <- mu m + g, w <- w - eta m, as a chain of (w, m)."""
    h, c, eta, mu, B = *random_pair(3, 5), 0.1, 0.7, 2
    one = np.eye(3)
    F = np.block([[one - eta * h, -eta * mu * one], [h, mu * one]])
    P = np.concatenate([-eta * one, one])
    X = solve_discrete_lyapunov(F, P @ (c / B) @ P.T)[:3, :3]
    s = df.ornstein_uhlenbeck(h, c, eta, B, mu)
    np.testing.assert_allclose(s["weight_covariance"].sel(theory="discrete"), X, rtol=1e-9)
    twin = solve_discrete_lyapunov(F, P @ (c / B) @ P.T * 1.02)[:3, :3]
    assert np.abs(twin / X - 1).max() > 1e-3


def test_sampling_without_replacement_scales_the_noise():
    less = df.ornstein_uhlenbeck(H, C, 0.1, 4, sampling=sn.sampling.WithoutReplacement(), n=10)
    full = df.ornstein_uhlenbeck(H, C, 0.1, 4)
    np.testing.assert_allclose(less["weight_covariance"], full["weight_covariance"] * (10 - 4) / (10 - 1))


def slope(errors):
    return np.polyfit(np.log(ETAS), np.log(np.abs(errors)), 1)[0]


def test_rates_of_the_stationary_errors():
    """Relative to X: first and second order are both O(eta), the second worse; with the noise corrected O(eta^2)."""
    errors = np.array([df.ornstein_uhlenbeck(H, C, eta, 4)["relative_error"].values for eta in ETAS])
    assert slope(errors[:, 0]) == pytest.approx(1, abs=0.05)
    assert slope(errors[:, 1]) == pytest.approx(1, abs=0.07)
    assert slope(errors[:, 2]) == pytest.approx(2, abs=0.05)
    assert (np.abs(errors[:, 1]) > 1.7 * np.abs(errors[:, 0])).all()


def test_transient_weak_orders_are_one_and_two():
    """At the fixed time 1: moments of the weights err by O(eta) under the first order, O(eta^2) under the second."""
    first, second = [], []
    for eta in ETAS / 4:
        t = df.transient(H, C, eta, 4, [round(1 / eta)], [1.0, -0.5], initial_covariance=0.1 * np.eye(2))
        raw = t["weight_covariance"] + t["mean_weights"] * t["mean_weights"].rename(parameter="parameter_")
        off = raw - raw.sel(theory="discrete")
        first.append(float(np.abs(off.sel(theory="first order")).max()))
        second.append(float(np.abs(off.sel(theory="second order")).max()))
    assert slope(first) == pytest.approx(1, abs=0.1)
    assert slope(second) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("mu", [0.0, 0.8])
def test_transients_against_slow_recursion_and_quadrature(mu):
    h, c, eta, B = *random_pair(2, 7, rank=1), 0.1, 2
    X0, m0 = np.array([[0.3, 0.1], [0.1, 0.2]]), np.array([1.0, 2.0])
    t = df.transient(h, c, eta, B, [0, 1, 7], m0, X0, mu)
    minimum = linear.Minimum(h, c, Setting.of(eta, B, mu, None, None))
    w, v, wX = m0.copy(), np.zeros(2), None
    z = np.zeros((4, 4))
    z[:2, :2] = X0
    one = np.eye(2)
    F = np.block([[one - eta * h, mu * one], [-eta * h, mu * one]])  # (w, v), v <- mu v - eta g, w <- w + v
    P = np.concatenate([one, one]) * eta
    for _ in range(7):
        v = mu * v - eta * h @ w
        w = w + v
        z = F @ z @ F.T + P @ (c / B) @ P.T
    wX = z[:2, :2]
    np.testing.assert_allclose(t["mean_weights"].sel(theory="discrete", step=7), w, rtol=1e-10)
    np.testing.assert_allclose(t["weight_covariance"].sel(theory="discrete", step=7), wX, rtol=1e-10)
    for theory in t["theory"].values[:-1]:
        system = minimum.system(theory)
        q = len(system.matrix)
        s, weight = np.polynomial.legendre.leggauss(40)
        T = 7 * system.time
        nodes = [expm(-system.matrix * T * (x + 1) / 2) for x in s]
        integral = sum(T / 2 * g * E @ system.noise @ E.T for g, E in zip(weight, nodes, strict=True))
        start = np.zeros((q, q))
        start[:2, :2] = X0
        E = expm(-system.matrix * T)
        np.testing.assert_allclose(
            t["weight_covariance"].sel(theory=theory, step=7), (E @ start @ E.T + integral)[:2, :2], rtol=1e-9
        )
        np.testing.assert_allclose(t["mean_weights"].sel(theory=theory, step=7), E[:2, :2] @ m0, rtol=1e-9)
    np.testing.assert_allclose(t["weight_covariance"].sel(step=0), np.broadcast_to(X0, (t.sizes["theory"], 2, 2)))


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_autocorrelation_against_the_whole_chain(mu):
    h, c = random_pair(2, 3)
    a = df.autocorrelation(h, c, 0.1, 2, [0, 1, 5], mu)
    minimum = linear.Minimum(h, c, Setting.of(0.1, 2, mu, None, None))
    for theory in a["theory"].values:
        system = minimum.system(theory)
        if system.time is None:
            whole, E = solve_discrete_lyapunov(system.matrix, system.noise), np.linalg.matrix_power(system.matrix, 5)
        else:
            whole = solve_continuous_lyapunov(system.matrix, system.noise)
            E = expm(-system.matrix * 5 * system.time)
        np.testing.assert_allclose(a["weight_autocovariance"].sel(theory=theory, lag=5), (E @ whole)[:2, :2], rtol=1e-8)
        np.testing.assert_allclose(a["weight_autocovariance"].sel(theory=theory, lag=0), whole[:2, :2], rtol=1e-8)


def test_rotation_shows_in_the_lagged_covariance():
    """The antisymmetric part of E theta_{k+1} theta_k^T is -eta Q to leading order, and exactly -(eta/2) [H, X]."""
    lagged = df.autocorrelation(H, C, 0.1, 4, [1])["weight_autocovariance"].sel(theory="discrete", lag=1).values
    X = df.ornstein_uhlenbeck(H, C, 0.1, 4)["weight_covariance"].sel(theory="discrete").values
    np.testing.assert_allclose((lagged - lagged.T) / 2, -0.05 * (H @ X - X @ H), atol=1e-16)


def test_the_exact_embedding_has_the_moments_of_the_chain():
    h, c = random_pair(3, 11)
    eta = 0.4 / np.linalg.eigvalsh(h)[-1]
    e = df.exact_embedding(h, c, eta, 2)
    A, D = e["drift_matrix"].values, e["diffusion_matrix"].values
    np.testing.assert_allclose(expm(-A * eta), np.eye(3) - eta * h, atol=1e-12)
    E, N = linear.System(A, D, eta).propagated(1)
    np.testing.assert_allclose(N, eta**2 * c / 2, rtol=1e-8)
    np.testing.assert_allclose(E, np.eye(3) - eta * h, atol=1e-12)
    with pytest.raises(sn.InputError, match="needs less than 1, for beyond it SGD jumps"):
        df.exact_embedding([2.0], [1.0], 0.6, 1)


def test_singular_noise_spreads_to_the_smallest_invariant_subspace():
    s = df.ornstein_uhlenbeck([1.0, 3.0], np.ones((2, 2)), 0.01, 1)
    X = s["weight_covariance"].sel(theory="first order").values
    np.testing.assert_allclose(X, 0.01 * np.array([[1 / 2, 1 / 4], [1 / 4, 1 / 6]]), rtol=1e-12)
    assert np.linalg.matrix_rank(X) == 2
    isotropic = df.ornstein_uhlenbeck([1.0, 1.0], np.ones((2, 2)), 0.01, 1)["weight_covariance"]
    assert np.linalg.matrix_rank(isotropic.sel(theory="first order").values) == 1
    assert float(df.rotation([1.0, 3.0], np.ones((2, 2)), 0.01, 1)["entropy_production"]) == np.inf
    assert float(df.rotation([1.0, 1.0], np.ones((2, 2)), 0.01, 1)["entropy_production"]) == 0


def test_flat_directions_are_frozen_or_spread():
    frozen = df.ornstein_uhlenbeck([1.0, 0.0], [1.0, 0.0], 0.1, 2)
    assert (frozen["status"] == "stationary").all()
    assert (frozen["weight_covariance"].sel(parameter=1) == 0).all()
    noise = np.array([[1.0, 0.4], [0.4, 0.5]])
    spreads = df.ornstein_uhlenbeck([2.0, 0.0], noise, 0.1, 2, 0.5)
    assert (spreads["status"] == "spreads").all() and np.isnan(spreads["weight_covariance"]).all()
    eps = 0.1 / 2
    over = spreads["settled_covariance"].sel(theory="overdamped").values
    assert over[0, 1] == pytest.approx(eps * 0.4 / 2 / 0.5)  # eps C_0j / h_j over 1 - mu
    late = df.transient([2.0, 0.0], noise, 0.1, 2, [4000, 4001], [0.0, 0.0], momentum=0.5)["weight_covariance"]
    gained = (late.sel(step=4001) - late.sel(step=4000)).sel(parameter=1, parameter_=1)
    np.testing.assert_allclose(gained, float(spreads["covariance_growth"][1, 1]), rtol=1e-9)
    np.testing.assert_allclose(late.sel(step=4000, theory="overdamped")[0, 1], over[0, 1], rtol=1e-6)
    with pytest.raises(sn.InputError, match="1 flat directions of the Hessian are noisy"):
        df.rotation([2.0, 0.0], noise, 0.1, 2)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_rotation_in_any_dimension(d):
    h, c = random_pair(d, d + 20)
    r = df.rotation(h, c, 0.05, 3)
    X, Q, eps = r["weight_covariance"].values, r["rotation"].values, 0.05 / 3
    D = eps / 2 * c
    np.testing.assert_allclose(Q, -Q.T, atol=1e-17)
    np.testing.assert_allclose((D + Q) @ np.linalg.inv(X), h, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(h @ X + X @ h, 2 * D, rtol=1e-9, atol=1e-12)
    values, V = np.linalg.eigh(h)
    entries = eps / 2 * (values[:, None] - values) / (values[:, None] + values) * (V.T @ c @ V)
    np.testing.assert_allclose(V.T @ Q @ V, entries, atol=1e-12)
    production = np.trace(h @ np.linalg.inv(D) @ h @ X) - np.trace(h)
    assert float(r["entropy_production"]) == pytest.approx(production, rel=1e-8)
    assert float(df.rotation(h, c, 0.5, 1)["entropy_production"]) == pytest.approx(production, rel=1e-8)  # any eps
    U, T = r["modified_hessian"].values, float(r["temperature"])
    np.testing.assert_allclose(T * np.linalg.inv(U), X, rtol=1e-8)
    own = np.sort(np.linalg.eigvals(r["circulation"].values).imag)[::-1][: d // 2]
    np.testing.assert_allclose(r["rotation_rates"], own)
    commuting = df.rotation(h, h @ h, 0.05, 3)
    assert np.abs(commuting["rotation"]).max() < 1e-15 and float(commuting["commutator"]) < 1e-14
    assert float(commuting["entropy_production"]) < 1e-20
    np.testing.assert_allclose(df.rotation(h, 2 * np.eye(d), 0.05, 3)["modified_hessian"], h, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: df.ornstein_uhlenbeck(H, -C, 0.1, 4), "negative eigenvalue"),
        (lambda: df.ornstein_uhlenbeck(H, C, -0.1, 4), "learning_rate=-0.1: one positive number"),
        (lambda: df.ornstein_uhlenbeck([[1, 2], [0, 1]], C, 0.1, 4), "hessian is not symmetric"),
        (lambda: df.ornstein_uhlenbeck(H, C, 0.1, 4, 1.0), "momentum=1.0"),
        (
            lambda: df.ornstein_uhlenbeck(H, C, 0.1, 4, sampling=sn.sampling.ReshuffledEpochs(), n=8),
            "correlated in time",
        ),
        (lambda: df.ornstein_uhlenbeck(H, C, 0.1, 9, sampling=sn.sampling.WithoutReplacement(), n=8), "only n=8"),
        (lambda: df.transient(H, C, 0.1, 4, [-1], [0, 0]), "whole numbers"),
        (lambda: df.autocorrelation(-H, C, 0.1, 4, [1]), "no stationary state"),
        (lambda: df.autocorrelation(H, C, 5.0, 4, [1]), "curvatures run from"),
    ],
)
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()


def test_unstable_settings_are_told():
    assert df.ornstein_uhlenbeck(H, C, 1.5, 4)["status"].values.tolist() == ["stationary"] * 3 + ["diverges"]
