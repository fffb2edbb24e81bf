"""The equations and their integrators: weak and strong orders by fitted slopes, exact moments, SGD itself, twins."""

import numpy as np
import pytest
import torch

import shotnoise as sn
from shotnoise.predict.diffusion.integrate import advance
from shotnoise.predict.diffusion.settings import Setting
from shotnoise.predict.diffusion.svag import mixture

df = sn.predict.diffusion
H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
ALARM = 4.4  # standard errors: two-sided 1e-5


def slope(x, y):
    return np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0]


def regression(n=12, p=2, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, p)))
    y = x @ torch.ones(p, 1, dtype=torch.float64) + torch.from_numpy(0.7 * rng.normal(size=(n, 1)))
    model = torch.nn.Linear(p, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.4, 0.2][:p]]))
    return sn.Problem(model, "mse", x, y), x.numpy(), y.numpy()[:, 0]


def tiny_network(n=10):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    return sn.Problem(model, "cross_entropy", torch.randn(n, 2).double(), torch.randint(0, 2, (n,)), l2=0.01)


def test_weak_orders_of_both_equations_in_the_learning_rate():
    """E w^2 of 1-d regression, exact, at the fixed time 2: the errors of the notes, slopes 1 and 2."""
    etas = np.array([0.2, 0.1, 0.05, 0.025])
    model, errors = df.LinearModel.gaussian([1.0], 0.5), []
    for eta in etas:
        r = df.regression_moments(model, eta, 4, [round(2 / eta)], [1.0])
        second = r["weight_covariance"].values.ravel() + r["mean_weights"].values.ravel() ** 2
        errors.append(second[:2] - second[2])
    errors = np.array(errors)
    np.testing.assert_allclose(errors[:, 0], [5.1e-3, 3.2e-3, 1.7e-3, 8.9e-4], rtol=0.03)
    np.testing.assert_allclose(errors[:, 1], [-3.4e-3, -7.9e-4, -1.9e-4, -4.7e-5], rtol=0.03)
    assert slope(etas[1:] / 1, errors[1:, 0]) == pytest.approx(1, abs=0.1)
    assert slope(etas[1:], errors[1:, 1]) == pytest.approx(2, abs=0.05)


def test_weak_orders_on_data_in_several_dimensions():
    _, x, y = regression()
    model, etas, errors = df.LinearModel.of_data(x, y), np.array([0.08, 0.04, 0.02, 0.01]), []
    for eta in etas:
        r = df.regression_moments(model, eta, 2, [round(0.8 / eta)], [0.3, -0.4])
        second = r["weight_covariance"] + r["mean_weights"] * r["mean_weights"].rename(parameter="parameter_")
        off = second - second.sel(theory="discrete")
        errors.append([float(np.abs(off.sel(theory=t)).max()) for t in ("first order", "second order")])
    errors = np.array(errors)
    assert slope(etas[1:], errors[1:, 0]) == pytest.approx(1, abs=0.1)
    assert slope(etas[1:], errors[1:, 1]) == pytest.approx(2, abs=0.1)


def test_discrete_moments_are_those_of_predict_regression():
    _, x, y = regression()
    r = df.regression_moments(df.LinearModel.of_data(x, y, 0.1), 0.1, 3, [0, 1, 6], [0.3, -0.4])
    exact = sn.predict.regression(x, y, [0.3, -0.4], 0.1, [3], 6, l2=0.1, sampling=sn.sampling.WithReplacement())
    at = exact.sel(step=[0, 1, 6])
    np.testing.assert_allclose(r["mean_weights"].sel(theory="discrete"), at["mean_weights"], rtol=1e-10)
    trace = np.trace(r["weight_covariance"].sel(theory="discrete").values, axis1=1, axis2=2)
    np.testing.assert_allclose(trace, at["weights_variance"].sel(batch_size=3), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("theory", "expected"), [("first order", 0.0833333), ("second order", 0.0754717), ("discrete", 0.0930233)]
)
def test_stationary_variance_of_the_third_worked_example(theory, expected):
    model = df.LinearModel.gaussian([0.5], 2.0)
    found = model.stationary(theory, Setting.of(0.4, 5, 0.0, None, None)).item()
    assert found == pytest.approx(expected, abs=6e-8)


def coarse(z, k):
    """Sums of k successive normal increments, scaled to be standard normal again."""
    return z.reshape(len(z) // k, k, *z.shape[1:]).sum(1) / k**0.5


def final(sde, z, T, scheme, w0):
    state, dt = torch.full((z.shape[1], 1), w0, dtype=torch.float64), T / len(z)
    for k, own in enumerate(z):
        state = advance(sde, k * dt, state, dt, own, scheme)
    return state


@pytest.mark.parametrize(("kind", "scheme", "order"), [
    ("multiplicative", "euler", 0.5), ("additive", "euler", 1.0), ("multiplicative", "heun", 1.0),
])  # fmt: skip
def test_strong_orders(kind, scheme, order):
    """Against the exact solution on the same Brownian path: geometric Brownian motion, and Ornstein-Uhlenbeck."""
    T, finest, paths = 1.0, 512, 2000
    z = torch.randn(finest, paths, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    brownian = z.sum(0) * (T / finest) ** 0.5
    if kind == "multiplicative":  # dw = -w dt + 0.8 w dW, read as Ito by Euler, as Stratonovich by Heun
        land = df.Landscape(1, lambda w: w, factor=lambda w: w[:, :, None])
        sde = df.first_order(land, 0.64, 1)
        exact = torch.exp((-1 - (0.32 if scheme == "euler" else 0.0)) * T + 0.8 * brownian)
    else:
        sde = df.first_order(df.Quadratic([1.0], [1.0]), 0.64, 1)
        exact = final(sde, z, T, "heun", 1.0)  # of a higher order where the noise is additive and fine steps taken
    counts = np.array([8, 16, 32, 64])
    errors = [float((final(sde, coarse(z, finest // m), T, scheme, 1.0) - exact).abs().mean()) for m in counts]
    assert slope(1 / counts, errors) == pytest.approx(order, abs=0.12)


def test_weak_orders_of_the_integrators():
    """Second moment of the linear equation, exactly by the recursion of each method: 1 for Euler, 2 for Heun."""
    h, strength, T = 1.0, 0.3, 1.0
    exact = np.exp(-2 * h * T) * (1 - strength / 2) + strength / 2
    counts, errors = np.array([16, 32, 64, 128]), {"euler": [], "heun": []}
    probes = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # two points with the first three moments of a normal
    sde = df.first_order(df.Quadratic([h], [1.0]), strength, 1)
    for scheme, found in errors.items():
        for m in counts:
            dt, second = T / m, 1.0
            for k in range(m):  # E of the square of one step from +-sqrt(E w^2): the step is linear in w and z
                state = torch.full((2, 1), second**0.5, dtype=torch.float64)
                second = float(advance(sde, k * dt, state, dt, probes, scheme).square().mean())
            found.append(second - exact)
    assert slope(1 / counts, errors["euler"]) == pytest.approx(1, abs=0.15)
    assert slope(1 / counts, errors["heun"]) == pytest.approx(2, abs=0.15)


def within(simulated, error, exact):
    return np.abs((simulated - exact) / error).max() < ALARM


@pytest.mark.parametrize("name", ["first order", "second order", "overdamped", "underdamped"])
def test_paths_have_the_moments_of_the_linear_theory(name):
    """Means, and the trace of the covariance; the equation with 15 % more noise is refused by the same test."""
    mu = 0.6 if "damped" in name else 0.0

    def sde(c):
        land = df.Quadratic(H, c)
        if name == "second order":
            return df.second_order(land, 0.1, 4)
        return df.underdamped(land, 0.1, 4, mu) if name == "underdamped" else df.first_order(land, 0.1, 4, mu)

    r = df.integrate(sde(C), 8, 6000, [1.0, -0.5], substeps=40, scheme="heun", seed=1)
    exact = df.transient(H, C, 0.1, 4, [8], [1.0, -0.5], momentum=mu).sel(theory=name)
    assert within(r["mean_weights"].values, r["mean_weights_stderr"].values, exact["mean_weights"].values)
    trace = np.trace(exact["weight_covariance"].values[0])
    assert within(r["weights_variance"].values, r["weights_variance_stderr"].values, trace)
    twin = df.integrate(sde(1.15 * C), 8, 6000, [1.0, -0.5], substeps=40, scheme="heun", seed=1)
    assert not within(twin["weights_variance"].values, twin["weights_variance_stderr"].values, trace)


def test_a_covariance_and_its_factor_are_the_same_equation():
    """Cholesky factors of a varying covariance; singular ones take the symmetric root."""
    cov = lambda w: torch.diag_embed(w**2) + 0.3  # noqa: E731
    by_covariance = df.Landscape(2, lambda w: w, cov)
    w = torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    sigma = by_covariance.factor(w)
    np.testing.assert_allclose(sigma @ sigma.mT, cov(w), atol=1e-12)


def test_the_noise_of_a_network_is_that_of_its_samples():
    problem = tiny_network()
    land = df.Network(problem)
    w = land.start + 0.1 * torch.randn(3, land.dimension, generator=torch.Generator().manual_seed(0)).double()
    for k in range(3):
        other = problem.replica()
        with torch.no_grad():
            for name, value in other.unflatten(w[k]).items():
                other.parameters[name].copy_(value)
        each = torch.stack(
            [other.flatten({n: g[i] for n, g in other.per_sample_gradients().items()}) for i in range(10)]
        )
        np.testing.assert_allclose(land.gradient(w)[k], other.flatten(other.gradient()), atol=1e-12)
        np.testing.assert_allclose(land.covariance(w)[k], np.cov(each.T, bias=True), atol=1e-12)
        np.testing.assert_allclose(land.variances(w)[k], each.var(0, correction=0), atol=1e-12)
        assert float(land.loss(w)[k]) == pytest.approx(other.loss(), rel=1e-10)
        v = torch.ones(land.dimension, dtype=torch.float64)
        product = other.flatten(other.hessian_vector_product(other.unflatten(v)))
        np.testing.assert_allclose(land.curved(w, v.expand(3, -1))[k], product, atol=1e-10)
        z = torch.eye(10, dtype=torch.float64)  # the columns of the factor, one per sample
        columns = land.pull(w[k].expand(10, -1), z, 0.0, 1.0)
        np.testing.assert_allclose(columns.T @ columns, np.cov(each.T, bias=True), atol=1e-12)
        indices = torch.tensor([[0, 0, 3]])
        batch = land.on_batches(w[k : k + 1], indices, torch.full((1, 3), 1 / 3, dtype=torch.float64))
        np.testing.assert_allclose(batch[0], each[[0, 0, 3]].mean(0), atol=1e-12)


def test_models_that_cannot_be_batched_go_one_by_one():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)

        def forward(self, x):
            return self.line(x) if float(self.line.weight.detach().sum()) < 1e9 else 0 * self.line(x)

    torch.manual_seed(0)
    x = torch.randn(6, 2, dtype=torch.float64)
    land = df.Network(sn.Problem(Branching(), "mse", x, x[:, :1]))
    w = torch.randn(3, 2, dtype=torch.float64)
    expected = torch.stack([x.T @ (x @ row - x[:, 0]) / 6 for row in w])
    np.testing.assert_allclose(land.gradient(w), expected, atol=1e-12)
    np.testing.assert_allclose(land.curved(w, w), w @ (x.T @ x / 6), atol=1e-12)


def test_the_first_order_equation_of_a_problem_and_sgd():
    """Regression with its own multiplicative noise: paths against the exact moments of the diffusion, not of SGD."""
    problem, x, y = regression()
    eta, B = 0.15, 2
    r = df.integrate(df.first_order(problem, eta, B), 10, 8000, substeps=30, seed=2)
    moments = df.regression_moments(df.LinearModel.of_data(x, y), eta, B, [10], [0.3, -0.4])
    trace = {t: np.trace(moments["weight_covariance"].sel(theory=t).values[0]) for t in moments["theory"].values}
    # Euler's own weak error, 1/30 of that of SGD against the diffusion, lies within the standard errors.
    assert within(r["weights_variance"].values, r["weights_variance_stderr"].values, trace["first order"])
    assert not within(r["weights_variance"].values, r["weights_variance_stderr"].values, trace["discrete"])
    assert within(r["mean_weights"].values, r["mean_weights_stderr"].values,
                  moments["mean_weights"].sel(theory="first order").values)  # fmt: skip
    one = df.integrate(df.first_order(problem, eta, B), 10, 8000, seed=3)  # one Euler step per update: SGD's moments
    assert within(one["weights_variance"].values, one["weights_variance_stderr"].values, trace["discrete"])


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_adaptive_methods_tend_to_their_diffusions(rule):
    """Noise that dominates: SGD's own update rule with Gaussian gradients against the SDE, mean and variance.

    d = 2, gradient theta, noise C; as eta falls at fixed eta^2 k the methods agree within errors, and the SDE with
    another scale of noise (P without eta) is far off.
    """
    h, c, s, eta, alpha = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 0.5]).double(), 25.0, 0.02, 0.9992
    steps, runs = 600, 3000
    rng = torch.Generator().manual_seed(4)
    w = torch.tensor([0.5, -0.4]).double().repeat(runs, 1)
    betas = (0.996, alpha)
    if rule == "rmsprop":
        v = (s * c).repeat(runs, 1)
    else:
        v, m = torch.zeros(runs, 2).double(), torch.zeros(runs, 2).double()
    for k in range(steps):
        g = h * w + (s * c).sqrt() * torch.randn(runs, 2, dtype=torch.float64, generator=rng)
        if rule == "rmsprop":
            v = alpha * v + (1 - alpha) * g**2
            w = w - eta * g / (v.sqrt() + 1e-8)
        else:
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
            w = w - eta * (m / (1 - betas[0] ** (k + 1))) / ((v / (1 - betas[1] ** (k + 1))).sqrt() + 1e-8)
    land = df.Quadratic(np.diag(h), np.diag(s * c))  # batch size 1 with all of the noise in C
    sde = df.rmsprop(land, eta, 1, alpha) if rule == "rmsprop" else df.adam(land, eta, 1, betas)
    r = df.integrate(sde, steps, runs, [0.5, -0.4], substeps=2, seed=5)
    here = r["weights"].values[:, 0]
    error = np.sqrt((w.numpy().var(0) + here.var(0)) / runs)
    assert within(here.mean(0), error, w.numpy().mean(0))
    ratio = here.var(0, ddof=1) / w.numpy().var(0, ddof=1)
    assert np.abs(np.log(ratio)).max() < ALARM * np.sqrt(4 / runs)
    louder = df.Quadratic(np.diag(h), np.diag(s * c) / 2)  # another drift relative to the noise
    twin = df.rmsprop(louder, eta, 1, alpha) if rule == "rmsprop" else df.adam(louder, eta, 1, betas)
    off = df.integrate(twin, steps, runs, [0.5, -0.4], substeps=2, seed=5)["weights"].values[:, 0]
    assert not within(off.mean(0), error, w.numpy().mean(0))


def adaptive_weak_error(rule, eta, scale=1.0, runs=10_000, substeps=8):
    """E w at time 1, method less equation, by the same noise; its variance 1 + tanh(w) / 2 over eta^2, times scale."""

    def noise(scale):
        return df.Landscape(1, lambda w: w, lambda w: (scale / eta**2 * (1 + 0.5 * torch.tanh(w)))[:, :, None])

    own, fast, slow = noise(1.0), 1 - 8 * eta**2, 1 - 2 * eta**2
    averages, generator = rule == "adam", torch.Generator().manual_seed(0)
    sde = df.adam(noise(scale), eta, 1, (fast, slow)) if averages else df.rmsprop(noise(scale), eta, 1, slow)
    w = torch.ones(runs, 1, dtype=torch.float64)
    state, m, v = sde.start(w), torch.zeros_like(w), torch.zeros_like(w) if averages else own.covariance(w)[:, 0]
    for k in range(round(1 / eta**2)):
        z = torch.randn(substeps, runs, 1, dtype=torch.float64, generator=generator)
        for j, each in enumerate(z):
            state = state + sde.increment((k + j / substeps) * eta**2, state, eta**2 / substeps, each)
        together = z.sum(0) / substeps**0.5
        g = w + own.covariance(w)[:, 0].sqrt() * (together if averages else -together)  # as each equation has its sign
        m, v = fast * m + (1 - fast) * g, slow * v + (1 - slow) * g**2
        if averages:
            w = w - eta * (m / (1 - fast ** (k + 1))) / (v / (1 - slow ** (k + 1))).sqrt()
        else:
            w = w - eta * g / v.sqrt()
    apart = w - state[:, :1]
    return float(apart.mean()), float(apart.std() / runs**0.5)


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_adaptive_methods_tend_to_their_diffusions_as_eta_squared(rule):
    """Weak order 1 in the time eta^2 of a step, where the noise grows as 1/eta; with a fifth more of it, none."""
    coarse, fine = adaptive_weak_error(rule, 0.2), adaptive_weak_error(rule, 0.1)
    assert all(abs(mean) > ALARM * error for mean, error in (coarse, fine))
    assert 1.3 < np.log2(coarse[0] / fine[0]) < 2.7
    assert abs(adaptive_weak_error(rule, 0.1, scale=1.2)[0]) > abs(coarse[0])


def test_amplified_sgd_has_the_gradient_and_the_noise_it_should():
    """By enumeration of both batches: mean gradient, and l times the covariance."""
    each = np.array([1.0, -0.5, 2.0])
    for level in (1, 2, 7):
        a, b = mixture(level)
        values = np.array([a * g + b * k for g in each for k in each])
        assert values.mean() == pytest.approx(each.mean()) and values.var() == pytest.approx(level * each.var())


def test_amplification_one_is_sgd_and_many_the_diffusion():
    problem, x, y = regression()
    eta, B = 0.15, 2
    r = df.svag(problem, eta, B, 10, 6000, [1, 16], seed=1)
    moments = df.regression_moments(df.LinearModel.of_data(x, y), eta, B, [10], [0.3, -0.4])
    trace = {t: np.trace(moments["weight_covariance"].sel(theory=t).values[0]) for t in moments["theory"].values}
    values, errors = r["weights_variance"].values[:, 0], r["weights_variance_stderr"].values[:, 0]
    assert within(values[0], errors[0], trace["discrete"]) and not within(values[0], errors[0], trace["first order"])
    # l = 16: SGD at eta / 16 with its noise amplified, exactly; a sixteenth of the way from the diffusion to SGD
    amplified = df.regression_moments(df.LinearModel.of_data(x, y), eta / 16, B, [160], [0.3, -0.4])
    assert amplified["weight_covariance"].sel(theory="discrete").values.trace(axis1=1, axis2=2) < trace["discrete"] / 4
    assert within(values[1], errors[1], trace["first order"]) and not within(values[1], errors[1], trace["discrete"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: df.Landscape(1, lambda w: w), "give the one or the other"),
        (lambda: df.Landscape(2, lambda w: w[:, 0], np.eye(2)), "gradient: for weights"),
        (lambda: df.Landscape(2, lambda w: w, lambda w: w), "expected .2, 2, 2."),
        (lambda: df.Landscape(2, lambda w: w, np.eye(3)), "a matrix .2, 2. is needed"),
        (lambda: df.integrate(df.first_order(df.Quadratic([30.0], [1.0]), 0.1, 1), 3, 2, [1.0]), "exceeds 2. Take substeps=3"),
        (lambda: df.integrate(df.first_order(df.Quadratic([1.0], [1.0]), 0.1, 1), 3, 2), "initial: 1 weights"),
        (lambda: df.integrate(df.first_order(df.Quadratic([1.0], [1.0]), 0.1, 1), 3, 2, [1.0, 2.0]), "initial has shape"),
        (lambda: df.integrate(df.first_order(df.Quadratic([1.0], [1.0]), 0.1, 1), 3, 2, [1.0], scheme="rk4"), "one of euler, heun"),
        (lambda: df.first_order(df.Quadratic([1.0], [1.0]), 0.1, 1, sampling=sn.sampling.WithReplacement()), "no samples to draw"),
        (lambda: df.rmsprop(df.Quadratic([1.0], [1.0]), 0.1, 1, alpha=1.0), "alpha=1.0: between"),
        (lambda: df.svag(regression()[0], 0.1, 2, 3, 4, [2, 1]), "rising"),
        (lambda: df.svag(regression()[0], 0.1, 2, 3, 4, sampling=sn.sampling.ReshuffledEpochs()), "two independent batches"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()


def test_a_covariance_that_turns_negative_on_the_way_is_named():
    land = df.Landscape(1, lambda w: 0 * w - 1, lambda w: (1 - w)[:, :, None])
    with pytest.raises(
        sn.InputError, match=r"not positive semi-definite: at weights \(\d.*path \d+; \d+ of 50 paths.*-0"
    ):
        df.integrate(df.first_order(land, 0.05, 1), 60, 50, [0.0])


def test_paths_that_run_away_are_named():
    land = df.Landscape(1, lambda w: -(w**3), [[0.01]])
    with pytest.raises(sn.NonFiniteError, match="5 of 5 paths are no longer finite after 50 updates"):
        df.integrate(df.first_order(land, 0.1, 1), 50, 5, [2.0], substeps=1)


def test_the_same_seed_gives_the_same_paths_whatever_is_recorded():
    sde = df.first_order(df.Quadratic(H, C), 0.1, 4)
    a = df.integrate(sde, 7, 5, [1.0, 1.0], seed=3)["weights"].sel(step=7)
    b = df.integrate(sde, 7, 5, [1.0, 1.0], seed=3, record=[2, 7])["weights"].sel(step=7)
    assert (a == b).all() and (a != df.integrate(sde, 7, 5, [1.0, 1.0], seed=4)["weights"].sel(step=7)).all()
