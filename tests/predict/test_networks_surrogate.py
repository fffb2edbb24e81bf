"""Polynomial twins of smooth networks: what they are, how fast they get better, and the bound on their gradients."""

from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shotnoise.errors import InputError
from shotnoise.predict.networks import polynomial_surrogate, surrogate
from shotnoise.predict.networks.activations import NAMED, Smooth, derivative

SMOOTH = ["tanh", "sigmoid", "softplus", "silu", "gelu", "elu"]


def case(seed, *, widths=(3, 5, 2), teacher=None, steps=4, batch=6, scale=0.6):
    rng = np.random.default_rng(seed)

    def layers(sizes):
        return [scale * rng.normal(size=(m, n)) for n, m in pairwise(sizes)]

    return layers(widths), layers(teacher or widths), rng.uniform(-1.5, 1.5, size=(steps, batch, widths[0]))


def by_autograd(W, V, batches, rate, s):
    """Gradients at every step from the definition of the loss alone."""
    own = [torch.tensor(w, requires_grad=True) for w in W]

    def outputs(layers, x):
        for k, w in enumerate(layers):
            x = x @ w.T
            if k < len(layers) - 1:
                x = s(x)
        return x

    found = []
    for batch in torch.from_numpy(batches):
        loss = 0.5 * (outputs(own, batch) - outputs([torch.from_numpy(v) for v in V], batch)).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, own)
        found.append([g.numpy() for g in gradients])
        own = [(w - rate * g).detach().requires_grad_() for w, g in zip(own, gradients, strict=True)]
    return found


@pytest.mark.parametrize("activation", SMOOTH)
def test_the_gap_is_that_of_two_trainings_by_automatic_differentiation(activation):
    W, V, x = case(1)
    found = polynomial_surrogate(W, V, x, 0.1, activation=activation, degrees=[5])
    fit = Smooth.on(activation, found.attrs["radius"]).polynomial(5)
    power = torch.from_numpy(fit.value.convert(kind=np.polynomial.Polynomial).coef)
    assert len(power) == 6

    def polynomial(z):
        return sum(c * z**k for k, c in enumerate(power))

    own = by_autograd(W, V, x, 0.1, NAMED[activation][0])
    twin = by_autograd(W, V, x, 0.1, polynomial)
    gaps = [[np.linalg.norm(a - b) for a, b in zip(g, h, strict=True)] for g, h in zip(own, twin, strict=True)]
    np.testing.assert_allclose(found["surrogate_gap"][0], gaps, rtol=1e-9)
    assert found["surrogate_gap"].dims == ("degree", "step", "layer")


def test_what_the_run_visits_lies_in_half_the_interval():
    W, V, x = case(2, widths=(3, 4, 4, 2), teacher=(3, 6, 2))
    found = polynomial_surrogate(W, V, x, 0.2, activation="tanh", degrees=[3])
    largest = 0.0
    own = [w.copy() for w in W]
    for batch, gradients in zip(x, by_autograd(W, V, x, 0.2, torch.tanh), strict=True):
        for layers in (own, V):
            z = batch
            for w in layers[:-1]:
                h = z @ w.T
                largest, z = max(largest, np.abs(h).max()), np.tanh(h)
        own = [w - 0.2 * g for w, g in zip(own, gradients, strict=True)]
    assert found.attrs["radius"] == pytest.approx(2 * largest, rel=1e-9)


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 5, 2), (2, 3, 3, 1)])
def test_the_bound_holds(activation, widths):
    for seed in range(5):
        W, V, x = case(seed, widths=widths)
        found = polynomial_surrogate(W, V, x, 0.1, activation=activation, degrees=[3, 7, 13])
        gap, bound = found["surrogate_gap"].values, found["surrogate_gap_bound"].values
        assert (gap <= bound + 1e-14).all()
        assert np.isfinite(found["surrogate_gap_bound"].sel(step=0, degree=13)).all()


def violations(cases=50):
    found = 0
    for seed in range(cases):
        W, V, x = case(seed, widths=(1, 1, 1), steps=2, batch=1, scale=1.0)
        result = polynomial_surrogate(W, V, x, 0.3, activation="tanh", degrees=[5, 9])
        found += bool((result["surrogate_gap"] > result["surrogate_gap_bound"] + 1e-14).any())
    return found


@pytest.mark.parametrize("error", ["off", "off_slope"])
def test_both_errors_of_the_polynomial_are_needed(error, monkeypatch):
    """In scalar networks with one sample the bound is tight enough to be broken by leaving a term out."""
    assert violations() == 0
    bounds = surrogate._bounds

    def broken(own, V, x, rates, smooth, fit):
        return bounds(own, V, x, rates, smooth, replace(fit, **{error: 0.0}))

    monkeypatch.setattr(surrogate, "_bounds", broken)
    assert violations() > 0


def test_what_the_twin_of_the_teacher_answers_differently_is_needed(monkeypatch):
    """At every step the second of two calls is the teacher's."""
    true, calls = surrogate._forward_bounds, count()

    def broken(before, inputs, norms, apart, smooth, fit):
        h, z, inside = true(before, inputs, norms, apart, smooth, fit)
        return [0 * each for each in h] if next(calls) % 2 else h, z, inside

    monkeypatch.setattr(surrogate, "_forward_bounds", broken)
    assert violations() > 0


@pytest.mark.parametrize("layer", [0, 1])
def test_the_bound_is_reached_where_only_the_weights_differ(layer):
    """A scalar linear network whose terms all have one sign: what a change of one weight does to both gradients."""
    w, v, x, d = (
        [np.array([[0.7]]), np.array([[1.3]])],
        [np.array([[0.2]]), np.array([[0.1]])],
        np.array([[[0.9]]]),
        0.4,
    )
    smooth = Smooth.on(lambda z: z * 1.0, 10.0)
    exact = replace(smooth.polynomial(1), off=0.0, off_slope=0.0)
    smooth = replace(smooth, bend=0.0)
    moved = [one + d * (k == layer) for k, one in enumerate(w)]
    path = surrogate._Path.of(w, v, x, np.array([0.1]), *surrogate._exact(smooth))
    apart = d * (np.arange(2) == layer)
    bound = surrogate._step_bound(path.passes[0], v, x[0], apart, smooth, exact)
    own, other = (by_autograd(one, v, x, 0.1, lambda z: z)[0] for one in (w, moved))
    np.testing.assert_allclose(bound, [abs(float((b - a).item())) for a, b in zip(own, other, strict=True)], rtol=1e-6)


def test_the_bound_sees_the_slope_of_the_derivative():
    """s(z) = z^2 / 2 on the interval that is reached: the first weight moves by d, and the bound is off by d^2 only."""
    w, v, x, d = (
        [np.array([[0.7]]), np.array([[1.3]])],
        [np.array([[0.2]]), np.array([[0.1]])],
        np.array([[[0.9]]]),
        0.02,
    )
    smooth = Smooth.on(lambda z: z * z / 2, 0.9 * (0.7 + d) * (1 + 1e-9))
    exact = replace(smooth.polynomial(2), off=0.0, off_slope=0.0)
    path = surrogate._Path.of(w, v, x, np.array([0.1]), *surrogate._exact(smooth))
    bound = surrogate._step_bound(path.passes[0], v, x[0], np.array([d, 0.0]), smooth, exact)
    own, other = (by_autograd([one, w[1]], v, x, 0.1, lambda z: z * z / 2)[0] for one in (w[0], w[0] + d))
    change = np.array([abs(float((b - a).item())) for a, b in zip(own, other, strict=True)])
    assert (change <= bound).all()
    assert (bound <= change + 2 * d**2).all()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "silu"])
def test_the_error_falls_at_the_rate_of_the_nearest_singularity(activation):
    smooth = Smooth.on(activation, 6.56)
    degrees = np.arange(21, 62, 8)
    errors = [smooth.polynomial(int(d)).off_slope for d in degrees]
    rate = np.exp(-np.polyfit(degrees, np.log(errors), 1)[0])
    assert rate == pytest.approx(smooth.rate, rel=0.04)
    wrong = Smooth.on({"tanh": "sigmoid"}.get(activation, "tanh"), 6.56).rate
    assert rate != pytest.approx(wrong, rel=0.04)


def test_tanh_and_sigmoid_have_the_rates_of_their_poles():
    a = np.pi / 2 / 6.56
    assert Smooth.on("tanh", 6.56).rate == pytest.approx(a + np.sqrt(1 + a * a))
    assert Smooth.on("gelu", 6.56).rate == np.inf
    assert Smooth.on(lambda z: torch.tanh(z), 6.56).rate is None


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", torch.abs, F.hardtanh, F.softshrink, lambda z: (z - 0.3).abs()]
)
def test_kinks_are_refused_with_where_and_why(activation):
    W, V, x = case(3)
    with pytest.raises(InputError, match=r"has a kink: its derivative jumps by .* at .*predict\.propagation"):
        polynomial_surrogate(W, V, x, 0.1, activation=activation, degrees=[5])


@pytest.mark.parametrize("steep", [1.0, 30.0, 300.0])
def test_steep_is_not_kinked(steep):
    smooth = Smooth.on(lambda z: torch.tanh(steep * z), 3.0)
    assert smooth.steepest == pytest.approx(steep, rel=1e-3)


def test_no_degree_helps_at_a_kink():
    """Why they are refused: half of the jump stays, whatever the degree."""
    grid = np.linspace(-1, 1, 20_001)
    for degree in (5, 41, 161):
        slope = np.polynomial.Chebyshev.interpolate(lambda x: derivative(torch.relu, x), degree)
        assert np.abs(slope(grid) - derivative(torch.relu, grid)).max() >= 0.49


def test_a_bound_that_cannot_keep_the_twin_inside_says_so():
    W, V, x = case(4, scale=1.2, steps=8)
    found = polynomial_surrogate(W, V, x, 0.3, activation="tanh", degrees=[3])
    bound = found["surrogate_gap_bound"].values[0]
    assert np.isinf(bound[-1]).all()
    lost = int(np.isinf(bound).any(1).argmax())
    assert np.isinf(bound[lost:]).all()
    assert np.isfinite(bound[:lost]).all()
    assert "propagation" in found.attrs["caution"]


def test_linear_activations_have_no_gap():
    W, V, x = case(5)
    found = polynomial_surrogate(W, V, x, 0.1, activation=lambda z: 2 * z + 1, degrees=[1])
    assert float(found["surrogate_gap"].max()) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": np.ones((4, 3))}, r"batches: finite numbers \(steps, batch size, inputs\)"),
        ({"batches": np.full((2, 3, 3), np.nan)}, "batches: finite numbers"),
        ({"batches": np.ones((2, 3, 7))}, "takes 3 inputs, but the batches have 7"),
        ({"student": []}, "student: at least one weight matrix"),
        ({"student": [np.ones((2, 3)), np.ones((2, 4))]}, "layer 1 takes 4 inputs but layer 0 gives 2"),
        ({"student": [np.ones(3)]}, r"student\[0\]: a matrix"),
        ({"teacher": [np.ones((5, 3))]}, "2 outputs, the teacher 5"),
        ({"activation": "mish?"}, "one of tanh"),
        ({"activation": torch.sum}, "keep the shape"),
        ({"degrees": []}, "at least one"),
        ({"degrees": [0]}, "degree=0"),
        ({"learning_rate": 1e5}, "pre-activations reach"),
    ],
)
def test_bad_input(change, message):
    W, V, x = case(6)
    given = {"student": W, "teacher": V, "batches": x, "learning_rate": 0.1, "activation": "softplus", "degrees": [3]}
    given |= change
    with pytest.raises(InputError, match=message):
        polynomial_surrogate(given["student"], given["teacher"], given["batches"], given["learning_rate"],
                             activation=given["activation"], degrees=given["degrees"])  # fmt: skip
