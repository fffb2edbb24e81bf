"""Both orders of the law for large batches against exact polynomials in 1/b, and against means over all batches."""

import dataclasses
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

import shotnoise as sn
from shotnoise.predict.networks import (
    Points,
    full_gradient_variance_polynomial,
    gradient_variance_polynomial,
    loss_polynomial,
)
from shotnoise.predict.propagation import second_order

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


class Network(torch.nn.Module):
    def __init__(self, weights, activation):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(len(W[0]), len(W), bias=False, dtype=torch.float64) for W in weights
        )
        for layer, W in zip(self.layers, weights, strict=True):
            layer.weight.data = torch.tensor(W, dtype=torch.float64)
        self.activation = activation

    def forward(self, x):
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if k + 1 < len(self.layers):
                x = self.activation(x)
        return x


def polynomial(coefficients):
    return lambda x: sum(c * x**k for k, c in enumerate(coefficients)) if coefficients else x


def problem_of(student, teacher, activation, points):
    x = torch.tensor(points, dtype=torch.float64)
    with torch.no_grad():
        y = Network(teacher, activation)(x)
    return sn.Problem(Network(student, activation), "mse", x, y)


@dataclasses.dataclass
class Case:
    """Weights, activation and points as floats that are short binary fractions."""

    student: list
    teacher: list
    activation: list | None
    points: list
    rate: float
    step: int

    def law(self, step, **arguments):
        problem = problem_of(self.student, self.teacher, polynomial(self.activation), self.points)
        return sn.predict.propagation(problem, None, self.rate, step, [5], **arguments)

    def exact(self, quantity, step, **layer):
        def fractions(weights):
            return [[[Fraction(v) for v in row] for row in W] for W in weights]

        activation = None if self.activation is None else [Fraction(c) for c in self.activation]
        found = quantity(
            fractions(self.student), fractions(self.teacher), Fraction(self.rate), step,
            activation=activation, inputs=Points(self.points), **layer,
        )  # fmt: skip
        return np.array([float(c) for c in [*found.coefficients, 0, 0]])


CASES = {
    "linear": Case([[[1.0]], [[2.0]]], [[[1.0]], [[1.0]]], None, [[0], [2], [3]], 0.125, 2),
    "quadratic": Case([[[1.0]], [[0.5]]], [[[1.0]], [[1.0]]], [0.25, 1.0, 0.5], [[0], [2]], 0.125, 2),
    "two-inputs": Case(
        [[[1.0, 0.5]], [[0.5]]], [[[1.0, -1]], [[1.0]]], [0.25, 1.0, 0.5], [[0, 1], [2, 1], [-1, 0.5]], 0.125, 1
    ),
    "three-layers": Case(
        [[[1.0]], [[0.5]], [[1.5]]], [[[1.0]], [[1.0]], [[0.5]]], [0.0, 1.0, 0.25], [[0.5], [1.5]], 0.0625, 1
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


VARIANCES = {
    "gradient_variance": gradient_variance_polynomial,
    "full_gradient_variance": full_gradient_variance_polynomial,
}


def test_two_coefficients_by_layer_are_those_of_the_exact_polynomial(case):
    law = case.law(case.step, order=2, expected_loss=True)
    for t, (name, quantity) in product(range(case.step + 1), VARIANCES.items()):
        exact = np.array([case.exact(quantity, t, layer=k)[:3] for k in range(len(case.student))])
        at = law.isel(step=t)
        np.testing.assert_allclose(at[f"layer_{name}_leading"], exact[:, 1], rtol=1e-10, atol=1e-12)
        second = at[f"layer_{name}_second"] + at[f"layer_{name}_skewness"]
        np.testing.assert_allclose(second, exact[:, 2], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(at[f"{name}_leading"], exact[:, 1].sum(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(at[name][0], exact[:, 1].sum() / 5 + exact[:, 2].sum() / 25, rtol=1e-9, atol=1e-11)
    for t in range(case.step + 1):
        constant, leading = case.exact(loss_polynomial, t)[:2]
        np.testing.assert_allclose(law["loss_leading"][t], leading, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(law["loss"][0, t], constant + leading / 5, rtol=1e-10)
    exact = sum(case.exact(gradient_variance_polynomial, case.step, layer=k)[:3] for k in range(len(case.student)))
    np.testing.assert_allclose(law["next_order"], exact[2] / exact[1] / 5, rtol=1e-9)


@pytest.mark.parametrize("left_out", ["T", "F", "A", "B", "skewness"])
def test_every_derivative_counts(left_out, monkeypatch):
    """Without any one of the terms the coefficient of 1/b^2 is another."""
    whole = second_order._Derivatives.at
    if left_out != "skewness":

        def part(problem, P):
            here = whole(problem, P)
            return dataclasses.replace(here, **{left_out: torch.zeros_like(getattr(here, left_out))})

        monkeypatch.setattr(second_order._Derivatives, "at", part)
    case = CASES["two-inputs" if left_out == "skewness" else "quadratic"]
    step = 2 if left_out == "F" else 1
    law = case.law(step, order=2).isel(step=-1)
    exact = sum(case.exact(gradient_variance_polynomial, step, layer=k)[2] for k in range(2))
    found = float(law["gradient_variance_second"])
    found += 0 if left_out == "skewness" else float(law["gradient_variance_skewness"])
    assert abs(found / exact - 1) > 1e-3


# Equal weights on these six values have the moments of N(0, 1) up to the fifth.
HERMITE = [-math.sqrt(3), 0, 0, 0, 0, math.sqrt(3)]


@pytest.mark.parametrize(
    ("student", "teacher", "step"),
    [
        ([[[1.0, 0.5]]], [[[0.25, -1.0]]], 3),
        ([[[1.0]], [[1.0]]], [[[4.0]], [[1.0]]], 2),
        ([[[1.0, 0.5]], [[0.5]]], [[[1.0, -1.0]], [[1.0]]], 1),
        ([[[1.0]], [[0.5]], [[1.5]]], [[[1.0]], [[1.0]], [[0.5]]], 1),
    ],
    ids=["one-layer", "scalar", "two-inputs", "three-layers"],
)
def test_linear_networks_on_gaussian_inputs(student, teacher, step):
    """beta_1 and l_1 of a linear network ask for fourth moments of the inputs only: points that share them do."""
    points = list(product(HERMITE, repeat=len(student[0][0])))
    problem = problem_of(student, teacher, polynomial(None), points)
    law = sn.predict.propagation(problem, None, 0.125, step, [5], expected_loss=True)
    for t, (name, quantity) in product(range(step + 1), VARIANCES.items()):
        for k in range(len(student)):
            exact = [float(c) for c in quantity(student, teacher, "1/8", t, layer=k).coefficients]
            np.testing.assert_allclose(law[f"layer_{name}_leading"][t, k], [*exact, 0][1], rtol=1e-10, atol=1e-12)
    leading = float(loss_polynomial(student, teacher, "1/8", step).coefficients[1])
    np.testing.assert_allclose(law["loss_leading"][-1], leading, rtol=1e-10)


def test_one_layer_in_closed_form():
    """var(g_1) of y = x^T w* by hand: e_1 = (I - a S) e_0, E S M S = M + (M + tr M) / b for symmetric M."""
    w, teacher, a, p = np.array([1.0, 0.5]), np.array([0.25, -1.0]), 0.125, 2
    e = w - teacher
    points = list(product(HERMITE, repeat=p))
    problem = problem_of([[w.tolist()]], [[teacher.tolist()]], polynomial(None), points)
    law = sn.predict.propagation(problem, None, a, 1, [5], order=1)
    full = a**2 * (p + 1) * (e @ e)
    np.testing.assert_allclose(law["full_gradient_variance_leading"][1], full, rtol=1e-12)
    np.testing.assert_allclose(law["gradient_variance_leading"][1], full + (p + 1) * (1 - a) ** 2 * (e @ e), rtol=1e-12)


# Three distinct samples, each `copies` times: a batch is how often each occurs in it, and all batches can be summed.
SAMPLES = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9]], dtype=torch.float64)
TARGETS = torch.tensor([[0.5], [-1.0], [0.8]], dtype=torch.float64)
STUDENT = [[[0.6, -0.8], [0.3, 1.1]], [[1.0, -0.7]]]
RATE = 0.5
ACTIVATIONS = {"linear": lambda x: x, "tanh": torch.tanh, "quadratic": polynomial([0.1, 1.0, 0.3])}


def repeated(activation, copies):
    model = Network(STUDENT, ACTIVATIONS[activation])
    return sn.Problem(model, "mse", SAMPLES.repeat(copies, 1), TARGETS.repeat(copies, 1))


def counts_and_chances(b, copies, sampling):
    counts = np.array([(i, j, b - i - j) for i in range(b + 1) for j in range(b + 1 - i)])
    if sampling is WITH:
        chances = stats.multinomial.pmf(counts, b, [1 / 3] * 3)
    else:
        counts = counts[(counts <= copies).all(1)]
        chances = stats.multivariate_hypergeom.pmf(counts, [copies] * 3, b)
    return counts, chances


def enumerated(activation, b, copies, sampling):
    """var(g_1) over all first batches; the second one through the law of total variance."""
    problem = repeated(activation, 1)
    start = problem.flatten(problem.parameters).detach()
    counts, chances = counts_and_chances(b, copies, sampling)

    def losses(w):
        outputs = torch.func.functional_call(problem.model, problem.unflatten(w), (SAMPLES,))
        return (outputs - TARGETS).square().sum(1) / 2

    each = torch.func.vmap(torch.func.jacrev(losses))  # (batches, 3, p)
    batch_gradients = torch.from_numpy(counts / b) @ each(start[None])[0]
    after = each(start - RATE * batch_gradients).detach().numpy()
    full = after.mean(1)
    noise = ((after - full[:, None]) ** 2).sum((1, 2)) / 3
    mean = chances @ full
    return sampling.variance_factor(b, 3 * copies) * chances @ noise + chances @ (full**2).sum(1) - mean @ mean


@pytest.mark.parametrize("sampling", [WITH, WITHOUT], ids=["with", "without"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_left_out_falls_as_it_should(activation, sampling):
    """Errors of the first order fall as 1/b^2, of the second as 1/b^3; batches without replacement take 2/3 of the data."""
    sizes = np.array([16, 32, 64])
    errors = {"first": [], "second": [], "no third moments": [], "kappa^2 for kappa_3": []}
    for b in sizes.tolist():
        copies = b // 2
        problem = repeated(activation, copies)
        law = sn.predict.propagation(problem, None, RATE, 1, [b], order=2, sampling=sampling).isel(step=-1)
        exact = enumerated(activation, b, copies, sampling)
        kappa, skewness = float(law["kappa"][0]), float(law["gradient_variance_skewness"])
        whole, factor = float(law["gradient_variance"][0]), sampling.third_moment_factor(b, 3 * copies)
        errors["first"].append(kappa * float(law["gradient_variance_leading"]) - exact)
        errors["second"].append(whole - exact)
        errors["no third moments"].append(whole - factor * skewness - exact)
        errors["kappa^2 for kappa_3"].append(whole + (kappa**2 - factor) * skewness - exact)
    slopes = {name: np.polyfit(np.log(sizes), np.log(np.abs(e)), 1)[0] for name, e in errors.items()}
    assert slopes["first"] == pytest.approx(-2, abs=0.1)
    assert slopes["second"] == pytest.approx(-3, abs=0.1)
    # b^2 times an error, extrapolated to b = infinity from sizes that double
    limits = {name: abs(np.dot([1, -6, 8], sizes**2 * e) / 3) for name, e in errors.items()}
    assert limits["second"] < 1e-4 * limits["first"]
    assert limits["no third moments"] > 1e-3 * limits["first"]
    if sampling is WITHOUT:
        assert limits["kappa^2 for kappa_3"] > 1e-3 * limits["first"]
