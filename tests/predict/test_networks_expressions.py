"""The mean of any trace: against the enumeration of all batches, in fractions."""

import itertools
from fractions import Fraction as F

import numpy as np
import pytest

import shotnoise as sn
from shotnoise.predict import networks
from shotnoise.predict.networks import Constant, FullGradient, Gradient, Loss, Moments, Points, Weight

TWO = Points([[0], [2]], [F(1, 3), F(2, 3)])
THREE = Points([[1, 0], [F(1, 2), -1], [-1, 1]], [F(1, 2), F(1, 4), F(1, 4)])
DRAWN = Points([[1, 0], [F(1, 2), -1], [-1, 1]], replacement=False)
RATES = [F(1, 2), F(1, 3)]
A = np.array([[F(1), F(2)], [F(-1), F(1, 2)]], dtype=object)


def forward(weights, activation, x):
    layers, slopes, z = [], [], x
    for k, W in enumerate(weights):
        layers.append(z)
        h = W @ z
        if k + 1 < len(weights):
            slopes.append(sum(j * c * h ** (j - 1) for j, c in enumerate(activation) if j))
            h = sum(c * h**j for j, c in enumerate(activation))
        z = h
    return layers, slopes, z


def derivatives(weights, teacher, activation, x):
    """Of one sample's loss in each layer, and that loss."""
    layers, slopes, f = forward(weights, activation, x)
    delta = f - forward(teacher, activation, x)[2]
    loss, found = (delta**2).sum() / F(2), []
    for k in reversed(range(len(weights))):
        found.append(np.multiply.outer(delta, layers[k]))
        if k:
            delta = (weights[k].T @ delta) * slopes[k - 1]
    return found[::-1], loss


def enumerated(asked, student, teacher, activation, inputs, batches, b):
    """E asked(weights, gradients, full gradients, losses), each by step, over all sequences of that many batches."""
    activation = [F(0), F(1)] if activation is None else [F(c) for c in activation]
    student, teacher = ([np.vectorize(F, otypes=[object])(W) for W in own] for own in (student, teacher))
    X, shares = [np.array(x, dtype=object) for x in inputs.points.tolist()], inputs.probabilities
    n = len(X)
    if inputs.replacement:
        chosen = [(own, np.prod([shares[k] for k in own])) for own in itertools.product(range(n), repeat=b)]
    else:
        drawn = list(itertools.combinations(range(n), b))
        chosen = [(own, F(1, len(drawn))) for own in drawn]
    total = F(0)
    for sequence in itertools.product(chosen, repeat=batches):
        chance = np.prod([own for _, own in sequence]) if sequence else F(1)
        weights, gradients, full, losses = [student], [], [], []
        for s in range(batches + 1):
            every = [derivatives(weights[-1], teacher, activation, x) for x in X]
            full.append([sum(p * g[k] for p, (g, _) in zip(shares, every, strict=True)) for k in range(len(student))])
            losses.append(sum(p * own for p, (_, own) in zip(shares, every, strict=True)))
            if s < batches:
                batch = sequence[s][0]
                gradients.append([sum(every[k][0][j] for k in batch) / F(b) for j in range(len(student))])
                weights.append([W - RATES[s] * g for W, g in zip(weights[-1], gradients[-1], strict=True)])
        total += chance * asked(weights, gradients, full, losses)
    return total


NARROW = ([[[1]], [[2]]], [[[1]], [[1]]])
WIDE = ([[[1, 0], [1, 2]], [[1, -1]]], [[[1, 1], [0, 1]], [[2, 1]]])
CASES = {  # network, activation, inputs, batches, sizes, expression, the same of one run
    "norm of a gradient": (
        *WIDE, None, THREE, 1, (1, 2, 3),
        (Gradient(0, 0).T @ Gradient(0, 0)).trace(),
        lambda w, g, full, loss: (g[0][0] ** 2).sum(),
    ),
    "weights of two steps and constants": (
        *WIDE, None, THREE, 1, (1, 3),
        (Weight(0, 1) @ Constant(A) @ Weight(0, 1).T @ A @ Weight(0, 0)).trace() * 3 - F(1, 2),
        lambda w, g, full, loss: 3 * np.trace(w[1][0] @ A @ w[1][0].T @ A @ w[0][0]) - F(1, 2),
    ),
    "a product of traces": (
        *NARROW, None, TWO, 2, (1, 2, 3),
        (Weight(1, 1) @ Gradient(0, 1)).trace() * (Gradient(1, 0).T @ Weight(-1, 1)).trace(),
        lambda w, g, full, loss: np.trace(w[1][1] @ g[1][0]) * np.trace(g[0][1].T @ w[1][1]),
    ),
    "gradients of two batches": (
        *NARROW, [0, 1, 1], TWO, 2, (1, 2),
        ((Gradient(0, 0) + 2 * Gradient(0, 1)) @ (Weight(0, 0) - Gradient(0, 1)).T).trace(),
        lambda w, g, full, loss: np.trace((g[0][0] + 2 * g[1][0]) @ (w[0][0] - g[1][0]).T),
    ),
    "full gradients": (
        *WIDE, [1, 0, F(1, 2)], THREE, 1, (1, 2),
        (FullGradient(1, 1) @ Weight(0, 1) @ FullGradient(0, 0).T @ (-Weight(1, 0)).T).trace(),
        lambda w, g, full, loss: -np.trace(full[1][1] @ w[1][0] @ full[0][0].T @ w[0][1].T),
    ),
    "powers of losses": (
        *NARROW, [0, 1, 1], TWO, 1, (1, 2, 3),
        1 - Loss(1) ** 2 * (2 + Loss(0)),
        lambda w, g, full, loss: 1 - loss[1] ** 2 * (2 + loss[0]),
    ),
    "drawn without replacement": (
        *WIDE, None, DRAWN, 2, (1, 2, 3),
        (Gradient(0, 1).T @ Gradient(0, 0)).trace(),
        lambda w, g, full, loss: np.trace(g[1][0].T @ g[0][0]),
    ),
    "three layers": (
        [[[1]], [[2]], [[-1]]], [[[1]], [[1]], [[1]]], None, TWO, 1, (1, 2),
        (Weight(2, 1) @ Weight(1, 1) @ Gradient(0, 0)).trace() ** 2,
        lambda w, g, full, loss: np.trace(w[1][2] @ w[1][1] @ g[0][0]) ** 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_means_equal_the_enumeration(name):
    student, teacher, activation, inputs, batches, sizes, expression, asked = CASES[name]
    found = networks.expectation(expression, student, teacher, RATES, activation=activation, inputs=inputs)
    assert found.degree <= found.degree_bound and found.exact
    for b in sizes:
        wanted = enumerated(asked, student, teacher, activation, inputs, batches, b)
        assert found(b) == wanted, b
    if inputs.replacement:  # the broken twin: one batch more than there is
        assert found(b + 1) != wanted


def test_the_variance_from_traces_equals_the_verb():
    """The last batch as a batch, instead of the law of total variance; Gaussian inputs."""
    problem = ([[[1], [2]], [[1, -1]]], [[4]], F(1, 24))
    g = Gradient(0, 1)
    square = networks.expectation((g.T @ g).trace(), *problem).coefficients
    variance = networks.gradient_variance_polynomial(*problem, 1).coefficients
    mean = np.zeros(len(square), dtype=object)
    for k in range(2):
        row = np.eye(2, dtype=int)[k : k + 1]
        own = networks.expectation((row @ g).trace(), *problem).coefficients
        mean[: 2 * len(own) - 1] += np.convolve(own, own)
    assert (square - mean).tolist() == variance.tolist()
    assert square.tolist() != variance.tolist()


def test_moments_of_the_loss_equal_the_verb():
    problem = ([[[1, 1]], [[2]]], [[4, 1]], F(1, 24))
    one, two = (networks.expectation(Loss(1) ** k, *problem).coefficients for k in (1, 2))
    assert one.tolist() == networks.loss_polynomial(*problem, 1).coefficients.tolist()
    variance = networks.loss_variance_polynomial(*problem, 1).coefficients
    mean = np.convolve(one, one)
    assert (two - np.pad(mean, (0, len(two) - len(mean)))).tolist() == variance.tolist()


def test_moments_and_floats_are_welcome():
    g = Gradient(0, 0)
    uniform = Moments(lambda a: F(1, a[0] + 1) if a[0] % 2 == 0 else 0)
    found = networks.expectation((g @ g.T).trace(), [[[1.0]], [[2.0]]], [[1.0]], 0.1, inputs=uniform)
    # g = 2 x^2 with x uniform: E g^2 = (4/9)(1 - u) + (4/5) u
    np.testing.assert_allclose(found.coefficients, [4 / 9, 4 / 5 - 4 / 9], rtol=1e-15)
    assert found.engine == "means of batches on a lattice" and (found.coefficient_errors > 0).all()


BAD = {
    "expression: a trace": Weight(0, 0),
    r"the trace of a matrix \(1, 2\)": Weight(1, 0).trace(),
    r"a matrix \(2, 2\) times a matrix \(1, 2\): the inner sizes differ": (Weight(0, 0) @ Weight(1, 0)).trace(),
    r"a matrix \(2, 2\) plus a matrix \(1, 2\): the shapes differ": (Weight(0, 0) + Weight(1, 0)).trace(),
    "layer=2: the student has layers 0 .. 1": Weight(2, 0).trace(),
    "learning_rate has 2 values; step=3": Weight(0, 3).trace(),
    "would take more memory than there is": Loss(2) ** 60,
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(sn.InputError, match=message):
        networks.expectation(BAD[message], *WIDE, RATES, inputs=THREE)


def test_refusals_of_parts():
    with pytest.raises(sn.InputError, match="a constant matrix is needed"):
        Constant([1, 2])
    with pytest.raises(sn.InputError, match="a number or a trace is needed"):
        Weight(0, 0) * [[1]]
    with pytest.raises(sn.InputError, match="step=-1"):
        Gradient(0, -1)


def test_the_bound_on_the_degree_is_reached():
    problem = {"student": [[[1]], [[2]]], "teacher": [[4]], "learning_rate": F(1, 24)}
    first, second = (Gradient(layer=0, step=t) for t in (0, 1))
    for expression, degree in (
        ((first @ first.T).trace(), 1), ((first @ second.T).trace(), 3), ((first @ first.T).trace() ** 2, 3),
        ((second @ second.T).trace(), 6),
    ):  # fmt: skip
        found = networks.expectation(expression, **problem)
        assert found.degree == found.degree_bound == degree
