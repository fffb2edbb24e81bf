"""`measure.curvature`: against matrices from the definitions, closed forms, and what a log-likelihood must obey."""

import curvature_twins as twins
import numpy as np
import pytest
import torch
from curvature_twins import MODELS, problem_of
from torch import nn

import shotnoise as sn
from shotnoise.errors import InputError
from shotnoise.measure.curvature import GaussNewton, Hessian, Residual, SecondMoment
from shotnoise.measure.spectra import subspaces

RELU, TANH, NORMED = MODELS[1], MODELS[3], MODELS[-1]
BY_MODEL = pytest.mark.parametrize("model", [RELU, TANH, NORMED], ids=lambda m: m.name)


def matrices(problem):
    H, g = twins.hessian(problem), twins.gradients(problem)
    return H, g.T @ g / problem.n, g.mean(0)


def descending(A):
    values, vectors = np.linalg.eigh(A)
    return values[::-1], vectors[:, ::-1]


@BY_MODEL
@pytest.mark.parametrize("dense", [True, False])
def test_everything_it_says_is_so(model, dense):
    problem, k = problem_of(model, n=30, l2=0.05), 6
    H, M, g = matrices(problem)
    c = sn.measure.curvature(problem, top=k, dense=dense, layers=True, diagonal=True, vectors=True, tolerance=1e-10)
    (h, U), (m, V), (r, _) = descending(H), descending(M), descending(M - H)
    f = descending(twins.gauss_newton(problem))[0]
    close = {"rtol": 1e-6, "atol": 1e-9}
    for name, values in (
        ("hessian", h), ("second_moment", m), ("residual", r), ("gauss_newton", f),
    ):  # fmt: skip
        np.testing.assert_allclose(c[f"{name}_eigenvalues"], values[:k], **close)
    np.testing.assert_allclose(c["hessian_lowest_eigenvalues"], h[::-1][:k], **close)
    np.testing.assert_allclose(c["residual_lowest_eigenvalues"], r[::-1][:k], **close)
    assert c["eigenpair_converged"].all() and set(c["spectrum"].values) >= {
        "hessian_eigenvalues",
        "gauss_newton_eigenvalues",
    }
    angles = subspaces.principal_angles(U[:, :k], V[:, :k])
    np.testing.assert_allclose(c["principal_angle_cosines"], angles.cosines, atol=1e-6)
    np.testing.assert_allclose(c["principal_angle_sines"], angles.sines, atol=1e-6)
    for d in range(1, k + 1):
        here = subspaces.principal_angles(U[:, :d], V[:, :d])
        assert float(c["subspace_overlap"][d - 1]) == pytest.approx(here.overlap, abs=1e-6)
        assert float(c["subspace_distance"][d - 1]) == pytest.approx(here.distance, abs=1e-6)
        assert float(c["gradient_share"][d - 1]) == pytest.approx(((U[:, :d].T @ g) ** 2).sum() / (g @ g), abs=1e-6)
        assert float(c["hessian_gap_ratio"][d - 1]) == pytest.approx(h[d - 1] / h[d], rel=1e-5)
        assert float(c["subspace_overlap_chance"][d - 1]) == d / len(H)
    delta = M - H
    gaps = np.array([np.abs(np.delete(m, s) - h[s]).min() for s in range(k)])
    np.testing.assert_allclose(c["davis_kahan_bound"], np.linalg.norm(delta @ U[:, :k], axis=0) / gaps, rtol=1e-4)
    norm = np.linalg.norm(delta, 2)
    if dense:
        root = np.sqrt(np.arange(1, k + 1))
        expected = 2 * np.minimum(root * norm, np.linalg.norm(delta)) / (h[:k] - h[1 : k + 1])
        np.testing.assert_allclose(c["yu_wang_samworth_bound"], expected, rtol=1e-8)
        assert float(c["second_moment_ratio"]) == pytest.approx(np.linalg.norm(H + (M - H)) / np.linalg.norm(H))
        np.testing.assert_allclose(c["residual_spectrum"], r, **close)
    assert float(c["residual_norm"]) == pytest.approx(norm, rel=1e-6)
    for name, truth in (
        ("hessian_trace", np.trace(H)), ("hessian_frobenius_norm", np.linalg.norm(H)),
        ("second_moment_trace", np.trace(M)), ("second_moment_frobenius_norm", np.linalg.norm(M)),
        ("residual_frobenius_norm", np.linalg.norm(delta)), ("gauss_newton_trace", f.sum()), ("gradient_norm_sq", g @ g),
    ):  # fmt: skip
        stderr = float(c.get(f"{name}_stderr", 0.0))
        assert abs(float(c[name]) - truth) < 5 * stderr + 1e-8 * abs(truth), name
    np.testing.assert_allclose(c["second_moment_top_share"], np.cumsum(m[:k]) / m.sum(), rtol=1e-6)
    np.testing.assert_allclose(c["hessian_diagonal"], np.diag(H), **close)
    np.testing.assert_allclose(np.abs((c["hessian_vectors"].values * U[:, :k]).sum(0)), 1, atol=1e-5)
    sizes = [sum(problem.parameters[name].numel() for name in names) for names in problem.layers.values()]
    place = np.concatenate([[0], np.cumsum(sizes)])
    for i in range(len(sizes)):
        block, rest = slice(place[i], place[i + 1]), slice(place[i], None)
        some = min(k, sizes[i])
        here = c["layer_hessian_eigenvalues"].values[i]
        np.testing.assert_allclose(here[:some], descending(H[block, block])[0][:some], **close)
        assert np.isnan(here[some:]).all()
        np.testing.assert_allclose(c["subnetwork_hessian_eigenvalues"][i], descending(H[rest, rest])[0][:k], **close)
        loading = (U[block, :k] ** 2).sum(0) / sizes[i] * len(H)
        np.testing.assert_allclose(c["layer_loading"][i], loading, atol=1e-5)
    for name, said in (("davis_kahan", "eigenvector_sines"), ("yu_wang_samworth", "subspace_distance"),
                       ("scaled", "subspace_distance"), ("residual", "subspace_distance")):  # fmt: skip
        bound = np.nan_to_num(c[f"{name}_bound"].values, nan=np.inf)
        assert (c[said].values <= bound * (1 + 1e-6) + 1e-6).all(), f"{name} is violated"


def test_interlacing_and_positive_blocks_of_relu_networks():
    for seed in range(4):
        c = sn.measure.curvature(problem_of(RELU, n=20, seed=seed), top=1, layers=True)
        block, rest = c["layer_hessian_eigenvalues"].values[:, 0], c["subnetwork_hessian_eigenvalues"].values[:, 0]
        assert (block <= rest + 1e-14).all() and (np.diff(rest) <= 1e-14).all()
        problem = problem_of(RELU, n=20, seed=seed)
        for layer in problem.layers:
            block = sn.measure.curvature.layer_block(problem, Hessian(problem), layer).to_dense()
            assert np.linalg.eigvalsh(block)[0] >= -1e-12 * np.abs(block).max()
        assert np.linalg.eigvalsh(twins.hessian(problem))[0] < -1e-3, "while the whole Hessian is indefinite"


@BY_MODEL
def test_proposition_one_with_its_sign(model):
    """H = M - H_p, H_p = (1/n) sum_i (grad^2 p_i) / p_i for log-likelihood losses; (16) prints a plus."""
    problem = problem_of(model)

    def ratio(flat):
        p = torch.softmax(twins.outputs(problem, flat), 1).gather(1, twins.data(problem)[1][:, None])[:, 0]
        return (p / p.detach()).mean()

    H_p = torch.autograd.functional.hessian(ratio, twins.start(problem)).numpy()
    np.testing.assert_allclose(Residual(problem).to_dense(), H_p, atol=1e-12)
    plus = SecondMoment(problem).to_dense() + H_p
    assert not np.allclose(plus, Hessian(problem).to_dense(), rtol=1e-3)


@BY_MODEL
def test_labels_of_the_model_make_the_residual_vanish_at_every_weight(model):
    """sum_y pi_y grad^2 pi_y / pi_y = 0: H_p averages to zero over the model's labels, and M to the Fisher matrix."""
    problem = problem_of(model)
    x, _ = twins.data(problem)
    pi = twins.probabilities(problem)
    residual, moment = 0.0, 0.0
    for i in range(problem.n):
        for label in range(3):
            one = sn.Problem(problem.model, "cross_entropy", x[i : i + 1], torch.tensor([label]))
            residual = residual + pi[i, label] / problem.n * Residual(one).to_dense()
            moment = moment + pi[i, label] / problem.n * SecondMoment(one).to_dense()
    assert np.abs(residual).max() < 1e-14
    np.testing.assert_allclose(GaussNewton(problem).to_dense(), moment, atol=1e-14)
    assert np.abs(Residual(problem).to_dense()).max() > 1e-2, "the observed labels leave it"


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_least_squares_in_closed_form(sigma):
    rng = np.random.default_rng(0)
    X, y, theta = rng.normal(size=(12, 5)), rng.normal(size=12), rng.normal(size=5)
    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data.copy_(torch.as_tensor(theta)[None])
    problem = sn.Problem(
        model, lambda f, t: (f - t).square().sum(1) / (2 * sigma**2), torch.as_tensor(X), torch.as_tensor(y)[:, None]
    )
    residuals = X @ theta - y
    np.testing.assert_allclose(Hessian(problem).to_dense(), X.T @ X / (12 * sigma**2), atol=1e-13)
    np.testing.assert_allclose(SecondMoment(problem).to_dense(), (X.T * residuals**2) @ X / (12 * sigma**4), atol=1e-12)
    H_p = (X.T * (residuals**2 - sigma**2)) @ X / (12 * sigma**4)
    np.testing.assert_allclose(Residual(problem).to_dense(), H_p, atol=1e-12)


def logistic(X, y, theta):
    model = nn.Linear(X.shape[1], 1, bias=False).double()
    model.weight.data.copy_(torch.as_tensor(theta)[None])
    loss = lambda f, t: nn.functional.softplus((1 - 2 * t) * f[:, 0])  # noqa: E731
    return sn.Problem(model, loss, torch.as_tensor(X), torch.as_tensor(y))


def test_logistic_regression_in_closed_form():
    rng = np.random.default_rng(0)
    X, y, theta = rng.normal(size=(15, 4)), rng.integers(0, 2, 15).astype(float), rng.normal(size=4)
    problem, p = logistic(X, y, theta), 1 / (1 + np.exp(-X @ theta))
    q = np.where(y == 1, p, 1 - p)
    np.testing.assert_allclose(Hessian(problem).to_dense(), (X.T * p * (1 - p)) @ X / 15, atol=1e-13)
    np.testing.assert_allclose(SecondMoment(problem).to_dense(), (X.T * (p - y) ** 2) @ X / 15, atol=1e-13)
    np.testing.assert_allclose(Residual(problem).to_dense(), (X.T * (1 - q) * (1 - 2 * q)) @ X / 15, atol=1e-13)
    np.testing.assert_allclose(GaussNewton(problem).to_dense(), Hessian(problem).to_dense(), atol=1e-13)


def test_the_worked_example():
    X, y, theta = np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([1.0, 0.0]), np.array([0.5, -0.25])
    c = sn.measure.curvature(logistic(X, y, theta), top=2)
    np.testing.assert_allclose(c["hessian_spectrum"], descending([[0.125, 0.25], [0.25, 0.6230670414]])[0], atol=1e-10)
    np.testing.assert_allclose(
        c["second_moment_spectrum"], descending([[0.125, 0.25], [0.25, 0.6580212091]])[0], atol=1e-10
    )
    np.testing.assert_allclose(c["residual_spectrum"], [0.0349541677, 0], atol=1e-10)


def test_fitted_data_make_the_residual_minus_the_hessian():
    """1 - p_i = eps for all samples: ||M|| / ||H|| falls like eps."""
    rng = np.random.default_rng(0)
    X, ratios = rng.normal(size=(8, 20)), []
    direction = np.linalg.pinv(X) @ np.ones(8)
    for margin in (5.0, 10.0):
        c = sn.measure.curvature(logistic(X, np.ones(8), margin * direction), top=3)
        ratios.append(float(c["second_moment_ratio"]))
    assert ratios[1] / ratios[0] == pytest.approx(np.exp(-5.0), rel=0.02)


def test_a_second_moment_of_small_rank_shrinks_the_spaces():
    problem = problem_of(RELU, n=4)
    for dense in (True, False):
        c = sn.measure.curvature(problem, top=6, dense=dense)
        assert c.attrs["subspace_dimensions"] == 4
        assert np.isfinite(c["principal_angle_cosines"][:4]).all() and np.isnan(c["principal_angle_cosines"][4:]).all()
        assert (
            np.isfinite(c["hessian_eigenvalues"]).all()
            and not c["eigenpair_converged"].sel(spectrum="second_moment_eigenvalues")[4:].any()
        )


def test_vacuous_bounds_are_called_so():
    c = sn.measure.curvature(problem_of(RELU, n=30), top=4)
    for d, word in enumerate(c["subspace_bound_status"].values, 1):
        best = min(
            float(np.nan_to_num(c[name][d - 1], nan=np.inf))
            for name in ("yu_wang_samworth_bound", "scaled_bound", "residual_bound")
        )
        assert (word == "vacuous") == (best >= np.sqrt(d))
    assert all(
        (w == "vacuous") == (b >= 1)
        for w, b in zip(c["davis_kahan_status"].values, c["davis_kahan_bound"].values, strict=True)
    )
    assert "vacuous" in c.attrs["statement"] or "dimensions" in c.attrs["statement"]


def test_the_density_and_saving(tmp_path):
    problem = problem_of(TANH)
    c = sn.measure.curvature(problem, top=3, density=True, layers=True)
    assert np.trapezoid(c["spectral_density"], c["eigenvalue"]) == pytest.approx(1, abs=1e-3)
    assert sn.load(sn.save(c, tmp_path / "c.zarr")).equals(c)


def test_the_same_seed_gives_the_same_and_nothing_is_touched():
    problem = problem_of(RELU)
    weights = twins.start(problem).clone()
    first, second = (sn.measure.curvature(problem, top=3, dense=False) for _ in range(2))
    assert first.drop_attrs().equals(second.drop_attrs()) and torch.equal(weights, twins.start(problem))


def test_more_pairs_than_parameters_are_refused():
    problem = problem_of(MODELS[0])
    with pytest.raises(InputError, match=r"top=16: eigenpairs of matrices of 15 parameters; ask for 1 to 15"):
        sn.measure.curvature(problem, top=16)
    with pytest.raises(InputError, match=r"top=7: products give at most 6 at both ends of 15 .*dense=True"):
        sn.measure.curvature(problem, top=7, dense=False)
    with pytest.raises(InputError, match=r"memory=100 bytes hold 0 vectors"):
        sn.measure.curvature(problem, top=2, dense=False, memory=100)
    assert sn.measure.curvature(problem, top=15)["hessian_eigenvalues"].shape == (15,)
