"""Networks by name."""

import pytest
import torch

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
