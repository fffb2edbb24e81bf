"""Floats: the centred algebra and the traces against exact fractions of the very same numbers, within their bounds."""

import itertools
import math
from fractions import Fraction as F

import numpy as np
import pytest

import shotnoise as sn
from shotnoise.predict import networks
from shotnoise.predict.networks import balls, centred, engines, lattice, model, traces, wishart

QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")
SHAPES = {  # inputs, then outputs of every layer; steps; layer
    "one layer": ((2, 2), 2, 0),
    "scalar": ((1, 1, 1), 3, 0),
    "scalar, wide": ((1, 3, 1), 2, 1),
    "two inputs": ((2, 3, 2), 1, 1),
    "two inputs, first layer": ((2, 2, 1), 1, 0),
    "three inputs": ((3, 2, 1), 1, 1),
    "three layers": ((2, 2, 1, 2), 1, 1),
    "three layers, last": ((1, 2, 1, 1), 1, 2),
}


def drawn(widths, step, seed=0):
    rng = np.random.default_rng(seed)
    student = [rng.normal(size=shape) for shape in zip(widths[1:], widths[:-1], strict=True)]
    return student, rng.normal(size=(widths[-1], widths[0])), rng.uniform(0.02, 0.1, step).tolist(), step


def within(found, exact):
    values, errors = found
    exact = [*exact, *[F(0)] * (len(values) - len(exact))]
    return all(abs(F(v) - e) <= F(r) for v, e, r in zip(values.tolist(), exact, errors.tolist(), strict=True))


@pytest.mark.parametrize(
    "name", [pytest.param(own, marks=pytest.mark.slow) if own == "three inputs" else own for own in SHAPES]
)
def test_floats_lie_within_their_bounds_of_the_exact_values(name, monkeypatch):
    widths, step, layer = SHAPES[name]
    own = model.network(*drawn(widths, step))
    for quantity in QUANTITIES if step < 3 else QUANTITIES[:1]:
        exact = lattice.polynomial(own, quantity, layer)
        found = centred.polynomial(own, quantity, layer)
        assert within(found, exact), quantity
        for b in (1, 10):
            at = F(1, b)
            value = sum(c * at**k for k, c in enumerate(exact))
            error = sum(F(r) * at**k for k, r in enumerate(found[1].tolist()))
            assert error < F(1, 10**8) * value, (quantity, b)  # and the bounds say something
        with monkeypatch.context() as patch:  # the broken twin: a machine of 80 binary digits is claimed
            for module in (balls, centred):
                patch.setattr(module, "EPS", 2.0**-80)
            patch.setattr(balls, "TINY", 0.0)
            assert not within(centred.polynomial(own, quantity, layer), exact)


def test_the_verb_gives_the_bounds_and_the_error_at_a_batch_size():
    student, teacher, rates, step = drawn((1, 1, 1), 2)
    floats = networks.gradient_variance_polynomial(student, teacher, rates, step)
    exact = networks.gradient_variance_polynomial(
        *([[[F(v) for v in row] for row in W.tolist()] for W in own] for own in (student, [teacher])),
        [F(a) for a in rates],
        step,
    )
    assert floats.engine == "centred covariances in floats" and exact.engine == "covariances on a lattice"
    assert within((floats.coefficients, floats.coefficient_errors), exact.coefficients.tolist())
    assert exact.error(3) == 0 and not exact.coefficient_errors.any()
    for b in (1, 2, 30):
        gap = abs(F(floats(b)) - exact(b))
        assert gap <= F(floats.error(b)) < F(1, 10**9) * exact(b)
    assert floats.coefficients[0] == floats.coefficient_errors[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "step"), [((1, 1, 1), 4), ((2, 2, 2), 2)])
def test_what_takes_longest_in_fractions(widths, step):
    """Short fractions that floats hold, so that the exact engine is quick enough."""
    rng = np.random.default_rng(1)
    student = [rng.integers(-8, 9, shape) / 8 for shape in zip(widths[1:], widths[:-1], strict=True)]
    own = model.network(student, rng.integers(-8, 9, (widths[-1], widths[0])) / 8, 1 / 32, step)
    assert within(centred.polynomial(own, "gradient_variance", 0), lattice.polynomial(own, "gradient_variance", 0))


@pytest.mark.parametrize("quantity", QUANTITIES[:3])
@pytest.mark.parametrize("layer", [0, 1])
def test_traces_in_floats_lie_within_their_bounds(quantity, layer):
    student, teacher, (rate,), _ = drawn((3, 4, 2), 1)
    found = np.array(traces.polynomial(student, teacher, rate, quantity, layer))
    errors = traces.error_bounds(student, teacher, rate, quantity, layer)
    exact = traces.polynomial([np.vectorize(F)(W) for W in student], np.vectorize(F)(teacher), F(rate), quantity, layer)
    assert within((found, errors), exact)
    assert (errors[1:] < 1e-5 * np.abs(found[1:])).all()
    assert not within((found, errors * 1e-9), exact)


def test_traces_equal_centred_algebra():
    student, teacher, rates, step = drawn((2, 6, 3), 1)
    own = model.network(student, teacher, rates, step)
    for quantity, layer in itertools.product(QUANTITIES[:3], (0, 1)):
        (values, errors), found = centred.polynomial(own, quantity, layer), engines._by_traces(own, quantity, layer)
        assert (np.abs(values - found[0]) <= errors + found[1]).all(), (quantity, layer)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_start_has_bounds_too(layer):
    student, teacher, rates, step = drawn((5, 4, 3, 2), 0)
    found = networks.gradient_variance_polynomial(student, teacher, rates, step, layer)
    student, teacher = ([np.vectorize(F)(W) for W in own] for own in (student, [teacher]))
    exact = networks.gradient_variance_polynomial(student, teacher, rates, step, layer).coefficients.tolist()
    assert within((found.coefficients, found.coefficient_errors), exact)
    assert not within((found.coefficients * (1 + 1e-11), found.coefficient_errors), exact)


@pytest.mark.parametrize(("p", "degree"), [(1, 6), (2, 4), (3, 3)])
def test_centred_moments_by_the_binomial_theorem(p, degree):
    raw, centred_ = wishart.wishart_moments(p, degree), wishart.centred_moments(p, degree)
    diagonal = [i == j for i, j in wishart.entries(p)]
    for a, found in centred_.items():
        wanted = np.zeros(degree + 1, dtype=object)
        for c in itertools.product(*(range(e + 1) if d else (e,) for e, d in zip(a, diagonal, strict=True))):
            ways = math.prod(map(math.comb, a, c)) * (-1) ** (sum(a) - sum(c))
            wanted[: len(raw[c])] += ways * np.array(raw[c], dtype=object)
        assert found == wanted[: len(found)].tolist() and not wanted[len(found) :].any()


def exactly(ball):
    return {place: F(v) for place, v in np.ndenumerate(ball.values) if v}


def test_products_and_sums_of_polynomials_hold_the_exact_ones():
    """Against a dictionary of exponents in fractions."""
    rng = np.random.default_rng(5)
    space = balls.Space(2, (0.5, 1.0))
    degrees = [(2, 1), (1, 2)]

    def names(own):
        blocks = [wishart.monomials(3, d) for d in own]
        return [[(a, b) for b in blocks[1]] for a in blocks[0]]

    def drawn_ball(own):
        shape = (space.size(own[:1]), space.size(own[1:]))
        return balls.Ball(space, own, rng.normal(size=shape), np.zeros(shape))

    x, y = map(drawn_ball, degrees)

    def named(ball):
        return {names(ball.degrees)[i][j]: v for (i, j), v in exactly(ball).items()}

    wanted, total = {}, named(x)
    for (a, v), (b, w) in itertools.product(named(x).items(), named(y).items()):
        place = tuple(tuple(map(sum, zip(*pair, strict=True))) for pair in zip(a, b, strict=True))
        wanted[place] = wanted.get(place, 0) + v * w
    for place, w in named(y).items():
        total[place] = total.get(place, 0) + w
    for found, exact in ((x * y, wanted), (x + y, total), (x.squared(), None), (x.times(0.3, 0.0), None)):
        if exact is None:
            continue
        for i, row in enumerate(names(found.degrees)):
            for j, place in enumerate(row):
                gap = abs(F(found.values[i, j]) - exact.get(place, 0))
                assert gap <= F(found.radii[i, j]) <= F(1, 10**12)
    np.testing.assert_allclose(x.squared().values, (x * x).values, rtol=1e-12)
    assert (np.abs(x.squared().values - (x * x).values) <= x.squared().radii).all()


def test_numbers_beyond_the_range_of_floats_are_refused():
    with pytest.raises(sn.InputError, match="leave the range of floats: give ints, Fractions or strings"):
        networks.gradient_variance_polynomial([[[1e80]], [[1.0]]], [[4.0]], 1.0, 1, 1)
    assert networks.gradient_variance_polynomial([[[10**80]], [[1]]], [[4]], 1, 1, 1).degree == 6
    with pytest.raises(sn.InputError, match="leave the range of floats"):
        networks.gradient_variance_polynomial(
            [[[1e80]], [[1.0]]], [[4.0]], 1.0, 1, inputs=networks.Points([[1e40], [0.0]])
        )


def test_products_of_monomials_are_found_among_many_entries():
    """Ten entries (four inputs): a table of all exponents would take gigabytes."""
    places = balls._places(10, 2, 3)
    first, second, every = (np.array(balls.monomials(10, d)).reshape(-1, 10) for d in (2, 3, 5))
    np.testing.assert_array_equal(every[places[7]], first[7] + second)
    assert places.max() < len(every) and (every[places[-1, -1]] == first[-1] + second[-1]).all()
