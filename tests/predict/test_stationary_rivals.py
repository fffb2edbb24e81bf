"""The four theories against the formulas of the table, and their errors as rates."""

import numpy as np
import pytest

import shotnoise as sn

st = sn.predict.stationary
A, B, U, RATE, S = np.diag([1.0, 0.4]), np.diag([0.2, 0.3]), np.array([1.0, -2.0]), 0.3, 5


def the_table(which):
    """Sigma and losses of Table 2 for diagonal matrices, by theory; gamma = 0.1."""
    one, G = np.eye(2), 0.1 * np.eye(2)
    uu, tr, inv = np.outer(U, U), np.trace, np.linalg.inv
    K = {"label": A, "input": A + B, "penalty": A + G}[which]
    start = {  # train and test loss at the minimum
        "label": (0.5 * 0.7, 0.0),
        "input": (0.5 * tr(A @ inv(K) @ B @ uu), 0.5 * tr(B @ inv(K) @ A @ inv(K) @ B @ uu)),
        "penalty": (0.5 * tr(A @ inv(K) @ G @ uu), 0.5 * tr(A @ inv(K) @ inv(K) @ G @ G @ uu)),
    }[which]
    continuous, discrete = RATE / (2 * S) * one, RATE / S * inv(2 * one - RATE * K)
    if which == "penalty":  # eq. 39, which needs u u^T to commute too: diagonal entries only
        own = tr(A @ inv(K) @ inv(K) @ G @ G @ uu)
        additive = RATE / S * own * A @ inv(K) @ inv(2 * one - RATE * K)
        additive = additive + RATE / S * A @ A @ inv(K @ K @ K) @ G @ G @ inv(2 * one - RATE * K) * uu
    else:
        additive = 2 * start[0] * discrete
    found = {"continuous-hessian": continuous, "discrete-hessian": discrete, "additive-discrete": additive}
    return {name: (Sigma, start[0] + tr(K @ Sigma) / 2, start[1] + tr(A @ Sigma) / 2) for name, Sigma in found.items()}


OPTIONS = {
    "label": {"label_variance": 0.7},
    "input": {"input_covariance": B, "target": U},
    "penalty": {"l2": 0.1, "target": U},
}


@pytest.mark.parametrize("which", OPTIONS)
def test_the_columns_of_the_table(which):
    r = st.rivals(A, RATE, S, **OPTIONS[which])
    exact = st.gaussian(A, RATE, S, **OPTIONS[which])
    for theory, (Sigma, train, test) in the_table(which).items():
        own = r.sel(theory=theory)
        np.testing.assert_allclose(np.diag(own["weight_covariance"]), np.diag(Sigma), rtol=1e-12)
        assert float(own["train_loss"]) == pytest.approx(train, rel=1e-12)
        assert float(own["test_loss"]) == pytest.approx(test, rel=1e-12)
        assert float(own["relative_error"].sel(quantity="train_loss")) == pytest.approx(
            train / float(exact["train_loss"]) - 1, rel=1e-9
        )
        distance = np.linalg.norm(own["weight_covariance"] - exact["weight_covariance"]) / np.linalg.norm(
            exact["weight_covariance"]
        )
        assert float(own["relative_error"].sel(quantity="weight_covariance")) == pytest.approx(distance, rel=1e-9)
    for name in ("weight_covariance", "train_loss", "test_loss"):
        np.testing.assert_array_equal(r[name].sel(theory="exact"), exact[name])
    assert (r["relative_error"].sel(theory="exact") == 0).all()


def test_errors_fall_with_rate_and_batch_as_they_should():
    """Additive noise errs as lambda / S; continuous time, with the right noise (label variance 1), as lambda."""
    rates = np.array([0.02, 0.01, 0.005])
    r = st.rivals(A, rates, [4, 4000], label_variance=1.0)["relative_error"].sel(quantity="weight_covariance")

    def slope(values):
        return np.polyfit(np.log(rates), np.log(values), 1)[0]

    for theory in ("additive-discrete", "discrete-hessian", "continuous-hessian"):
        assert slope(r.sel(theory=theory, batch_size=4)) == pytest.approx(1, abs=0.03)
    small = r.sel(theory="additive-discrete", learning_rate=0.01)
    assert float(small.sel(batch_size=4) / small.sel(batch_size=4000)) == pytest.approx(1000, rel=0.02)
    wrong = st.rivals(A, 0.001, 4000, label_variance=0.25)["relative_error"].sel(quantity="weight_covariance")
    assert float(wrong.sel(theory="discrete-hessian")) == pytest.approx(3, rel=0.01)  # sigma^2 is not in it


def test_momentum_and_no_commutation():
    full = np.array([[1.0, 0.4], [0.4, 0.5]])
    r = st.rivals(full, np.array([[0.2, 0.05], [0.05, 0.3]]), 8, label_variance=1.0, momentum=0.5)
    np.testing.assert_allclose(
        r["weight_covariance"].sel(theory="continuous-hessian"), np.array([[0.2, 0.05], [0.05, 0.3]]) / 8, rtol=1e-12
    )
    J, C = (
        np.array([[0.2, 0.05], [0.05, 0.3]]) @ full,
        np.array([[0.2, 0.05], [0.05, 0.3]]) @ full @ np.array([[0.2, 0.05], [0.05, 0.3]]) / 8,
    )
    P = r["weight_covariance"].sel(theory="discrete-hessian").values
    left = (
        0.5 * (J @ P + P @ J.T) - 1.25 / 0.75 * J @ P @ J.T + 0.5 / 0.75 * (J @ J @ P + P @ J.T @ J.T)
    )  # eq. 3 of the paper
    np.testing.assert_allclose(left, C, rtol=1e-11)
    np.testing.assert_allclose(P, r["weight_covariance"].sel(theory="additive-discrete"), rtol=1e-12)


def test_each_theory_has_its_own_limit():
    r = st.rivals([1.0, 0.5], [0.5, 1.9, 2.5], [2], label_variance=1.0)
    assert r["status"].values[:, 0].tolist() == ["stationary", "diverges", "diverges"]
    finite = np.isfinite(r["train_loss"].values[:, :, 0])
    assert finite.tolist() == [[True, True, True], [True, True, False], [True, True, False], [True, False, False]]
    assert np.isnan(r["relative_error"].sel(learning_rate=1.9)).all()
