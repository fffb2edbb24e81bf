"""The largest learning rate and the stationary covariance, against dense algebra, the recursion and known cases."""

import numpy as np
import pytest

import shotnoise as sn
from shotnoise.predict.regression.least_squares import least_squares
from shotnoise.predict.regression.stability import largest_learning_rate, stationary_covariance


def dense_operator(x, s, l2, rate, kappa):
    """T on vec P, (p^2, p^2), from the definition."""
    n, p = x.shape
    moment = (x * s[:, None]).T @ x / n
    hessian = moment + l2 * np.eye(p)
    jacobian = np.eye(p) - rate * hessian
    kicks = sum(w**2 * np.kron(np.outer(a, a), np.outer(a, a)) for a, w in zip(x, s, strict=True)) / n
    return np.kron(jacobian, jacobian) + rate**2 * kappa * (kicks - np.kron(moment, moment))


def radius(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max()


@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("kappa", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_the_spectral_radius_is_one_at_the_largest_rate(p, kappa, l2):
    rng = np.random.default_rng(p)
    x, s = rng.normal(size=(15, p)), rng.uniform(0.5, 2, size=15)
    problem = least_squares(x, rng.normal(size=15), intercept=False, weights=s, l2=l2)
    limit = largest_learning_rate(problem, kappa)
    assert radius(dense_operator(x, s, l2, limit, kappa)) == pytest.approx(1, abs=1e-9)
    assert (
        radius(dense_operator(x, s, l2, 0.98 * limit, kappa))
        < 1
        < radius(dense_operator(x, s, l2, 1.02 * limit, kappa))
    )
    if kappa == 0:
        assert limit == pytest.approx(2 / np.linalg.eigvalsh(problem.hessian)[-1], rel=1e-10)
        # The noise counts: twice the gradient-descent limit is not a bound that this test lets pass.
        assert limit != pytest.approx(1 / np.linalg.eigvalsh(problem.hessian)[-1], rel=1e-2)


def test_the_mixture_form_for_one_feature():
    """p = 1: E (1 - a (C + noise))^2 = 1, so a = 2 C / (C^2 + kappa (mean x^4 - C^2)) (Mulayoff and Michaeli)."""
    x = np.array([0.5, 1.0, 2.0, -3.0])
    c, fourth = np.mean(x**2), np.mean(x**4)
    problem = least_squares(x[:, None], np.zeros(4), intercept=False)
    for b in (1, 2, 3):
        kappa = sn.sampling.WithoutReplacement().variance_factor(b, 4)
        mixture = 2 * c / ((1 - kappa) * c**2 + kappa * fourth)
        assert largest_learning_rate(problem, kappa) == pytest.approx(mixture, rel=1e-10)


@pytest.mark.parametrize("rank", ["full", "deficient"])
def test_the_recursion_settles_where_the_equation_says(rank):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    if rank == "deficient":
        x[:, 2] = x[:, 0] - x[:, 1]
    problem = least_squares(x, y, intercept=False)
    kappa = 1 / 4
    rate = 0.4 * largest_learning_rate(problem, kappa)
    settled = stationary_covariance(problem, rate, kappa)
    result = sn.predict.regression(x, y, np.zeros((2, 3)), rate, [4], 1500, sampling=sn.sampling.WithReplacement())
    variance = float(result["weights_variance"].isel(step=-1, batch_size=0))
    assert variance == pytest.approx(float(np.trace(settled, axis1=1, axis2=2).sum()), rel=1e-9)
    assert abs(variance / float(result["weights_variance"].isel(step=3, batch_size=0)) - 1) > 0.01


def test_no_stationary_state_beyond_the_limit():
    problem = least_squares(np.array([[1.0], [2.0]]), np.ones(2), intercept=False)
    limit = largest_learning_rate(problem, 1.0)
    with pytest.raises(sn.InputError, match=f"second moments stay bounded only below {limit:.6g} for this batch size"):
        stationary_covariance(problem, 1.01 * limit, 1.0)
    with pytest.raises(sn.InputError, match="has the negative eigenvalue"):
        largest_learning_rate(least_squares(np.ones((2, 1)), np.ones(2), intercept=False, l2=-2.0), 0.5)
