"""Finite volumes: known densities, mass and positivity to rounding, currents against linear algebra, rates."""

import numpy as np
import pytest
import torch

import shotnoise as sn
from shotnoise.predict.diffusion import grid_edges

df = sn.predict.diffusion
H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
A, S2, ETA, B = 0.5, 2.0, 0.4, 5  # label-noise regression: Sigma = 2 a^2 w^2 + a sigma^2
EPS = ETA / B


def label_noise():
    return df.Landscape(1, lambda w: A * w, lambda w: (2 * A**2 * w**2 + A * S2)[:, :, None])


def power_law(w, alpha):
    """p of sec. 4 of the corrected notes, alpha = 0, 1/2, 1."""
    return (2 * A * w**2 + S2) ** (-(1 - alpha) - 1 / (2 * A * EPS))


@pytest.mark.parametrize(
    ("convention", "alpha", "variance"),
    [("ito", 0, 0.0833333), ("stratonovich", 0.5, 0.0869565), ("hanggi-klimontovich", 1, 0.0909091)],
)
def test_label_noise_in_three_conventions(convention, alpha, variance):
    gaps = []
    for cells in (600, 1200):
        s = df.FokkerPlanck(label_noise(), ETA, B, [(-6, 6)], cells, convention=convention).stationary()
        x = s["x"].values
        exact = power_law(x, alpha)
        exact /= exact.sum() * (x[1] - x[0])
        gaps.append(np.abs(s["density"].values - exact).max())
        assert float(s["weight_covariance"].item()) == pytest.approx(variance, rel=1e-3)
        others = [power_law(x, a) / power_law(x, a).sum() / (x[1] - x[0]) for a in (0, 0.5, 1) if a != alpha]
        assert min(np.abs(s["density"].values - other).max() for other in others) > 20 * gaps[-1]
        assert float(s["largest_net_flux"]) < 1e-10
    assert np.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.1)


def test_ito_is_exact_for_constant_drift_and_any_noise():
    """No quadrature error in the exponent is left: p = exp(-2 w / eps) / Sigma between reflecting walls."""
    land = df.Landscape(1, lambda w: (2 + torch.sin(3 * w)) * 0.7, lambda w: (2 + torch.sin(3 * w))[:, :, None])
    s = df.FokkerPlanck(land, 0.5, 1, [(0, 4)], 37, leak=1).stationary()
    x = s["x"].values
    exact = np.exp(-2 * 0.7 * x / 0.5) / (2 + np.sin(3 * x))
    np.testing.assert_allclose(s["density"], exact / exact.sum() / (x[1] - x[0]), rtol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.1])
@pytest.mark.parametrize("ratio", [1.0, 10.0, 60.0])
def test_positive_weights_make_up_any_covariance(angle, ratio):
    """Selling's reduction gives D back, with no negative weight, where a nine-point scheme needs one."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    D = (turn @ np.diag([ratio, 1.0]) @ turn.T)[None]
    offsets, weights = grid_edges._decomposed(D)
    assert (weights >= 0).all()
    np.testing.assert_allclose(np.einsum("nk,nki,nkj->nij", weights, offsets, offsets), D, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def gaussian():
    return df.FokkerPlanck(df.Quadratic(H, C), 0.1, 4, [(-0.5, 0.5), (-0.55, 0.55)], 80)


def test_the_current_of_the_linear_case(gaussian):
    """Law, mean velocity W theta, curl and entropy production against the linear algebra; errors fall as h^2."""
    r = df.rotation(H, C, 0.1, 4)
    X, W = r["weight_covariance"].values, r["circulation"].values
    gaps = []
    for grid in (gaussian, df.FokkerPlanck(df.Quadratic(H, C), 0.1, 4, [(-0.5, 0.5), (-0.55, 0.55)], 160)):
        s = grid.stationary()
        points = grid.points
        law = np.exp(-0.5 * np.einsum("ni,ij,nj->n", points, np.linalg.inv(X), points))
        law /= law.sum() * np.prod(grid.widths)
        current = (law[:, None] * (points @ W.T)).T.reshape(s["probability_current"].shape)
        density = law.reshape(grid.shape)
        curl = float((s["velocity_curl"] * s["density"]).sum() / s["density"].sum())
        gaps.append(
            [
                np.abs(s["density"].values - density).max() / density.max(),
                np.abs(s["probability_current"].values - current).max() / np.abs(current).max(),
                curl / float(r["velocity_curl"]) - 1,
                float(s["entropy_production"]) / float(r["entropy_production"]) - 1,
                np.abs(s["weight_covariance"].values / X - 1).max(),
            ]
        )
    gaps = np.abs(np.array(gaps))
    assert (gaps[1] < 0.012).all()
    np.testing.assert_allclose(np.log2(gaps[0] / gaps[1]), 2, atol=0.25)
    broken = current * [[[1]], [[-1]]]  # a current that turns the wrong way in one component is far off
    assert np.abs(s["probability_current"].values - broken).max() > 0.5 * np.abs(current).max()


def test_mass_and_positivity_to_rounding(gaussian):
    A = gaussian.generator
    assert np.abs(A.sum(0)).max() < 1e-14 * np.abs(A.diagonal()).max()
    off = A.copy()
    off.setdiag(0)
    assert off.min() >= 0
    start = np.zeros(gaussian.shape)
    start[60, 20] = 1
    e = gaussian.evolve(start, [0, 1, 10, 40])
    assert (e["density"] >= 0).all() and (gaussian.stationary()["density"] >= 0).all()
    np.testing.assert_allclose(e["density"].sum(("x", "y")) * np.prod(gaussian.widths), 1, rtol=1e-13)


def test_the_way_there_is_the_ornstein_uhlenbeck_process():
    """Moments on the way: errors fall as h^2, and a noise that is 5 % larger is seen."""
    gaps, seen = [], []
    for m in (40, 80, 160):
        grid = df.FokkerPlanck(df.Quadratic(H, C), 0.1, 4, [(-0.5, 0.5), (-0.55, 0.55)], m)
        start = np.zeros(grid.shape)
        start[5 * m // 8, 3 * m // 8] = 1
        m0 = np.array([grid.centres[0][5 * m // 8], grid.centres[1][3 * m // 8]])
        e = grid.evolve(start, [5, 10])
        t, louder = (df.transient(H, c, 0.1, 4, [5, 10], m0).sel(theory="first order") for c in (C, 1.05 * C))
        gaps.append([np.abs(e[name].values - t[name].values).max() for name in ("mean_weights", "weight_covariance")])
        seen.append(np.abs(e["weight_covariance"].values - louder["weight_covariance"].values).max())
    np.testing.assert_allclose(np.log2(np.array(gaps[:-1]) / gaps[1:]), 2, atol=0.3)
    assert seen[-1] > 20 * gaps[-1][1]


def test_stratonovich_in_two_dimensions():
    """Sigma = s(theta_1)^2 in the first direction, constant in the second: a product of one-dimensional laws."""

    def factor(w):
        first = torch.stack([1 + 0.5 * torch.tanh(w[:, 0]), torch.zeros_like(w[:, 0])], 1)
        second = torch.stack([torch.zeros_like(w[:, 0]), torch.ones_like(w[:, 0])], 1)
        return torch.stack([first, second], 2)

    land = df.Landscape(2, lambda w: w, factor=factor)
    for convention in df.CONVENTIONS:
        two = df.FokkerPlanck(land, 0.5, 1, [(-3, 3)] * 2, 60, convention=convention).stationary()
        own = df.Landscape(1, lambda w: w, lambda w: ((1 + 0.5 * torch.tanh(w)) ** 2)[:, :, None])
        one = df.FokkerPlanck(own, 0.5, 1, [(-3, 3)], 60, convention=convention).stationary()
        marginal = two["density"].sum("y") * 0.1
        np.testing.assert_allclose(marginal, one["density"], atol=2e-3 * float(one["density"].max()))
        assert float(two["entropy_production"]) < 1e-12


def test_a_covariance_without_potential_drives_a_current():
    """Decoupled noise Sigma = 2 (L + 1/4) H, H anisotropic, two dimensions: not integrable; multiples of I are."""
    h = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def loss(w):
        return (h * w**2).sum(1) / 2

    decoupled = df.Landscape(2, lambda w: h * w, lambda w: 2 * (loss(w) + 0.25)[:, None, None] * torch.diag(h))
    isotropic = df.Landscape(
        2, lambda w: h * w, lambda w: (2 * loss(w) + 0.5)[:, None, None] * torch.eye(2, dtype=torch.float64)
    )
    bounds = [(-4, 4), (-2.5, 2.5)]
    driven = df.FokkerPlanck(decoupled, 0.1, 1, bounds, 60).stationary()
    still = df.FokkerPlanck(isotropic, 0.1, 1, bounds, 60).stationary()
    x, y = still["x"].values, still["y"].values
    exact = (x[:, None] ** 2 + 4 * y**2 + 0.5) ** (-1 - 1 / 0.1)  # (2 L + s_0)^(-1 - 1/eps)
    exact /= exact.sum() * (x[1] - x[0]) * (y[1] - y[0])
    np.testing.assert_allclose(still["density"], exact, atol=0.02 * exact.max())
    assert float(driven["entropy_production"]) > 30 * float(still["entropy_production"])


def test_what_is_asked_too_much():
    land = df.Landscape(1, lambda w: w, lambda w: (1 - w**2)[:, :, None])
    with pytest.raises(sn.InputError, match=r"not positive semi-definite at weights \((-1.99|1.99)\).*cells"):
        df.FokkerPlanck(land, 0.1, 1, [(-2, 2)], 200).stationary()
    with pytest.raises(sn.InputError, match="the covariance is singular"):
        df.FokkerPlanck(df.Quadratic([1.0, 2.0], np.ones((2, 2))), 0.1, 1, [(-1, 1)] * 2, 20).stationary()
    narrow = df.FokkerPlanck(df.Quadratic([1.0], [2.0]), 0.1, 1, [(-2, 0.3)], 200)
    with pytest.raises(sn.InputError, match=r"does not contain the mass: 0\.\d+ of it would lie outside.*x > 0\.3"):
        narrow.stationary()
    with pytest.raises(sn.InputError, match="far from the shape of a cell"):
        df.FokkerPlanck(
            df.Quadratic([1.0, 1.0], np.outer([1, 0.618], [1, 0.618]) + 1e-7 * np.eye(2)), 0.1, 1, [(-1, 1)] * 2, 20
        ).stationary()
    with pytest.raises(sn.InputError, match="take .* products"):
        df.FokkerPlanck(df.Quadratic([1.0], [2.0]), 0.1, 1, [(-2, 2)], 3000).evolve(np.ones(3000), [100000])
    with pytest.raises(sn.InputError, match="a grid is for one or two"):
        df.FokkerPlanck(df.Quadratic(np.ones(3), np.ones(3)), 0.1, 1, [(-2, 2)] * 3, 10)
    with pytest.raises(sn.InputError, match="one of ito"):
        df.FokkerPlanck(df.Quadratic([1.0], [2.0]), 0.1, 1, [(-2, 2)], 10, convention="itô")


def test_the_leak_is_about_right():
    """Cut an exponential tail: the mass beyond is known."""
    land = df.Landscape(1, lambda w: torch.sign(w) * torch.ones_like(w), [[1.0]])
    s = df.FokkerPlanck(land, 1.0, 1, [(-3, 12)], 1500, leak=0.1).stationary()  # p = exp(-2 |w|)
    assert float(s["leak"]) == pytest.approx(np.exp(-6) / 2, rel=0.02)


@pytest.mark.parametrize("convention", df.CONVENTIONS)
def test_the_equation_of_a_problem_is_that_of_its_noise(convention):
    """One weight, eight samples: Sigma(w) from the samples is a known quadratic."""
    x = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None]
    y = x + 0.3 * torch.cos(7 * x)
    problem = sn.Problem(torch.nn.Linear(1, 1, bias=False, dtype=torch.float64), "mse", x, y)
    each = lambda w: x[:, 0] * (x[:, 0] * w - y[:, 0])  # noqa: E731
    land = df.Landscape(1, lambda w: each(w).mean(1, True), lambda w: each(w).var(1, correction=0)[:, None, None])
    own, same = (
        df.FokkerPlanck(where, 0.5, 2, [(-1, 3)], 300, convention=convention).stationary() for where in (problem, land)
    )
    np.testing.assert_allclose(own["density"], same["density"], rtol=1e-6, atol=1e-12)


def test_a_function_that_leaves_torch_is_no_constant():
    def outside(w):
        return torch.from_numpy((1 + 0.5 * np.tanh(w.detach().numpy())) ** 2)[:, :, None]

    inside = df.Landscape(1, lambda w: w, lambda w: ((1 + 0.5 * torch.tanh(w)) ** 2)[:, :, None])
    left = df.Landscape(1, lambda w: torch.from_numpy(w.detach().numpy() ** 3), outside)
    a, b = (df.FokkerPlanck(land, 0.5, 1, [(-3, 3)], 100, convention="stratonovich", leak=1).edges
            for land in (inside, df.Landscape(1, lambda w: w, outside)))  # fmt: skip
    np.testing.assert_allclose(a.forth, b.forth, rtol=1e-8)
    w = torch.tensor([[0.7], [2.0]], dtype=torch.float64)
    np.testing.assert_allclose(left.curved(w, torch.ones_like(w)), 3 * w**2, rtol=1e-8)
