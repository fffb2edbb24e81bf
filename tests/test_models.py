"""Networks by name, and polynomials as activations."""

from fractions import Fraction

import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise import models
from shotnoise.datasets import load
from shotnoise.errors import InputError


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("linear", ["output"]),
        ("mlp:5", ["dense1", "output"]),
        ("mlp:64, 32", ["dense1", "dense2", "output"]),
        ("cnn:4,6", ["conv1", "conv2", "output"]),
    ],
)
def test_networks_have_the_layers_of_their_name(spec, layers):
    data = load("digits")
    model = models.build(spec, data)
    assert list(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())) == layers
    assert model(data.inputs[:3]).shape == (3, 10)


def test_regression_has_one_output_per_target():
    data = load("diabetes")
    assert models.build("mlp:4", data)(data.inputs[:2]).shape == (2, 1)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    data = load("digits")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (models.build("linear", data, seed).output.weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("spec", ["", "mlp", "mlp:", "linear:3", "cnn", "mlp:0", "mlp:-3", "resnet:50", "cnn:2,2,2,2"])
def test_other_names_are_refused(spec):
    with pytest.raises(InputError, match=r"is not known|whole numbers|cannot be halved"):
        models.build(spec, load("digits"))


def test_a_cnn_needs_images():
    with pytest.raises(InputError, match="a cnn needs images"):
        models.build("cnn:4", load("diabetes"))


class TestPolynomial:
    COEFFICIENTS = (0.25, -1.5, 0.0, 0.125)  # short binary fractions, so that all of this is exact

    def test_value_and_slope_are_the_definition(self):
        z = torch.linspace(-2, 2, 17, dtype=torch.float64, requires_grad=True)
        made = models.Polynomial(self.COEFFICIENTS)
        value = made(z)
        assert value.tolist() == [sum(c * x**k for k, c in enumerate(self.COEFFICIENTS)) for x in z.tolist()]
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert slope.tolist() == made.slope(z).tolist()
        assert slope.tolist() != models.Polynomial([0.25, -1.5, 0.125]).slope(z).tolist()

    def test_coefficients_keep_their_precision_in_any_model(self):
        made = models.Polynomial([Fraction(1, 10), 0.3]).half().double()
        assert made.coefficients == (0.1, 0.3) and repr(made) == "Polynomial([0.1, 0.3])"
        assert float(made(torch.zeros((), dtype=torch.float64))) == 0.1

    def test_they_are_part_of_the_state_and_of_the_fingerprint(self):
        def problem(*coefficients):
            line = nn.Linear(1, 1, bias=False)
            nn.init.ones_(line.weight)
            model = nn.Sequential(line, models.Polynomial(coefficients), nn.Linear(1, 1, bias=False))
            nn.init.ones_(model[2].weight)
            return sn.Problem(model, "mse", torch.ones(3, 1), torch.zeros(3, 1))

        one, same, other = problem(0, 1, 2), problem(0, 1, 2), problem(0, 1, 3)
        assert one.fingerprints() == same.fingerprints() != other.fingerprints()
        other.model.load_state_dict(one.model.state_dict())
        assert other.model[1].coefficients == (0.0, 1.0, 2.0) and one.fingerprints() == other.fingerprints()

    @pytest.mark.parametrize("wrong", [[], [1.0], [0.0, float("inf")], [float("nan"), 1.0]])
    def test_what_is_no_activation(self, wrong):
        with pytest.raises(
            InputError, match=r"coefficients=\[.*\]: c_0, c_1, \.\.\. of a polynomial of degree 1 or more"
        ):
            models.Polynomial(wrong)
