"""Inputs by their moments: those of finitely many points give the same Fractions as the points, and so do Gaussian ones."""

import itertools
import math
from fractions import Fraction as F

import numpy as np
import pytest

import shotnoise as sn
from shotnoise.predict import networks
from shotnoise.predict.networks import Moments, Points, inputs, means, model, quantities, wishart
from shotnoise.predict.networks.residues import residues

QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")
PRIME = 2**31 - 1
TWO = Points([[0], [2]], [F(1, 3), F(2, 3)])
THREE = Points([[1, 0], [F(1, 2), -1], [-1, 1]], [F(1, 2), F(1, 4), F(1, 4)])
A2, A3 = [1, F(1, 2), 1], [0, 1, 0, F(1, 3)]
CASES = {  # student, teacher, activation, points, step
    "depth 1, start": ([[[1, 2]]], [[[3, 1]]], None, THREE, 0),
    "depth 1": ([[[1, 2]]], [[[3, 1]]], None, THREE, 1),
    "depth 1, two steps": ([[[1]]], [[[3]]], None, TWO, 2),
    "depth 2": ([[[1, 0], [1, 2]], [[1, -1]]], [[[1, 1]], [[2]]], None, THREE, 1),
    "depth 2, two steps": ([[[1]], [[2]]], [[[1]], [[1]]], None, TWO, 2),
    "depth 2, two inputs, two steps": ([[[1, 2]], [[1]]], [[1, 1]], None, THREE, 2),
    "depth 2, quadratic": ([[[1, 1]], [[2]]], [[[1, 0]], [[1]]], A2, THREE, 1),
    "depth 2, cubic": ([[[1]], [[2]]], [[[1]], [[1]]], A3, TWO, 1),
    "depth 2, cubic, start": ([[[1, 1], [0, 1]], [[1, 2]]], [[[1, 1]], [[1]]], A3, THREE, 0),
    "depth 2, quadratic, two steps": ([[[1]], [[F(1, 2)]]], [[[1]], [[1]]], [0, 1, 1], TWO, 2),
    "depth 3": ([[[1, 1]], [[2]], [[-1]]], [[[1, 0]], [[1]], [[1]]], None, THREE, 1),
    "depth 3, quadratic": ([[[1]], [[2]], [[-1]]], [[[1]], [[1]], [[1]]], A2, TWO, 1),
    "depth 3, quadratic, start": ([[[1, 1]], [[2]], [[-1]]], [[[1, 0]], [[1]], [[1]]], A2, THREE, 0),
}  # fmt: skip


def polynomial(quantity, *args, **options):
    return getattr(networks, f"{quantity}_polynomial")(*args, **options).coefficients.tolist()


def moments_of(points):
    """From the definition, in plain fractions."""

    def moment(exponents):
        return sum(
            p * math.prod((F(v) ** a for v, a in zip(x, exponents, strict=True)), start=F(1))
            for p, x in zip(points.probabilities, points.points.tolist(), strict=True)
        )

    return moment


LARGE = ("depth 2, two inputs, two steps", "depth 2, quadratic, two steps", "depth 3, quadratic")


@pytest.mark.parametrize("name", [own for own in CASES if own not in LARGE])
def test_moments_of_points_give_the_same_as_the_points(name):
    student, teacher, activation, points, step = CASES[name]
    rates = [F(1, 2), F(1, 3)]
    moment = moments_of(points)

    def broken(exponents):  # the twin: fourth moments that are off
        return moment(exponents) + (F(1, 100) if sum(exponents) == 4 else 0)

    for quantity in QUANTITIES:
        arguments = (student, teacher, rates, step)
        wanted = polynomial(quantity, *arguments, activation=activation, inputs=points)
        assert polynomial(quantity, *arguments, activation=activation, inputs=Moments(moment)) == wanted, quantity
    assert polynomial("gradient_variance", *arguments, activation=activation, inputs=Moments(broken)) != polynomial(
        "gradient_variance", *arguments, activation=activation, inputs=points
    )


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_agree_modulo_a_prime(name):
    """A coefficient that is wrong would agree once in two thousand million times."""
    student, teacher, activation, points, step = CASES[name]
    own = model.network(student, teacher, [F(1, 2), F(1, 3)][:step], step, activation)
    moment = moments_of(points)
    found = [
        quantities._modulo(quantities.paths(own, known, "gradient_variance"), "gradient_variance", 0, PRIME).tolist()
        for known in (points, Moments(moment), Moments(lambda a: moment(a) + (F(1, 100) if sum(a) == 4 else 0)))
    ]
    assert found[0] == found[1] != found[2]


def modulo(values):
    return residues(values, PRIME)


def double_factorial(n):
    return math.prod(range(n, 0, -2))


@pytest.mark.parametrize(
    ("student", "teacher", "activation", "step"),
    [
        ([[[1, 0], [1, 2]], [[1, -1]]], [[2, 1]], None, 1),
        ([[[1]], [[2]]], [[3]], None, 2),
        ([[[1, 1]], [[2]]], [[[1, 0]], [[1]]], [0, 1, 1], 1),
        ([[[1, 1]], [[2]], [[1]]], [[[1, 0]], [[1]], [[1]]], [0, 1, 1], 0),
    ],
)
def test_moments_of_the_normal_distribution_are_gaussian_inputs(student, teacher, activation, step):
    """For linear networks against the engines for sample covariances, which share nothing with the moments."""

    def normal(exponents):
        return 0 if any(a % 2 for a in exponents) else math.prod(double_factorial(a - 1) for a in exponents)

    for quantity in QUANTITIES:
        arguments = (student, teacher, F(1, 24), step)
        found = polynomial(quantity, *arguments, activation=activation, inputs=Moments(normal))
        assert found == polynomial(quantity, *arguments, activation=activation)


def test_a_table_and_what_is_missing_in_it():
    problem = ([[[1]], [[2]]], [[1]], F(1, 24), 1)
    table = {(d,): F(1, d + 1) if d % 2 == 0 else 0 for d in range(13)}
    whole = networks.gradient_variance_polynomial(*problem, inputs=Moments(table))
    assert whole.exact and whole.degree == 6
    del table[6,]
    message = r"E x_1\^6, exponents \(6,\), is missing; this question needs all of p = 1 inputs up to degree 12"
    with pytest.raises(sn.InputError, match=message):
        networks.gradient_variance_polynomial(*problem, inputs=Moments(table))
    assert networks.gradient_variance_polynomial(*problem[:3], 0, inputs=Moments(table)).degree == 1  # four are enough


BAD = {
    r"E x_1\^2 x_2\^1, exponents \(2, 1\), is nan, not a finite": lambda a: np.nan if a == (2, 1) else 1.0,
    r"exponents \(0, 0\), is 2; it must be 1": lambda a: 2,
    r"x_2 would have the variance -1": lambda a: int(a[1] < 2),
    r"a table \{exponents: value\} or a function of them; got 4": 4,
    r"exponents \(1,\), but the student takes 2 inputs": {(0, 0): 1, (1,): 0},
}


@pytest.mark.parametrize("message", BAD)
def test_refusals(message):
    with pytest.raises(sn.InputError, match=message):
        networks.gradient_variance_polynomial([[[1, 1]], [[1]]], [[1, 2]], F(1, 24), 1, inputs=Moments(BAD[message]))


@pytest.mark.parametrize(("variables", "degree"), [(1, 5), (2, 4), (3, 3)])
def test_moments_of_means_by_enumeration(variables, degree):
    """Three values of a vector, batches of 1 to 3."""
    rng = np.random.default_rng(variables)
    values = rng.integers(0, 4, (3, variables)).astype(object)
    shares = [F(1, 2), F(1, 3), F(1, 6)]
    exponents = wishart.monomials(variables, degree)
    singles = [sum(p * math.prod(int(x) ** e for x, e in zip(v, a, strict=True)) for p, v in zip(shares, values, strict=True)) for a in exponents]  # fmt: skip
    found = means.moments_of_means(modulo(singles), variables, degree, PRIME)
    for b in (1, 2, 3):
        wanted = [F(0)] * len(exponents)
        for batch in itertools.product(range(3), repeat=b):
            chance, mean = math.prod(shares[k] for k in batch), sum(values[k] for k in batch) * F(1, b)
            for row, a in enumerate(exponents):
                wanted[row] += chance * math.prod((m**e for m, e in zip(mean, a, strict=True)), start=F(1))
        powers = modulo([F(1, b) ** k for k in range(found.shape[1])])
        got = [sum(int(c) * int(p) for c, p in zip(row, powers, strict=True)) % PRIME for row in found]
        assert got == [int(v) for v in modulo(wanted)]
        if b > 1:
            assert got != [int(v) for v in modulo(singles)]


def test_many_points_cost_no_more_than_their_moments():
    """Thirteen points: from known weights the batch gradient has two entries; later, five monomials of degree two."""
    points = Points([[k, k * k % 7 - 3] for k in range(-6, 7)])
    problem = ([[[1, 1]], [[2]]], [[1, 2]], F(1, 24))
    for step in (1, 2):
        own = quantities.paths(model.network(*problem, step), points, "gradient_variance")
        assert own.seconds < 20 and isinstance(own._later, inputs.ByMoments) and own._spanned
        found = quantities.polynomial(own, "gradient_variance", 0)
        as_moments = networks.gradient_variance_polynomial(*problem, step, inputs=Moments(moments_of(points)))
        assert found == as_moments.coefficients.tolist()


def test_points_that_all_say_the_same_are_no_noise():
    found = networks.gradient_variance_polynomial(
        [[[1]], [[1]]], [[4]], F(1, 24), 1, inputs=Points([[1], [-1]])
    )  # x^2 = 1
    assert found.coefficients.tolist() == [0]


def test_wide_inputs():
    """Few points in many dimensions: as many means as points. Moments of so many inputs are refused with their number."""
    rng = np.random.default_rng(0)
    points = Points(rng.integers(-1, 2, (4, 30)))
    problem = ([rng.integers(-1, 2, (2, 30)), [[1, 1]]], [np.ones((1, 30), int), [[1]]], F(1, 24), 1)
    found = networks.gradient_variance_polynomial(*problem, activation=[0, 1, 1], inputs=points)
    assert found.exact and 1 <= found.degree <= 10
    for inputs_ in (Moments(lambda a: 1), "gaussian"):
        with pytest.raises(sn.InputError, match="would take more memory than there is"):
            networks.gradient_variance_polynomial(*problem, activation=[0, 1, 1], inputs=inputs_)
    linear = ([np.ones((1, 8), int), [[1]]], np.zeros((1, 8), int), F(1, 24), 1)
    with pytest.raises(
        sn.InputError, match="moments: 125970 of them would be needed, all of p = 8 inputs up to degree 12"
    ):
        networks.gradient_variance_polynomial(*linear, inputs=Moments(lambda a: 1))
