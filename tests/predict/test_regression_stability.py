"""The largest learning rate and the stationary covariance, against dense algebra, the recursion and known cases."""

import numpy as np
import pytest

import shotnoise as sn

WITH = sn.sampling.WithReplacement()


def dense_operator(x, s, l2, rate, kappa, momentum=0.0):
    """What moves vec E z z^T, z = (w, m), from the definition: ((2p)^2, (2p)^2)."""
    n, p = x.shape
    moment, identity = (x * s[:, None]).T @ x / n, np.eye(p)
    hessian = moment + l2 * identity
    step = np.block([[identity - rate * hessian, -rate * momentum * identity], [hessian, momentum * identity]])
    kicks = 0
    for a, w in zip(x, s, strict=True):
        off = w * np.outer(a, a) - moment
        kick = np.block([[-rate * off, 0 * off], [off, 0 * off]])
        kicks = kicks + np.kron(kick, kick) / n
    return np.kron(step, step) + kappa * kicks


def radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("b", [1, 3, 20])
@pytest.mark.parametrize("p", [1, 3])
def test_the_spectral_radius_is_one_at_the_critical_rate(p, b, l2, momentum):
    rng = np.random.default_rng(p)
    x, s = rng.normal(size=(15, p)), rng.uniform(0.5, 2, size=15)
    result = sn.predict.regression_stability(x, [b], sampling=WITH, weights=s, l2=l2, momentum=momentum)
    limit = float(result["critical_learning_rate"].item())
    assert radius(dense_operator(x, s, l2, limit, 1 / b, momentum)) == pytest.approx(1, abs=1e-7)
    assert radius(dense_operator(x, s, l2, 0.98 * limit, 1 / b, momentum)) < 1 - 1e-4
    assert radius(dense_operator(x, s, l2, 1.02 * limit, 1 / b, momentum)) > 1 + 1e-4
    mean = float(result["mean_critical_learning_rate"])
    curvature = np.linalg.eigvalsh((x * s[:, None]).T @ x / 15 + l2 * np.eye(p))[-1]
    assert limit < mean == pytest.approx(2 * (1 + momentum) / curvature, rel=1e-10)


@pytest.mark.parametrize("b", [1, 2, 5, 9])
def test_the_mixture_form(b):
    """Mulayoff and Michaeli (2024): (1 - kappa) J (x) J + kappa mean_i J_i (x) J_i has radius one, without replacement."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3)) * [1.0, 2.0, 0.5]
    limit = float(sn.predict.regression_stability(x, [b])["critical_learning_rate"].item())
    kappa = (10 - b) / (b * 9)
    whole, single = np.eye(3) - limit * x.T @ x / 10, [np.eye(3) - limit * np.outer(a, a) for a in x]
    mixture = (1 - kappa) * np.kron(whole, whole) + kappa * np.mean([np.kron(j, j) for j in single], axis=0)
    assert radius(mixture) == pytest.approx(1, abs=1e-9)
    if b < 9:  # a twin with the other sampling's factor is told
        wrong = (1 - 1 / b) * np.kron(whole, whole) + np.mean([np.kron(j, j) for j in single], axis=0) / b
        assert abs(radius(wrong) - 1) > 1e-3 or b == 1


def test_the_printed_limit_for_one_feature():
    """p = 1: a = 2 C / (C^2 + kappa (mean x^4 - C^2))."""
    x = np.array([0.5, 1.0, 2.0, -3.0])
    c, fourth = np.mean(x**2), np.mean(x**4)
    found = sn.predict.regression_stability(x[:, None], [1, 2, 3, 4])["critical_learning_rate"]
    for b in (1, 2, 3, 4):
        kappa = sn.sampling.WithoutReplacement().variance_factor(b, 4)
        assert float(found.sel(batch_size=b)) == pytest.approx(2 * c / ((1 - kappa) * c**2 + kappa * fourth), rel=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("rank", ["full", "deficient"])
def test_the_recursion_settles_where_the_equation_says(rank, momentum):
    rng = np.random.default_rng(1)
    x, y, s = rng.normal(size=(20, 3)), rng.normal(size=(20, 2)), rng.uniform(0.5, 1.5, size=20)
    if rank == "deficient":
        x[:, 2] = x[:, 0] - x[:, 1]
    options = {"sampling": WITH, "momentum": momentum, "weights": s, "l2": 0.0 if rank == "deficient" else 0.1}
    critical = sn.predict.regression_stability(x, [4], **options)["critical_learning_rate"]
    rate = 0.4 * critical.item()
    settled = sn.predict.regression_stationary(x, y, rate, [4], **options).isel(batch_size=0)
    assert settled["status"] == "stationary"
    result = sn.predict.regression(x, y, np.zeros((2, 3)), rate, [4], 1500, **options).isel(batch_size=0)
    for name in ("gradient_variance", "full_gradient_variance", "loss", "gradient_norm_sq", "weights_variance"):
        assert float(result[name][-1]) == pytest.approx(float(settled[name]), rel=1e-8), name
        assert abs(float(result[name][3]) / float(settled[name]) - 1) > 1e-3
    np.testing.assert_allclose(result["mean_weights"][-1], settled["mean_weights"].values.ravel(), atol=1e-8)
    trace = np.trace(settled["weight_covariance"].values, axis1=1, axis2=2).sum()
    assert trace == pytest.approx(float(settled["weights_variance"]), rel=1e-12)


def test_small_rates_give_the_continuous_limit_at_first_order():
    """P / a -> the solution of H P + P H = kappa N (momentum: over 1 - mu); the error falls in proportion to the rate."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    errors = []
    for rate in (0.02, 0.01):
        settled = sn.predict.regression_stationary(x, y, rate, [3], sampling=WITH, momentum=0.5).isel(batch_size=0)
        h = x.T @ x / 30
        w = np.linalg.solve(h, x.T @ y / 30)
        noise = (x * ((x @ w - y) ** 2)[:, None]).T @ x / 30 / 3
        values, basis = np.linalg.eigh(h)
        limit = basis @ (basis.T @ noise @ basis / (values[:, None] + values)) @ basis.T / (1 - 0.5)
        errors.append(np.abs(settled["weight_covariance"].values[0] / rate - limit).max())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_no_stationary_state_beyond_the_limit():
    x = np.array([[1.0], [2.0]])
    limit = float(sn.predict.regression_stability(x, [1])["critical_learning_rate"].item())
    settled = sn.predict.regression_stationary(x, [1.0, 1.0], 1.01 * limit, [1, 2])
    assert settled["status"].values.tolist() == ["diverges", "stationary"]
    assert np.isnan(settled["weights_variance"][0]) and np.isfinite(settled["weights_variance"][1])
    with pytest.raises(sn.InputError, match="has the negative eigenvalue"):
        sn.predict.regression_stability(np.ones((2, 1)), [1], l2=-2.0)
    with pytest.raises(sn.InputError, match="X is zero and there is no penalty"):
        sn.predict.regression_stability(np.zeros((2, 1)), [1])
    with pytest.raises(sn.InputError, match="stability is known here for fresh batches"):
        sn.predict.regression_stability(x, [1], sampling=sn.sampling.ReshuffledEpochs())
    with pytest.raises(sn.InputError, match="one positive number; only a constant rate"):
        sn.predict.regression_stationary(x, [1.0, 1.0], lambda t: 0.1, [1])
