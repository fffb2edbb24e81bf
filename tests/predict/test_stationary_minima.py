"""Noise and fluctuation at minima of models: against `measure`, the exact linear theory, and simulation."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import shotnoise as sn

st = sn.predict.stationary
WITH = sn.sampling.WithReplacement()


class Curve(nn.Module):
    """f(x) = a tanh(b x)."""

    def __init__(self, a=1.0, b=0.7):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x):
        return self.w[0] * torch.tanh(self.w[1] * x)


def settled(model, x, y, l2=0.0, loss="mse"):
    """The problem with its model at a minimum, by L-BFGS."""
    problem = sn.Problem(model, loss, x, y, l2=l2)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = problem.loss_spec.per_sample(model(x), y).mean() + l2 / 2 * sum(
            (p**2).sum() for p in model.parameters()
        )
        value.backward()
        return value

    optimizer.step(closure)
    return problem


def curve(n=200, noise=0.3, l2=0.0, seed=0):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 1)))
    y = 1.2 * torch.tanh(0.8 * x) + noise * torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(n, 1)))
    return settled(Curve(), x, y, l2)


def network(seed=0, n=60, outputs=2):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    x = torch.randn(n, 2, dtype=torch.float64)
    return settled(model, x, torch.sin(x[:, :1]) + 0.3 * torch.randn(n, outputs, dtype=torch.float64), l2=0.01)


@pytest.mark.parametrize("build", [curve, network], ids=["curve", "network"])
def test_the_exact_noise_is_what_measure_measures(build):
    problem = build()
    r = st.minimum(problem, 0.05, 8, sampling=WITH)
    V, exact = r["mode_vectors"].values, r["mode_noise"].sel(noise="exact").values
    measured = sn.measure.noise_covariance(problem).to_dense() / 8
    np.testing.assert_allclose(exact, V.T @ measured @ V, rtol=1e-8, atol=1e-12)
    p = problem.parameter_count
    H = np.array(
        [
            problem.flatten(problem.hessian_vector_product(problem.unflatten(row))).numpy()
            for row in torch.eye(p, dtype=torch.float64)
        ]
    )
    np.testing.assert_allclose(V.T @ H @ V, np.diag(r["mode_curvature"]), atol=1e-10)


def test_the_rule_from_its_definition():
    problem = network()
    r = st.minimum(problem, 0.05, [4, 60])
    V, n = r["mode_vectors"].values, problem.n
    rows = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(
            problem.model, problem.unflatten(w), (problem.samples.batch(torch.arange(n))[0],)
        ),
        problem.flatten(problem.parameters).detach(),
    ).numpy()
    gauss_newton = np.einsum("noi,noj->ij", rows, rows) / n
    data = problem.loss() - problem.penalty
    pull = 0.01 * problem.flatten(problem.parameters).detach().numpy()
    rule = 2 * data / 2 * gauss_newton - np.outer(pull, pull)
    factor = sn.sampling.WithoutReplacement().variance_factor(4, n)
    np.testing.assert_allclose(
        r["mode_noise"].sel(noise="rule", batch_size=4), factor * V.T @ rule @ V, rtol=1e-7, atol=1e-12
    )
    assert (r["mode_noise"].sel(batch_size=60) == 0).all() and r["kind"] == "penalised"
    losses = problem.losses().numpy() - problem.penalty
    assert float(r["loss_spread"]) == pytest.approx(losses.std() / losses.mean(), rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_linear_models_where_the_multiplicative_noise_is_small(momentum):
    """Against the exact theory of regression: what is left out is of relative order lambda / S, and is announced."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    y = x @ [1.0, -1.0, 0.5] + 0.5 * rng.normal(size=50)
    model = nn.Linear(3, 1, bias=False).double()
    problem = settled(model, torch.from_numpy(x), torch.from_numpy(y)[:, None], l2=0.1)
    gaps = []
    for rate in (0.02, 0.01):
        r, exact = st.minimum(problem, rate, 4, momentum), st.finite_data(x, y, rate, 4, momentum, 0.1)
        V = r["mode_vectors"].values
        Sigma = V @ r["mode_fluctuation"].sel(noise="exact").values @ V.T
        gaps.append(np.linalg.norm(Sigma - exact["weight_covariance"]) / np.linalg.norm(exact["weight_covariance"]))
        assert gaps[-1] == pytest.approx(float(r["multiplicative_share"]), rel=1.0)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert float(r["gauss_newton_error"]) < 1e-9


def test_simulation_agrees_with_the_exact_noise():
    """Residuals that grow with x, which the rule does not know of: 3000 runs from the minimum."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 1))
    y = 1.5 * np.tanh(0.7 * x) + 0.4 * x * rng.normal(size=(200, 1))
    problem = settled(Curve(), torch.from_numpy(x), torch.from_numpy(y), l2=0.02)
    rate, S, runs = 0.1, 20, 3000
    r = st.minimum(problem, rate, S, sampling=WITH)
    assert r["rule_status"] == "fails" and float(r["noise_error"]) > 0.3
    V = r["mode_vectors"].values
    start = problem.flatten(problem.parameters).detach().numpy()
    w, xs, ys = np.tile(start, (runs, 1)), x[:, 0], y[:, 0]
    for _ in range(500):
        i = rng.integers(200, size=(runs, S))
        t = np.tanh(w[:, 1:] * xs[i])
        residual = w[:, :1] * t - ys[i]
        g = np.stack([(residual * t).mean(1), (residual * w[:, :1] * (1 - t**2) * xs[i]).mean(1)], 1)
        w = w - rate * (g + 0.02 * w)
    along = (w - w.mean(0)) @ V
    for k in range(V.shape[1]):
        squares = along[:, k] ** 2

        def z(predicted):
            return (squares.mean() - predicted) / (squares.std(ddof=1) / np.sqrt(runs))

        exact = float(r["mode_fluctuation"].sel(noise="exact").values[k, k])
        assert abs(z(exact)) < norm.isf(1e-6 / 4)
        assert abs(z(1.3 * exact)) > norm.isf(1e-6 / 4)
    rule = np.diag(r["mode_fluctuation"].sel(noise="rule").values)
    assert np.abs(rule / (along**2).mean(0) - 1).max() > 0.3


def test_the_rule_is_good_for_label_noise_and_many_samples():
    r = st.minimum(curve(n=4000), [0.05, 0.1], 8)
    assert r["rule_status"] == "good" and r["kind"] == "misfit"
    assert float(r["loss_spread"]) == pytest.approx(np.sqrt(2), rel=0.1)
    assert (r["fluctuation_error"] < 0.1).all()
    assert r["mode_fluctuation"].dims == ("noise", "learning_rate", "mode", "mode_")


def test_where_the_data_are_interpolated_nothing_moves():
    r = st.minimum(curve(noise=0.0), 0.1, 4)
    assert r["kind"] == "interpolating" and r["rule_status"] == "good"
    assert np.abs(r["mode_fluctuation"]).max() < 1e-12


def test_leading_modes_alone_are_the_same():
    problem = network()
    whole, part = st.minimum(problem, 0.05, 8), st.minimum(problem, 0.05, 8, modes=3)
    top = whole["mode_curvature"].values[-3:]
    np.testing.assert_allclose(part["mode_curvature"], top, rtol=1e-7)

    def own(r):
        return np.diag(r["mode_fluctuation"].sel(noise="exact").values)

    np.testing.assert_allclose(own(part), own(whole)[-3:], rtol=1e-5)
    assert part.attrs["modes"] == 3


@pytest.mark.parametrize("modes", [10, 20])
def test_every_copy_of_a_repeated_curvature_is_there(modes):
    """A network that the penalty holds at zero: l2 + ||(1/n) sum_i y_i x_i|| once for each of the 15 hidden units,
    1 + l2 for the last bias, then l2. A Krylov space that is not asked again sees each of them once."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 12, dtype=torch.float64), torch.randn(60, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(12, 15), nn.Tanh(), nn.Linear(15, 1)).double()
    y = 0.5 * x[:, :1] + y
    y = y - y.mean()
    problem = sn.Problem(model, "mse", x, y, l2=2.0)
    problem.place(torch.zeros(problem.parameter_count))
    slope = (x * y).mean(0).norm().item()
    assert 1 < slope < 2
    expected = ([2 + slope] * 15 + [3.0] + [2.0] * 4)[:modes]
    found = st.minimum(problem, 0.05, 8, modes=modes)["mode_curvature"].values
    np.testing.assert_allclose(np.sort(found)[::-1], expected, rtol=1e-8)


def test_large_models_in_single_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 1))
    x = torch.randn(300, 20)
    problem = settled(model, x, x[:, :1] + 0.5 * torch.randn(300, 1), l2=0.1)
    r = st.minimum(problem, 0.05, 8, modes=5, flat=1e-3)
    assert problem.parameter_count > 500 and r.sizes["mode"] == 5
    measured, V = sn.measure.noise_covariance(problem), r["mode_vectors"].values
    expected = V.T @ (measured @ V) * sn.sampling.WithoutReplacement().variance_factor(8, 300)
    np.testing.assert_allclose(
        r["mode_noise"].sel(noise="exact"), expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max()
    )


def test_other_losses_have_the_exact_noise():
    torch.manual_seed(0)
    x = torch.randn(80, 2, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(80, dtype=torch.float64) > 0).long()
    problem = settled(nn.Linear(2, 2).double(), x, y, l2=0.1, loss="cross_entropy")
    r = st.minimum(problem, 0.1, 8)
    assert r["rule_status"] == "unknown for this loss" and np.isnan(r["noise_error"])
    assert (
        np.isfinite(r["mode_fluctuation"].sel(noise="exact")).all()
        and np.isnan(r["mode_fluctuation"].sel(noise="rule")).all()
    )


def test_beyond_the_limit_and_messages():
    problem = curve()
    limit = float(st.minimum(problem, 0.1, 4)["mean_critical_learning_rate"])
    r = st.minimum(problem, [0.9 * limit, 1.1 * limit], 4)
    assert r["status"].values.tolist() == ["stationary", "diverges"]
    assert np.isnan(r["mode_fluctuation"].isel(learning_rate=1)).all()
    x = torch.randn(20, 1, dtype=torch.float64)
    for call, message in (
        (
            lambda: st.minimum(sn.Problem(Curve(3.0, 3.0), "mse", x, 0 * x), 0.1, 4, flat=1.0 - 1e-9),
            "is not at a minimum",
        ),
        (lambda: st.minimum(sn.Problem(Curve(0.0, 0.0), "mse", x, x), 0.1, 4), "has the negative curvature"),
        (lambda: st.minimum(problem, 0.1, 4, modes=7), "modes=7: from 1 to the 2 parameters"),
        (lambda: st.minimum(problem, 0.1, 4, sampling=sn.sampling.CyclicEpochs()), "one of fresh batches"),
        (lambda: st.minimum(problem, np.eye(1), 4), "a number or a sequence"),
        (lambda: st.minimum(problem, 0.1, 4, momentum=1.0), "momentum=1.0"),
    ):
        with pytest.raises(sn.InputError, match=message):
            call()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


MODELS = {
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(9, 1)), (2, 4)),
    "attention": (Attention, (3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_kinds_of_models(name):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    x = torch.randn(60, *shape, dtype=torch.float64)
    problem = settled(build().double(), x, x.flatten(1)[:, :1] + 0.3 * torch.randn(60, 1, dtype=torch.float64), l2=0.2)
    r = st.minimum(problem, 0.01, 8, sampling=WITH, modes=3)
    V = r["mode_vectors"].values
    measured = V.T @ (sn.measure.noise_covariance(problem) @ V) / 8
    np.testing.assert_allclose(
        r["mode_noise"].sel(noise="exact"), measured, rtol=1e-6, atol=1e-9 * np.abs(measured).max()
    )
