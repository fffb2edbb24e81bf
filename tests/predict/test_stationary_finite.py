"""Finite data: the recursion over the samples, both sampling modes, matrix rates; the high-dimensional formula's range."""

import numpy as np
import pytest

import shotnoise as sn
from affine_twin import Twin

st = sn.predict.stationary
WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


def data(n, p, seed=0, label=0.5):
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(n, p)), rng.normal(size=p)
    return x, x @ u + label * rng.normal(size=n), u


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("sampling", [WITH, WITHOUT], ids=str)
def test_the_recursion_over_the_samples(sampling, momentum):
    x, y, u = data(12, 2)
    batch = 1 / sampling.variance_factor(3, 12)  # to second order a batch is known by its variance factor alone
    s = st.finite_data(x, y, 0.2, 3, momentum, 0.1, sampling=sampling, target=u, feature_covariance=[1.0, 1.0])
    exact = Twin(x, y, np.full(12, 1 / 12), 0.2, batch, momentum, 0.1).stationary()
    np.testing.assert_allclose(s["weight_covariance"], exact["covariance"], rtol=1e-9)
    np.testing.assert_allclose(s["noise_covariance"], exact["noise"], rtol=1e-9)
    assert float(s["train_loss"]) == pytest.approx(exact["loss"], rel=1e-9)
    off = exact["second"] - np.outer(exact["mean"], u) - np.outer(u, exact["mean"]) + np.outer(u, u)
    assert float(s["test_loss"]) == pytest.approx(np.trace(off) / 2, rel=1e-9)
    assert s["status"] == "stationary" and s.attrs["sampling"] == str(sampling)


def test_a_matrix_of_learning_rates():
    x, y, _ = data(12, 2)
    rate = np.array([[0.2, 0.1], [0.1, 0.3]])
    exact = Twin(x, y, np.full(12, 1 / 12), rate, 3, 0.3).stationary()
    s = st.finite_data(x, y, rate, 3, 0.3, sampling=WITH)
    np.testing.assert_allclose(s["weight_covariance"], exact["covariance"], rtol=1e-9)
    np.testing.assert_allclose(s["noise_covariance"], exact["noise"], rtol=1e-9)
    np.testing.assert_allclose(s["mean_weights"], exact["mean"], rtol=1e-9)
    limit = float(s["critical_learning_rate"])
    assert Twin(x, y, np.full(12, 1 / 12), limit * rate, 3, 0.3).radius() == pytest.approx(1, abs=1e-8)


def test_data_by_its_fourth_moments_is_the_same_thing():
    """The general solver and the one for regressions, two programs, on the same problem with replacement."""
    x, y, _ = data(40, 3)
    A, w = x.T @ x / 40, np.linalg.lstsq(x, y, rcond=None)[0]
    x, y = np.concatenate([x, x]), np.concatenate([2 * (x @ w) - y, y])  # residuals of both signs: of mean zero given x
    r2 = ((x @ w - y) ** 2).mean()
    y = x @ w + np.sqrt(r2) * np.sign(y - x @ w)
    tensor = np.einsum("ni,nj,nk,nl->ijkl", x, x, x, x) / len(x)
    general = st.label_noise(A, r2, 0.1, [2, 5], 0.4, target=w, fourth_moment=tensor)
    s = st.finite_data(x, y, 0.1, [2, 5], 0.4, sampling=WITH)
    for name in ("weight_covariance", "noise_covariance", "train_loss", "critical_learning_rate"):
        np.testing.assert_allclose(general[name], s[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_grids_and_too_few_samples():
    x, y, _ = data(5, 8)
    s = st.finite_data(x, y, [0.01, 50.0], [1, 2])
    assert s["weight_covariance"].dims == ("learning_rate", "batch_size", "parameter", "parameter_")
    assert np.abs(s["weight_covariance"].sel(learning_rate=0.01)).max() < 1e-20
    assert (s["status"].sel(learning_rate=50.0) == "diverges").all()
    assert np.isnan(s["weight_covariance"].sel(learning_rate=50.0)).all()


def test_the_high_dimensional_formula_and_its_printed_twin():
    """The error falls with alpha as the docstring says; with the printed 1 - 1/S it is larger."""
    for alpha, expected in ((2, 0.065), (20, 0.015)):
        errors = [
            float(st.high_dimensional(*data(alpha * 40, 40, seed)[:2], 0.16, 16)["relative_error"])
            for seed in range(12)
        ]
        assert expected / 2 < np.sqrt(np.mean(np.square(errors))) < expected * 2
    x, y, _ = data(2000, 100)
    r = st.high_dimensional(x, y, 0.3, 32)
    A = x.T @ x / 2000
    t = ((x @ np.linalg.lstsq(x, y, rcond=None)[0] - y) ** 2).mean()
    tau = 0.3 * np.trace(A @ np.linalg.inv(2 * np.eye(100) - 0.3 * (1 - 1 / 32) * A))
    printed = t / 32 * tau / (1 - tau / 32)
    assert abs(float(r["relative_error"])) < 0.006 < abs(printed / float(r["feature_fluctuation_exact"]) - 1)
    assert np.isnan(st.high_dimensional(*data(20, 40)[:2], 0.01, 4)["relative_error"])
    small = st.high_dimensional(*data(6, 3, seed=2)[:2], 0.2, 4)
    assert abs(float(small["relative_error"])) > 0.05  # no formula for three features


def test_the_limit_over_many_data_sets():
    values = []
    for seed in range(30):
        x, y, _ = data(120, 40, seed, label=1.0)
        values.append(float(st.high_dimensional(x, y, 0.05, 8)["feature_fluctuation_exact"]))
    values = np.array(values)
    limit = float(st.high_dimensional_limit(120, 40, 1.0, 0.05, 8)["feature_fluctuation"])
    assert values.mean() == pytest.approx(limit, abs=5 * values.std(ddof=1) / np.sqrt(30) + 0.02 * limit)
    assert float(st.high_dimensional_limit(40, 80, 1.0, 0.01, 8)["feature_fluctuation"]) == 0
    far = st.high_dimensional_limit(120, 40, 1.0, [0.05, 1.9], 8)
    assert far["status"].values.tolist() == ["stationary", "diverges"] and np.isnan(far["feature_fluctuation"][1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: st.finite_data(x[0], y, 0.1, 1), "a matrix .samples, features. is needed"),
        (lambda x, y: st.finite_data(x, x, 0.1, 1), "one target per sample is needed"),
        (lambda x, y: st.finite_data(x, y, 0.1 * np.eye(2), 1, l2=0.1), "l2 with a matrix of learning rates"),
        (lambda x, y: st.finite_data(x, y, 0.1, 1, target=[1.0, 1.0]), "the test loss needs both"),
        (lambda x, y: st.finite_data(x, y, 0.1, 13), "batch_size=13 but only n=12"),
        (
            lambda x, y: st.finite_data(x, y, 0.1, 1, sampling=sn.sampling.ReshuffledEpochs()),
            "known here for fresh batches",
        ),
        (lambda x, y: st.high_dimensional(x, y, np.eye(2), 1), "knows numbers, not matrices"),
        (lambda x, y: st.high_dimensional_limit(10, 5, 1.0, np.eye(5), 1), "knows numbers, not matrices"),
    ],
)
def test_messages(call, message):
    x, y, _ = data(12, 2)
    with pytest.raises(sn.InputError, match=message):
        call(x, y)
