"""The stationary state of linear models against the recursion from the definition, limits, tables and simulation."""

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov
from scipy.stats import norm

import shotnoise as sn
from affine_twin import Twin, observed

st = sn.predict.stationary


def matrix(rng, p, low=0.3):
    """Symmetric positive definite, of norm about one."""
    x = rng.normal(size=(2 * p, p))
    return x.T @ x / (4 * p) + low * np.eye(p)


def problem(p, kind, seed=0):
    rng = np.random.default_rng(seed + p)
    A, u = matrix(rng, p), rng.normal(size=p)
    B = 0.3 * matrix(rng, p) if "input" in kind else None
    skew = rng.normal(size=(p, p))
    G = 0.1 * (skew + skew.T) + 0.2 * np.eye(p) if "matrix penalty" in kind else 0.15 if "penalty" in kind else 0.0
    label = 0.4 if "label" in kind else 0.0
    return A, u, {"label_variance": label, "input_covariance": B, "l2": G, "target": u}, Twin_of(A, u, label, B, G)


def Twin_of(A, u, label, B, G):
    points = observed(A, u, label, B)
    return lambda rate, batch, momentum: Twin(*points, rate, batch, momentum, G)


KINDS = [
    "label",
    "input",
    "penalty",
    "matrix penalty",
    "label, input",
    "label, penalty",
    "label, input, matrix penalty",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("p", "momentum", "rate"),
    [(1, 0.0, "number"), (2, 0.5, "matrix"), (3, 0.0, "matrix"), (3, 0.8, "number"), (4, 0.3, "matrix")],
)
def test_the_recursion_from_the_definition(kind, p, momentum, rate):
    A, u, options, twin = problem(p, kind)
    base = np.eye(p) if rate == "number" else matrix(np.random.default_rng(9), p)
    limit = float(st.gaussian(A, base, 3, momentum=momentum, **options)["critical_learning_rate"])
    c = 0.6 * limit
    result = st.gaussian(A, c if rate == "number" else c * base, 3, momentum=momentum, **options)
    exact = twin(c * base, 3, momentum).stationary()
    for name, key in (
        ("weight_covariance", "covariance"),
        ("noise_covariance", "noise"),
        ("mean_weights", "mean"),
        ("train_loss", "loss"),
    ):
        np.testing.assert_allclose(
            result[name], exact[key], rtol=1e-8, atol=1e-9 * np.abs(exact[key]).max(), err_msg=name
        )
    off = exact["second"] - np.outer(exact["mean"], u) - np.outer(u, exact["mean"]) + np.outer(u, u)
    assert float(result["test_loss"]) == pytest.approx(0.5 * np.trace(A @ off), rel=1e-8)
    assert result["status"] == "stationary"


def test_five_dimensions():
    A, _, options, twin = problem(5, "label, matrix penalty")
    c = 0.5 * float(st.gaussian(A, 1.0, 2, **options)["critical_learning_rate"])
    exact = twin(c, 2, 0.0).stationary()["covariance"]
    np.testing.assert_allclose(st.gaussian(A, c, 2, **options)["weight_covariance"], exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["label", "label, penalty", "label, matrix penalty"])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("p", [1, 3])
def test_second_moments_have_radius_one_at_the_critical_rate_and_batch_size(p, momentum, kind):
    A, _, options, twin = problem(p, kind)
    base = matrix(np.random.default_rng(3), p)
    one = st.gaussian(A, base, 2, momentum=momentum, **options)
    c = float(one["critical_learning_rate"])

    def radius(share):
        return twin(share * c * base, 2, momentum).radius()

    assert radius(1.0) == pytest.approx(1, abs=1e-9)
    assert radius(0.99) < 1 - 1e-4 and radius(1.01) > 1 + 1e-4
    for share, status in ((0.99, "stationary"), (1.0 + 1e-9, "diverges"), (1.5, "diverges")):
        there = st.gaussian(A, share * c * base, 2, momentum=momentum, **options)
        assert there["status"] == status
        assert float(there["critical_batch_size"]) == pytest.approx(2, rel=0.2) or share == 1.5
        for name in ("weight_covariance", "noise_covariance", "train_loss", "test_loss", "kappa"):
            assert np.isnan(there[name]).all() == (status == "diverges"), name
    batch = float(st.gaussian(A, 0.7 * c * base, 2, momentum=momentum, **options)["critical_batch_size"])
    assert twin(0.7 * c * base, batch, momentum).radius() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("l2", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_rate_of_convergence_is_the_radius(momentum, l2, share):
    A, u = np.diag([1.0, 0.6, 0.3]), np.ones(3)
    limit = float(st.gaussian(A, 1.0, 2, l2=l2, target=u, momentum=momentum)["critical_learning_rate"])
    result = st.gaussian(A, share * limit, 2, l2=l2, target=u, momentum=momentum)
    radius = Twin(*observed(A, u), share * limit, 2, momentum, l2).radius()
    assert float(result["second_moment_rate"]) == pytest.approx(radius, abs=1e-9)


@pytest.mark.parametrize(
    ("p", "momentum", "share"),
    [(1, 0.5, 0.5), (2, 0.0, 0.1), (2, 0.0, 0.9), (3, 0.6, 0.05), (3, 0.6, 0.7), (3, 0.9, 0.99)],
)
def test_the_rate_of_convergence_where_nothing_commutes(p, momentum, share):
    A, _, options, twin = problem(p, "label, input, matrix penalty")
    base = matrix(np.random.default_rng(3), p)
    limit = float(st.gaussian(A, base, 2, momentum=momentum, **options)["critical_learning_rate"])
    result = st.gaussian(A, share * limit * base, 2, momentum=momentum, **options)
    assert float(result["second_moment_rate"]) == pytest.approx(
        twin(share * limit * base, 2, momentum).radius(), abs=1e-9
    )


def test_the_table_of_worked_numbers():
    s = st.label_noise([[1, 0.4], [0.4, 0.5]], 0.5, np.array([[0.2, 0.05], [0.05, 0.3]]), 4, momentum=0.5)
    np.testing.assert_allclose(
        s["weight_covariance"], [[0.0333214452957, 0.0115327435452], [0.0115327435452, 0.0484572240287]], rtol=1e-11
    )
    np.testing.assert_allclose(
        s["noise_covariance"], [[0.154269262031, 0.0643355336306], [0.0643355336306, 0.0763617401864]], rtol=1e-11
    )
    assert float(s["kappa"]) == pytest.approx(0.53421001717, rel=1e-10)
    assert float(s["train_loss"]) == pytest.approx(0.283388126073, rel=1e-11)
    assert float(s["test_loss"]) == pytest.approx(0.0333881260731, rel=1e-11)
    decayed = st.regularised([2.0], [1.0], -0.406929669183, 1.0, 16)
    assert float(decayed["test_loss"]) == pytest.approx(0.285283667877, rel=1e-11)


def test_the_printed_closed_forms():
    """Theorem 2 with G^-1 Lambda; the test loss of input noise with the trace of A; kappa of Theorem 8 is kappa / rate."""
    rng = np.random.default_rng(5)
    A, L, B, u, S, mu = matrix(rng, 4), 0.3 * matrix(rng, 4), 0.2 * matrix(rng, 4), rng.normal(size=4), 3, 0.4
    for K, t, result in (
        (A, 0.7, st.label_noise(A, 0.7, L, S, mu)),
        (A + B, u @ A @ np.linalg.solve(A + B, B @ u), st.input_noise(A, B, u, L, S, mu)),
    ):
        G = 2 * (1 - mu) * np.eye(4) - ((1 - mu) / (1 + mu) + 1 / S) * L @ K
        tau = np.trace(L @ K @ np.linalg.inv(G))
        kappa = tau / (1 - tau / S)
        Sigma = t / S * (1 + kappa / S) * np.linalg.solve(G, L)
        np.testing.assert_allclose(result["weight_covariance"], Sigma, rtol=1e-11)
        assert float(result["kappa"]) == pytest.approx(kappa, rel=1e-11)
        assert float(result["train_loss"]) == pytest.approx(t / 2 * (1 + kappa / S), rel=1e-11)
        printed = t / S * (1 + kappa / S) * L @ np.linalg.inv(G)
        assert np.abs(printed / Sigma - 1).max() > 1e-3  # the order of the factors matters


def test_no_fluctuation_without_residuals():
    assert (st.label_noise([1.0, 0.5], 0.0, 0.5, 2)["weight_covariance"] == 0).all()


def test_small_rates_give_the_lyapunov_solution_at_first_order():
    A, _, options, _ = problem(3, "label, input, matrix penalty")
    model = st.gaussian(A, 1e-9, 4, momentum=0.5, **options)
    H = A + options["input_covariance"] + options["l2"]
    gaps = []
    rates = (0.02, 0.01, 0.005)
    for rate in rates:
        Sigma = st.gaussian(A, rate, 4, momentum=0.5, **options)["weight_covariance"].values / rate
        limit = solve_continuous_lyapunov(H, model["noise_covariance"].values) / (1 - 0.5)
        gaps.append(np.abs(Sigma - limit).max())
    assert np.polyfit(np.log(rates), np.log(gaps), 1)[0] == pytest.approx(1, abs=0.05)


def test_large_batches_give_additive_discrete_noise_at_first_order():
    A, u = np.diag([1.0, 0.5]), np.array([1.0, -1.0])
    rate, sizes = 0.8, [64, 128, 256]
    result = st.gaussian(A, rate, sizes, label_variance=0.5, l2=0.1, target=u)
    H, q = A + 0.1 * np.eye(2), -0.1 * result["mean_weights"].values
    off = result["mean_weights"].values - u
    noise = (0.5 + off @ A @ off) * A + np.outer(q, q)
    k = np.diag(H)
    limit = rate * noise / (k[:, None] + k - rate * k[:, None] * k)
    gaps = [np.abs(S * result["weight_covariance"].sel(batch_size=S).values - limit).max() for S in sizes]
    assert np.polyfit(np.log(sizes), np.log(gaps), 1)[0] == pytest.approx(-1, abs=0.05)


def discrete_features():
    points = np.array([[1.0, 0.5], [-1.0, 2.0], [0.3, -1.0], [-0.5, -0.4]])
    return points, np.array([0.2, 0.3, 0.4, 0.1])


@pytest.mark.parametrize("form", ["function", "tensor"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_features_by_their_fourth_moments(form, momentum):
    points, weights = discrete_features()
    A, u, G = (points * weights[:, None]).T @ points, np.array([1.0, -0.5]), np.array([[0.2, 0.1], [0.1, -0.05]])
    tensor = np.einsum("n,ni,nj,nk,nl->ijkl", weights, points, points, points, points)
    given = (
        tensor
        if form == "tensor"
        else lambda M: (points * (weights * np.einsum("ni,ij,nj->n", points, M, points))[:, None]).T @ points
    )
    x, y = np.repeat(points, 2, 0), np.repeat(points @ u, 2) + np.tile([0.5, -0.5], 4)

    def twin(c, S):
        return Twin(x, y, np.repeat(weights, 2) / 2, c, S, momentum, G)

    options = {"label_variance": 0.25, "momentum": momentum, "l2": G, "target": u, "fourth_moment": given}
    limit = float(st.gaussian(A, 0.1, 2, **options)["critical_learning_rate"])
    assert twin(limit, 2).radius() == pytest.approx(1, abs=1e-9)
    result, exact = st.gaussian(A, 0.5 * limit, 2, **options), twin(0.5 * limit, 2).stationary()
    np.testing.assert_allclose(result["weight_covariance"], exact["covariance"], rtol=1e-9)
    np.testing.assert_allclose(result["noise_covariance"], exact["noise"], rtol=1e-9)
    assert float(result["train_loss"]) == pytest.approx(exact["loss"], rel=1e-9)
    plain = st.gaussian(A, 0.5 * limit, 2, **(options | {"fourth_moment": None}))
    assert np.abs(plain["weight_covariance"].values / exact["covariance"] - 1).max() > 0.05


def test_singular_features_keep_what_they_do_not_see():
    s = st.label_noise([[1.0, 1.0], [1.0, 1.0]], 0.5, 0.3, 4)
    np.testing.assert_allclose(
        s["weight_covariance"], float(s["weight_covariance"][0, 0]) * np.ones((2, 2)), rtol=1e-12
    )
    one = st.label_noise([2.0], 0.5, 0.3, 4)
    assert float(s["test_loss"]) == pytest.approx(float(one["test_loss"]), rel=1e-12)
    never = st.gaussian([1.0, 1.0], 0.1, 4, label_variance=1.0, l2=-1.0 * np.eye(2), target=[0.0, 0.0])
    assert never["status"] == "diverges" and never["critical_learning_rate"] == 0
    negative = st.gaussian([1.0, 0.2], 0.1, 4, l2=-0.5, target=[1.0, 1.0])
    assert negative["status"] == "diverges" and np.isnan(negative["mean_weights"]).all()


def test_the_structured_solve_at_500_parameters():
    """Nothing commutes; near the limit the residual of the equation is still rounding."""
    rng, p = np.random.default_rng(1), 500
    A, G, u = matrix(rng, p), rng.normal(size=(p, p)), np.ones(p)
    options = {"label_variance": 1.0, "l2": 0.002 * (G + G.T), "target": u}
    limit = float(st.gaussian(A, 1e-3, 8, **options)["critical_learning_rate"])
    s = st.gaussian(A, 0.95 * limit, 8, **options)
    Sigma, C, H, c = s["weight_covariance"].values, s["noise_covariance"].values, A + options["l2"], 0.95 * limit
    left = H @ Sigma + Sigma @ H - c * H @ Sigma @ H
    assert np.abs(left - c * C).max() < 1e-9 * np.abs(c * C).max()


def broken(A, u, G, sigma2, rate, S, *, correction=1.0, trace=1.0, rank_one=1.0):
    """The fixed point by plain iteration, with parts of the noise changed."""
    H, Sigma = A + G, np.zeros_like(A)
    minimum = np.linalg.solve(H, A @ u)
    q, off, J = A @ (minimum - u), minimum - u, np.eye(len(A)) - rate * H
    for _ in range(3000):
        made = correction * A @ Sigma @ A + trace * np.trace(A @ Sigma) * A
        C = (made + (sigma2 + off @ A @ off) * A + rank_one * np.outer(q, q)) / S
        Sigma = J @ Sigma @ J + rate**2 * C
    return Sigma


@pytest.fixture(scope="module")
def ensemble():
    """Runs at the same time, each at its end: weights (R, p)."""
    A, u, G = np.array([[1.0, 0.4], [0.4, 0.5]]), np.array([1.5, -2.0]), np.array([[0.3, -0.1], [-0.1, 0.4]])
    rng, rate, S, runs, sigma = np.random.default_rng(0), 0.45, 3, 60000, 0.3
    root = np.linalg.cholesky(A)
    w = np.tile(np.linalg.solve(A + G, A @ u), (runs, 1))
    for _ in range(40):
        x = rng.normal(size=(runs, S, 2)) @ root.T
        r = np.einsum("rsp,rp->rs", x, w - u) - sigma * rng.normal(size=(runs, S))
        w = w - rate * (np.einsum("rs,rsp->rp", r, x) / S + w @ G)
    return (A, u, G, sigma**2, rate, S), w


def agrees(w, predicted, mean, alarm=1e-6):
    centred = w - mean
    products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
    z = (products.mean(0) - predicted[[0, 0, 1], [0, 1, 1]]) / (products.std(0, ddof=1) / np.sqrt(len(w)))
    return np.abs(z).max() < norm.isf(alarm / z.size / 2)


def test_simulation_agrees_and_broken_theories_do_not(ensemble):
    (A, u, G, sigma2, rate, S), w = ensemble
    s = st.gaussian(A, rate, S, label_variance=sigma2, l2=G, target=u)
    mean = s["mean_weights"].values
    np.testing.assert_allclose(broken(A, u, G, sigma2, rate, S), s["weight_covariance"], rtol=1e-9)
    assert agrees(w, s["weight_covariance"].values, mean)
    for part in ({"correction": 0.0}, {"trace": 0.0}, {"rank_one": -1.0}):
        assert not agrees(w, broken(A, u, G, sigma2, rate, S, **part), mean), part


def test_grids_and_labels():
    s = st.label_noise([1.0, 0.5], 0.25, [0.1, 0.5, 5.0], [1, 8])
    assert s["weight_covariance"].dims == ("learning_rate", "batch_size", "parameter", "parameter_")
    assert s["critical_learning_rate"].dims == ("batch_size",) and s["critical_batch_size"].dims == ("learning_rate",)
    one = st.label_noise([1.0, 0.5], 0.25, 0.5, 8)
    assert one["weight_covariance"].dims == ("parameter", "parameter_") and float(one["learning_rate"]) == 0.5
    np.testing.assert_array_equal(s["weight_covariance"].sel(learning_rate=0.5, batch_size=8), one["weight_covariance"])
    assert s["status"].sel(learning_rate=5.0).values.tolist() == ["diverges", "diverges"]
    assert np.isinf(s["critical_batch_size"].sel(learning_rate=5.0))
    assert all(variable.attrs["long_name"] for variable in s.data_vars.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_covariance": [[1.0, 0.5], [0.2, 1.0]]}, "feature_covariance is not symmetric"),
        ({"feature_covariance": [[1.0, 2.0], [2.0, 1.0]]}, "has the negative eigenvalue -1"),
        ({"feature_covariance": np.ones((2, 3))}, "a square matrix is needed"),
        ({"feature_covariance": [1.0, np.nan]}, "1 entries are not finite"),
        ({"feature_covariance": [1.0, "a"]}, "numbers are needed"),
        ({"input_covariance": np.eye(3)}, r"input_covariance: a matrix \(2, 2\) is needed"),
        ({"input_covariance": -np.eye(2)}, "input_covariance has the negative eigenvalue"),
        ({"l2": np.ones((3, 3))}, r"l2: a matrix \(2, 2\) is needed"),
        ({"l2": [[0.0, 1.0], [0.0, 0.0]]}, "l2 is not symmetric"),
        ({"target": [1.0]}, "target: 2 numbers are needed"),
        ({"l2": 0.1, "target": None}, "give target, one number per feature"),
        ({"label_variance": -1.0}, "label_variance=-1.0: one number that is not negative"),
        ({"momentum": 1.0}, "momentum=1.0: at least 0 and below 1"),
        ({"momentum": -0.1}, "momentum=-0.1: at least 0 and below 1"),
        ({"learning_rate": 0.0}, "a positive number, a sequence of them"),
        ({"learning_rate": [0.1, -0.1]}, "a positive number, a sequence of them"),
        ({"learning_rate": np.eye(3)}, r"learning_rate: a matrix \(2, 2\) is needed"),
        ({"learning_rate": np.diag([1.0, 0.0])}, "must be positive definite"),
        ({"batch_size": 0}, "a whole number of samples, at least 1"),
        ({"batch_size": 2.5}, "a whole number of samples, at least 1"),
        ({"fourth_moment": np.ones((2, 2))}, r"a tensor \(2, 2, 2, 2\) or a function"),
        ({"fourth_moment": lambda S: np.ones(3)}, "it must map a matrix"),
        ({"fourth_moment": lambda S: S @ np.array([[1.0, 2.0], [0.0, 1.0]])}, "is self-adjoint, this map is not"),
        ({"fourth_moment": lambda S: 0.1 * S}, "does not belong to this feature_covariance"),
        ({"fourth_moment": lambda S: 9 * S, "input_covariance": np.eye(2)}, "leave out one of the two"),
    ],
)
def test_messages(change, message):
    options = {"feature_covariance": np.eye(2), "learning_rate": 0.1, "batch_size": 4, "target": [1.0, 0.0]} | change
    with pytest.raises(sn.InputError, match=message):
        st.gaussian(**options)


def test_a_sweep_without_its_matrices_is_the_same():
    options = {"label_variance": 0.25, "l2": 0.1, "target": [1.0, 1.0]}
    whole, light = (st.gaussian([1.0, 0.5], [0.1, 5.0], [1, 8], matrices=m, **options) for m in (True, False))
    assert set(whole) - set(light) == {"weight_covariance", "noise_covariance"}
    for name in light:
        np.testing.assert_array_equal(light[name], whole[name])


def test_just_below_the_limit_the_solve_is_still_exact():
    """Where nothing commutes: tr Sigma grows as 1 / (1 - share), down to a distance of 1e-9."""
    A, _, options, _ = problem(4, "label, matrix penalty")
    limit = float(st.gaussian(A, 0.1, 3, momentum=0.9, **options)["critical_learning_rate"])
    traces = [
        e * np.trace(st.gaussian(A, (1 - e) * limit, 3, momentum=0.9, **options)["weight_covariance"])
        for e in (1e-6, 1e-9)
    ]
    assert traces[0] == pytest.approx(traces[1], rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_directions_that_the_penalty_alone_curves(momentum):
    """Features of rank one among three: the rest is held by the penalty, without noise, and sets the slowest rate."""
    A, u = np.outer([1.0, 0.5, -0.2], [1.0, 0.5, -0.2]), np.array([1.0, -1.0, 0.5])
    result = st.gaussian(A, 0.4, 3, label_variance=0.5, l2=0.1, target=u, momentum=momentum)
    twin = Twin(*observed(A, u, 0.5), 0.4, 3, momentum, 0.1)
    np.testing.assert_allclose(result["weight_covariance"], twin.stationary()["covariance"], rtol=1e-8, atol=1e-12)
    assert float(result["second_moment_rate"]) == pytest.approx(twin.radius(), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_degenerate_sums_and_repeated_eigenvalues(seed):
    """A + Gamma a multiple of the identity, whatever A; A one, whatever Gamma."""
    rng = np.random.default_rng(seed)
    A, u, skew = matrix(rng, 3), rng.normal(size=3), rng.normal(size=(3, 3))
    if seed % 2:
        G = 1.3 * np.linalg.eigvalsh(A)[-1] * np.eye(3) - A
    else:
        A, G = 0.7 * np.eye(3), 0.1 * (skew + skew.T)
    result = st.gaussian(A, 0.3, 2, label_variance=0.5, l2=G, target=u)
    exact = Twin(*observed(A, u, 0.5), 0.3, 2, 0.0, G).stationary()
    np.testing.assert_allclose(result["weight_covariance"], exact["covariance"], rtol=1e-8, atol=1e-12)
