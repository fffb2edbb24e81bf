"""Exact polynomials of networks: worked examples, enumeration in fractions, degrees, engines against each other."""

import itertools
import signal
from fractions import Fraction as F

import numpy as np
import pytest
import torch

import shotnoise as sn
from shotnoise.predict import networks
from shotnoise.predict.networks import Points, engines, lattice, model, quantities, traces, wishart

SCALAR = ([[[1]], [[1]]], [[4]], F(1, 24))
QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")


def polynomial(quantity, *args, layer=0, **options):
    if quantity.startswith("loss"):
        return getattr(networks, f"{quantity}_polynomial")(*args, **options)
    return getattr(networks, f"{quantity}_polynomial")(*args, layer, **options)


def test_the_worked_example_with_gaussian_inputs():
    """variance-dynamics, Example 2: scalars, w = (1, 1), W* = 4, a = 1/24, t = 1."""
    variance, full, loss = (polynomial(name, *SCALAR, 1) for name in QUANTITIES[:3])
    assert variance.coefficients.tolist() == [
        0, F(1240397, 65536), F(-84905, 65536), F(-195, 16384), F(6735, 16384), F(773, 4096), F(15, 512),
    ]  # fmt: skip
    assert full.coefficients.tolist() == [
        0, F(169, 131072), F(-3, 8192), F(5205, 32768), F(711, 8192), F(15, 1024),
    ]  # fmt: skip
    assert loss.coefficients.tolist() == [F(30625, 8192), F(-13, 2048), F(75, 2048), F(3, 512)]
    second = networks.gradient_variance_polynomial(*SCALAR, 1, layer=1)
    assert second.coefficients.tolist() == variance.coefficients.tolist()
    assert variance.exact and variance.decreasing_beyond == 1


def test_the_printed_theorem_4_fails():
    """var(g_t) = (1/b) var(g_t of one sample) leaves out (1 - 1/b) var(grad L): 9.15701 instead of 9.17015 at b = 2."""
    variance, full = (polynomial(name, *SCALAR, 1)(2) for name in QUANTITIES[:2])
    printed = variance - (1 - F(1, 2)) * full
    assert float(variance) == pytest.approx(9.17015, abs=5e-6)
    assert float(printed) == pytest.approx(9.15701, abs=5e-6)
    measured = networks.gradient_variance_at(*SCALAR, 1, batch_size=2)
    assert measured == pytest.approx(float(variance), rel=1e-12)
    assert measured != pytest.approx(float(printed), rel=1e-4)


def test_a_batch_of_two_can_be_noisier_than_one():
    """variance-dynamics, Example 3: x in {0, 2}, w = (1, 2), W* = 1, a = 1/2, t = 1."""
    problem = ([[[1]], [[2]]], [[1]], F(1, 2), 1)
    first, second = (networks.gradient_variance_polynomial(*problem, k, inputs=Points([[0], [2]])) for k in (0, 1))
    assert first.coefficients.tolist() == [0, 20, -20, 260, -280, -224, 256]
    assert [first(b) for b in (1, 2, 3, 4)] == [12, 17, F(7324, 729), F(105, 16)]
    assert [second(b) for b in (1, 2, 3, 4)] == [24, 11, F(11584, 729), F(117, 8)]
    assert first.decreasing_beyond == pytest.approx(1.585, abs=5e-4)


def derivatives(weights, activation, x, y):
    """The gradient of 1/2 ||f(x) - y||^2 for each layer, from the chain rule, and the loss."""
    inputs, slopes, z = [], [], x
    for k, W in enumerate(weights):
        inputs.append(z)
        z = [sum(w * v for w, v in zip(row, z, strict=True)) for row in W]
        if k + 1 < len(weights):
            slopes.append([sum(j * c * h ** (j - 1) for j, c in enumerate(activation) if j) for h in z])
            z = [sum(c * h**j for j, c in enumerate(activation)) for h in z]
    delta = [a - b for a, b in zip(z, y, strict=True)]
    loss, found = sum(d * d for d in delta) / F(2), []
    for k in reversed(range(len(weights))):
        found.append(np.array([[d * v for v in inputs[k]] for d in delta], dtype=object))
        if k:
            columns = zip(*weights[k].tolist(), strict=True)
            back = [sum(d * w for d, w in zip(delta, column, strict=True)) for column in columns]
            delta = [own * s for own, s in zip(back, slopes[k - 1], strict=True)]
    return found[::-1], loss


def enumerated(student, teacher, activation, inputs, rates, b, layer):
    """All sequences of batches: var of the batch gradient and of the full one, and the mean loss. The slow twin."""
    activation = [0, 1] if activation is None else activation
    X, shares = inputs.points.tolist(), inputs.probabilities

    def forward(weights, z):
        for k, W in enumerate(weights):
            z = [sum(F(w) * v for w, v in zip(row, z, strict=True)) for row in W]
            z = [sum(c * h**j for j, c in enumerate(activation)) for h in z] if k + 1 < len(weights) else z
        return z

    Y = [forward(teacher, x) for x in X]
    if inputs.replacement:
        batches = [(batch, np.prod([shares[k] for k in batch])) for batch in itertools.product(range(len(X)), repeat=b)]
    else:
        batches = list(itertools.combinations(range(len(X)), b))
        batches = [(batch, F(1, len(batches))) for batch in batches]
    start = [np.array([[F(v) for v in row] for row in W], dtype=object) for W in student]
    runs = {tuple(map(tuple, (W.ravel() for W in start))): (F(1), start)}
    own = None
    for t in range(len(rates) + 1):
        following = {}
        rows = []
        for chance, weights in runs.values():
            every = [derivatives(weights, activation, x, y) for x, y in zip(X, Y, strict=True)]
            full = sum(share * g[layer] for share, (g, _) in zip(shares, every, strict=True))
            loss = sum(share * own for share, (_, own) in zip(shares, every, strict=True))
            for batch, likelihood in batches:
                mean = [sum(every[k][0][j] for k in batch) / F(b) for j in range(len(weights))]
                rows.append((chance * likelihood, mean[layer], full, loss))
                if t < len(rates):
                    moved = [W - rates[t] * g for W, g in zip(weights, mean, strict=True)]
                    key = tuple(map(tuple, (W.ravel() for W in moved)))
                    before = following.get(key, (F(0), moved))[0]
                    following[key] = (before + chance * likelihood, moved)
        own, runs = rows, following

    def variance(column):
        mean = sum(row[0] * row[column] for row in own)
        return sum(row[0] * (row[column] ** 2).sum() for row in own) - (mean**2).sum()

    return {
        "gradient_variance": variance(1),
        "full_gradient_variance": variance(2),
        "loss": sum(row[0] * row[3] for row in own),
        "loss_variance": sum(row[0] * row[3] ** 2 for row in own) - sum(row[0] * row[3] for row in own) ** 2,
    }


TWO = Points([[0], [2]], [F(1, 3), F(2, 3)])
THREE = Points([[1, 0], [F(1, 2), -1], [-1, 1]], [F(1, 2), F(1, 4), F(1, 4)])
DRAWN = Points([[1, 0], [F(1, 2), -1], [-1, 1]], replacement=False)
CASES = {  # student, teacher, activation, inputs, step, batch sizes
    "depth 1": ([[[1]]], [[[3]]], None, TWO, 2, (1, 2, 3)),
    "depth 1, start": ([[[1, 2]]], [[[3, 1]]], None, THREE, 0, (1, 2, 3)),
    "depth 2": ([[[1]], [[2]]], [[[1]], [[3]]], None, TWO, 1, (1, 2, 3, 4, 5, 6, 7)),
    "depth 2, two steps": ([[[1]], [[2]]], [[[1]], [[1]]], None, TWO, 2, (1, 2, 3)),
    "depth 2, wide": ([[[1, 0], [1, 2]], [[1, -1]]], [[[1, 1]], [[2]]], None, THREE, 1, (1, 2, 3)),
    "depth 2, quadratic": ([[[1]], [[2]]], [[[1]], [[1]]], [1, F(1, 2), 1], TWO, 1, (1, 2, 3)),
    "depth 2, cubic": ([[[1, 1], [0, 1]], [[1, 2]]], [[[1, 1]], [[1]]], [0, 1, 0, F(1, 3)], THREE, 1, (1, 2)),
    "depth 2, quadratic, two steps": ([[[1]], [[F(1, 2)]]], [[[1]], [[1]]], [0, 1, 1], TWO, 2, (1, 2)),
    "depth 3": ([[[1]], [[2]], [[-1]]], [[[1]], [[1]], [[1]]], None, TWO, 1, (1, 2, 3)),
    "depth 3, two steps": ([[[1]], [[2]], [[-1]]], [[[1]], [[1]], [[1]]], None, TWO, 2, (1, 2)),
    "depth 3, quadratic": ([[[1, 1]], [[2]], [[-1]]], [[[1, 0]], [[1]], [[1]]], [1, 0, 1], THREE, 1, (1, 2)),
    "depth 3, start": ([[[1, 1]], [[2]], [[-1]]], [[[1, 0]], [[1]], [[1]]], [1, 0, 1], THREE, 0, (1, 2)),
    "drawn, depth 2": ([[[1, 0], [1, 2]], [[1, -1]]], [[[1, 1]], [[2]]], None, DRAWN, 1, (1, 2, 3)),
    "drawn, quadratic": ([[[1, 1]], [[2]]], [[[1, 0]], [[1]]], [1, 0, 1], DRAWN, 1, (1, 2, 3)),
    "drawn, two steps": ([[[1, 1]], [[2]]], [[[1, 0]], [[1]]], None, DRAWN, 2, (1, 2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_fractions_equal_the_enumeration(name):
    student, teacher, activation, inputs, step, sizes = CASES[name]
    rates = [F(1, 2), F(1, 3)][:step]
    layer = len(student) - 1 if len(name) % 2 else 0
    wanted = {b: enumerated(student, teacher, activation, inputs, rates, b, layer) for b in sizes}
    for quantity in QUANTITIES:
        found = polynomial(quantity, student, teacher, rates, step, layer=layer, activation=activation, inputs=inputs)
        for b in sizes:
            assert found(b) == wanted[b][quantity], (quantity, b)
        assert found.degree <= found.degree_bound
        if quantity != "loss" and inputs.replacement:
            assert found.coefficients[0] == 0
    if not inputs.replacement:
        assert (
            polynomial("gradient_variance", student, teacher, rates, step, activation=activation, inputs=inputs)(3) == 0
        )


def test_without_the_total_variance_term_the_enumeration_is_missed():
    """The broken twin: u E tr Sigma alone."""
    student, teacher, activation, inputs, step, _ = CASES["depth 2"]
    wanted = enumerated(student, teacher, activation, inputs, [F(1, 2)], 2, 0)["gradient_variance"]
    right, full = (polynomial(q, student, teacher, F(1, 2), step, inputs=inputs)(2) for q in QUANTITIES[:2])
    assert right == wanted != right - full


def test_the_polynomial_through_some_batch_sizes_predicts_others():
    """Enumerated values at b = 1 .. 6 fix the six coefficients; that at b = 7 follows."""
    student, teacher, activation, inputs, step, sizes = CASES["depth 2"]
    values = {b: enumerated(student, teacher, activation, inputs, [F(1, 2)], b, 0) for b in sizes}
    nodes = [(F(0), F(0)), *((F(1, b), values[b]["gradient_variance"]) for b in range(1, 7))]
    u = F(1, 7)
    interpolated = sum(y * np.prod([(u - z) / (x - z) for z, _ in nodes if z != x]) for x, y in nodes)
    found = polynomial("gradient_variance", student, teacher, F(1, 2), step, inputs=inputs)
    assert interpolated == values[7]["gradient_variance"] == found(7) and found.degree == 6


def test_tensors_and_parameters_are_welcome():
    student = [torch.nn.Parameter(torch.ones(2, 1)), np.ones((1, 2))]
    found = networks.gradient_variance_polynomial(student, torch.full((1, 1), 4.0), 0.125, 1)
    again = networks.gradient_variance_polynomial([[[1], [1]], [[1, 1]]], [[4]], F(1, 8), 1)
    np.testing.assert_allclose(found.coefficients, again.coefficients.astype(float), rtol=1e-12)


@pytest.mark.parametrize(
    ("depth", "step", "degree"), [(2, 0, 1), (2, 1, 6), (2, 2, 23), (3, 0, 1), (3, 1, 10), (1, 2, 3)]
)
def test_degrees(depth, step, degree):
    found = networks.gradient_variance_polynomial([[[1]], [[2]], [[1]]][:depth], [[3]], [F(1, 5), F(1, 7)], step)
    assert found.degree == found.degree_bound == degree
    if depth == 2:
        assert found.printed_bounds["Theorem 4"] == 2 * 3 ** (step + 1)
        if step:
            assert found.printed_bounds["Theorem 3.4"] < degree  # printed too low


def test_wishart_moments():
    """p = 1: prod (1 + 2 k u). p = 2: E S_12^2 = u, E S_11 S_22 = 1, E S_11 S_12^2 = u + 2 u^2."""
    for d in range(1, 8):
        wanted = np.array([1])
        for k in range(1, d):
            wanted = np.convolve(wanted, [1, 2 * k])
        assert wishart.wishart_moments(1, 8)[(d,)] == wanted.tolist()
    two = wishart.wishart_moments(2, 3)
    assert two[0, 2, 0] == [0, 1] and two[1, 0, 1] == [1, 0] and two[0, 1, 0] == [0]
    assert two[1, 2, 0] == [0, 1, 2] and two[2, 0, 0] == [1, 2]


@pytest.mark.parametrize("p", [1, 2, 3])
def test_traces_of_powers_of_wishart_matrices(p):
    """E tr S^2 = p + u p (p + 1), E tr S^3 = p + 3 u p (p + 1) + u^2 p (p^2 + 3 p + 4), E (tr S)^2 = p^2 + 2 u p."""
    moments = wishart.wishart_moments(p, 3)
    place = {pair: k for k, (i, j) in enumerate(wishart.entries(p)) for pair in ((i, j), (j, i))}

    def mean(pairs):
        exponents = [0] * len(wishart.entries(p))
        for pair in pairs:
            exponents[place[pair]] += 1
        found = moments[tuple(exponents)]
        return np.array([*found, *[0] * (3 - len(found))])

    r = range(p)
    assert sum(mean([(i, j), (j, i)]) for i in r for j in r).tolist() == [p, p * (p + 1), 0]
    assert sum(mean([(i, i), (j, j)]) for i in r for j in r).tolist() == [p * p, 2 * p, 0]
    cube = sum(mean([(i, j), (j, k), (k, i)]) for i in r for j in r for k in r)
    assert cube.tolist() == [p, 3 * p * (p + 1), p * (p * p + 3 * p + 4)]


@pytest.mark.parametrize("quantity", QUANTITIES[:3])
@pytest.mark.parametrize("layer", [0, 1])
def test_traces_equal_the_lattice(quantity, layer):
    rng = np.random.default_rng(3)
    student = [rng.integers(-2, 3, (3, 2)), rng.integers(-2, 3, (2, 3))]
    own = model.network(student, rng.integers(-2, 3, (2, 2)), F(1, 7), 1)
    found = traces.polynomial(list(own.student), own.target, own.rates[0], quantity, layer)
    assert model.trimmed(found) == lattice.polynomial(own, quantity, layer)


@pytest.mark.parametrize(("p", "depth", "step", "layer"), [(1, 2, 3, 0), (2, 2, 1, 1), (2, 3, 1, 1), (2, 1, 2, 0)])
@pytest.mark.parametrize("b", [1, 2, 9])
def test_quadrature_equals_the_polynomial(p, depth, step, layer, b):
    rng = np.random.default_rng(p + depth)
    student = [rng.integers(-2, 3, (p, p)) + np.eye(p, dtype=int) for _ in range(depth)]
    problem = (student, np.full((p, p), 2), [F(1, 20), F(1, 30), F(1, 40)], step, layer)
    exact = networks.gradient_variance_polynomial(*problem)
    assert networks.gradient_variance_at(*problem, batch_size=b) == pytest.approx(float(exact(b)), rel=1e-8)


def by_hermite(student, teacher, activation, rate, step, b, layer):
    """At most one step from batches of b scalar inputs (or none, of any inputs): all expectations by quadrature."""
    p = np.shape(student[0])[1]
    nodes, share = np.polynomial.hermite_e.hermegauss(26)
    share = share / share.sum()

    def grid(size, used):
        chosen = itertools.product(range(len(used)), repeat=size)
        return [(used[list(own)], np.prod(chances[list(own)])) for own in chosen]

    chances = share
    batches = grid(b * step, nodes)
    nodes9, chances = np.polynomial.hermite_e.hermegauss(9)
    chances = chances / chances.sum()
    population = grid(p, nodes9)

    def answer(x):
        for k, V in enumerate(teacher):
            x = np.array(V, float) @ x
            x = sum(c * x**j for j, c in enumerate(activation)) if k + 1 < len(teacher) else x
        return x

    start = [np.array(W, float) for W in student]
    total, mean, loss, spread, squares = 0.0, 0.0, 0.0, 0.0, 0.0
    for batch, chance in batches:
        weights = start
        if step:
            own = [derivatives(start, activation, [x], answer([x]))[0] for x in batch]
            weights = [W - rate * sum(g[k] for g in own).astype(float) / b for k, W in enumerate(start)]
        every = [(derivatives(weights, activation, x, answer(x)), c) for x, c in population]
        full = sum(c * g[layer].astype(float) for (g, _), c in every)
        single = sum(c * (g[layer].astype(float) ** 2).sum() for (g, _), c in every)
        total, mean = total + chance * (full**2).sum(), mean + chance * full
        spread += chance * (single - (full**2).sum()) / b
        current = sum(c * own for (_, own), c in every)
        loss, squares = loss + chance * current, squares + chance * current**2
    variance = total - (mean**2).sum()
    return dict(zip(QUANTITIES, (variance + spread, variance, loss, squares - loss**2), strict=True))


ACTIVATED = {  # student, teacher, activation, step, batch sizes, layer
    "one input, one step": ([[[1]], [[2]]], [[[1]], [[1]]], [0, 1, F(1, 2)], 1, (1, 2), 0),
    "wide": ([[[1], [-1]], [[1, 1]]], [[[2]], [[1]]], [1, 0, F(1, 2)], 1, (1, 2), 1),
    "two inputs at the start": ([[[1, 2], [0, 1]], [[2, 1]]], [[[1, 0]], [[1]]], [0, 1, 1], 0, (1, 5), 0),
}


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations_with_gaussian_inputs(name):
    student, teacher, activation, step, sizes, layer = ACTIVATED[name]
    wanted = {b: by_hermite(student, teacher, activation, 1 / 24, step, b, layer) for b in sizes}
    for quantity in QUANTITIES:
        found = polynomial(quantity, student, teacher, F(1, 24), step, layer=layer, activation=activation)
        for b in sizes:
            assert float(found(b)) == pytest.approx(wanted[b][quantity], rel=1e-7, abs=1e-9), (quantity, b)
        assert found.exact and found.degree <= found.degree_bound


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_cumulants_equal_wishart_moments(quantity):
    """A linear network by way of an activation: monomials' cumulants against moments of sample covariances."""
    own = model.network([[[1], [2]], [[1, 1]]], [[4]], F(1, 24), 1)
    found = quantities.polynomial(quantities.paths(own, "gaussian", quantity), quantity, 1)
    assert found == lattice.polynomial(own, quantity, 1)


def test_a_single_point_has_no_noise():
    for replacement in (True, False):
        inputs = Points([[2]], replacement=replacement)
        found = networks.gradient_variance_polynomial([[[1]], [[2]]], [[1]], F(1, 2), 1, inputs=inputs)
        assert found.coefficients.tolist() == [0]


def test_depth_one_is_linear_regression_on_a_population():
    """On points drawn with replacement: the same as the recursion for linear regression, coefficient by coefficient."""
    X, y = [[1], [2], [-1]], [2, 4, -2]
    found = sn.predict.regression_polynomial(
        X, y, [1], F(1, 4), 2, sampling=sn.sampling.WithReplacement(), variable="1/b", exact=True
    )
    for t in range(3):
        own = networks.gradient_variance_polynomial([[[1]]], [[2]], F(1, 4), t, inputs=Points(X))
        wanted = found["gradient_variance"][t].coefficients.tolist()
        assert own.coefficients.tolist() == wanted[: len(own.coefficients)] and not any(wanted[len(own.coefficients) :])
        gaussian = networks.gradient_variance_polynomial([[[1]]], [[2]], F(1, 4), t)
        assert gaussian.degree == t + 1 and (gaussian.coefficients >= 0).all()


def test_depth_one_with_gaussian_inputs_is_linear_regression_too():
    """Least squares knows its inputs by their moments up to the fourth: twelve samples that have the normal ones do."""
    x = [-2, -1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    assert [F(sum(v**k for v in x), 12) for k in range(1, 5)] == [0, 1, 0, 3]
    for X, student, teacher in (
        ([[v] for v in x], [[[1]]], [[3]]),
        ([[v, w] for v in x for w in x], [[[1, -1]]], [[3, 2]]),
    ):
        y = [sum(a * b for a, b in zip(teacher[0], row, strict=True)) for row in X]
        found = sn.predict.regression_polynomial(
            X, y, student[0][0], F(1, 8), 3, sampling=sn.sampling.WithReplacement(), variable="1/b", exact=True
        )
        for t, quantity in itertools.product(range(4), QUANTITIES[:2]):
            own = polynomial(quantity, student, teacher, F(1, 8), t).coefficients.tolist()
            wanted = found[quantity][t].coefficients.tolist()
            assert own == wanted[: len(own)] and not any(wanted[len(own) :]), (t, quantity)


def test_floats_meet_fractions_and_schedules_meet_sequences():
    exact = networks.gradient_variance_polynomial(*SCALAR[:2], [F(1, 8), F(1, 16)], 2)
    floats = networks.gradient_variance_polynomial([[[1.0]], [[1.0]]], [[4.0]], lambda t: 0.125 / 2**t, 2)
    np.testing.assert_allclose(floats.coefficients, exact.coefficients.astype(float), rtol=1e-12)
    assert floats.coefficients.dtype == np.float64 and not floats.exact


def test_a_student_that_knows_the_answer_has_no_noise():
    found = networks.gradient_variance_polynomial([[[1, 2]], [[2]]], [[2, 4]], F(1, 8), 1)
    assert not any(found.coefficients) and found.degree == 0 and found.simulation_agrees_from == 1


def test_from_where_on_a_simulation_can_agree():
    found = networks.gradient_variance_polynomial([[[1]], [[1]]], [[4]], F(1, 3), 2)
    b = found.simulation_agrees_from

    def share(b):
        terms = [abs(float(c)) / b**k for k, c in enumerate(found.coefficients)]
        return sum(terms[2:]) / terms[1]

    assert 1 < b < np.inf and share(b) <= 0.1 < share(b - 1)


def test_at_any_width():
    rng = np.random.default_rng(0)
    student = [rng.normal(size=(40, 20)) / 5, rng.normal(size=(10, 40)) / 5]
    found = networks.gradient_variance_polynomial(student, rng.normal(size=(10, 20)), 0.1, 1, 1)
    assert found.engine == "trace calculus" and found.degree == 6 and found.coefficients[0] == 0
    assert networks.gradient_variance_polynomial(student, np.ones((10, 20)), 0.1, 0).degree == 1


def test_the_cost_is_told_and_kept_to():
    problem = (*SCALAR, 3)
    told = networks.predicted_seconds(*problem)
    with pytest.raises(sn.InputError, match=f"would take about {told:.2g} seconds"):
        networks.gradient_variance_polynomial(*problem, seconds=told / 2)
    assert networks.gradient_variance_polynomial(*problem, seconds=2 * told).degree == 76


def test_progress_is_told():
    for options in ({}, {"inputs": Points([[0], [2]])}):
        heard = []
        networks.gradient_variance_polynomial(*SCALAR, 2, progress=lambda *told: heard.append(told), **options)
        assert [done for done, _ in heard] == list(range(len(heard))) and len(heard) > 2
        assert all(done <= of for done, of in heard)
        assert 0.2 < heard[0][1] / len(heard) < 5  # what it is told to be at first, about


def test_stopped_with_what_is_finished(monkeypatch):
    """Ctrl-C in the third prime: the earlier steps are there, the same as when asked for."""
    monkeypatch.setattr(engines, "LONG", 0.0)

    def stop(done, of):
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    problem = ([[[1]], [[1]]], [[4]], [F(1, 24), F(1, 12), F(1, 24)])
    with pytest.raises(networks.Interrupted, match="stopped at step 3; steps 0, 1, 2 are finished") as caught:
        networks.gradient_variance_polynomial(*problem, 3, 1, progress=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    for step, found in caught.value.partial.items():
        wanted = networks.gradient_variance_polynomial(*problem, step, 1)
        assert found.coefficients.tolist() == wanted.coefficients.tolist() and found.degree_bound == wanted.degree_bound
    assert list(caught.value.partial) == [0, 1, 2]
    with pytest.raises(networks.Interrupted, match="no step is finished") as caught:
        networks.expectation(networks.Loss(2), *problem, progress=stop)
    assert caught.value.partial == {}


BAD = {
    "student: layer 1 takes 2 inputs but layer 0 gives 1": {"student": [[[1]], [[1, 1]]]},
    "the student has 2 outputs, the teacher 1": {"student": [[[1]], [[1], [1]]]},
    "the student has 2 inputs, the teacher 1": {"student": [[[1, 1]], [[1]]]},
    r"student\[1\] holds numbers that are not finite": {"student": [[[1]], [[np.nan]]]},
    "student: a list of weight matrices": {"student": None},
    "teacher: a list of weight matrices": {"teacher": 4},
    "learning_rate='often'": {"learning_rate": "often"},
    "a list of weight matrices": {"student": []},
    r"student\[0\]: a matrix": {"student": [[1], [[1]]]},
    "learning_rate has 1 values; step=2": {"learning_rate": [0.1], "step": 2},
    "layer=2: the student has layers 0 .. 1": {"layer": 2},
    "activation: coefficients": {"activation": [1]},
    "inputs='uniform'": {"inputs": "uniform"},
    "points with 2 entries, but the student takes 1": {"inputs": Points([[1, 2]])},
    "would take more memory than there is": {"activation": [0, 1, 1], "step": 3},
    r"would take about .* seconds .*use gradient_variance_at": {"step": 4, "seconds": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    good = {"student": [[[1]], [[1]]], "teacher": [[4]], "learning_rate": 0.1, "step": 1, "layer": 0}
    with pytest.raises(sn.InputError, match=message):
        networks.gradient_variance_polynomial(**(good | BAD[message]))


def test_refusals_of_points_and_quadrature():
    with pytest.raises(sn.InputError, match="2 numbers >= 0 with sum 1"):
        Points([[1], [2]], [F(1, 2), F(1, 3)])
    with pytest.raises(sn.InputError, match="leave probabilities out"):
        Points([[1], [2]], [F(1, 3), F(2, 3)], replacement=False)
    with pytest.raises(sn.InputError, match="points: a matrix"):
        Points([1, 2])
    with pytest.raises(sn.InputError, match="at most two inputs; the student takes 3"):
        networks.gradient_variance_at([[[1, 1, 1]]], [[1, 1, 1]], 0.1, 1, batch_size=2)
    with pytest.raises(sn.InputError, match="nodes are needed"):
        networks.gradient_variance_at([[[1]], [[1]]], [[1]], 0.1, 6, batch_size=2)
