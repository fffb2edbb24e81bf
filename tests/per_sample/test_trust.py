"""A wrong rule is seen: by the slow twin in these tests, and at run time by the probe, which then goes without it."""

import pytest
import torch
from torch import nn

import slow_twin
from model_cases import BY_NAME, CASES, Calls
from shotnoise.errors import PerSampleGradientError
from shotnoise.per_sample import examination, rules, trust
from shotnoise.per_sample.chunk import BY_RULE
from shotnoise.per_sample.structure import Dense, Lookup, Outer
from shotnoise.problem import Problem
from slow_twin import agrees


def first_position_only(module, x, d, name):
    """Linear without the sum over positions."""
    return rules.linear(module, x[:, :1], d[:, :1], name)


def bias_of_one_position(module, x, d, name):
    return Dense(d.flatten(1, -2)[:, 0]) if name == "bias" else rules.linear(module, x, d, name)


def without_dilation(module, x, d, name):
    part = rules.convolution(module, x, d, name)
    if name == "bias":
        return part
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice)
    for axis in (2, 3):
        x = x.unfold(axis, 3, 1).narrow(axis, 0, d.shape[axis])
    return Outer(x.permute(0, 1, 4, 5, 2, 3), part.d)


def groups_swapped(module, x, d, name):
    part = rules.convolution(module, x, d, name)
    return part if name == "bias" else Outer(part.a, part.d.flip(1))


def padding_counted(module, x, d, name):
    return Lookup(x, d, module.num_embeddings)


def without_normalising(module, x, d, name):
    return Dense(d * x) if name == "weight" else rules.layer_norm(module, x, d, name)


def twice(rule):
    def broken(module, x, d, name):
        return rule(module, x, 1.05 * d, name)

    return broken


BROKEN = [
    ("linear-positions", nn.Linear, first_position_only),
    ("linear-positions", nn.Linear, bias_of_one_position),
    ("mlp", nn.Linear, twice(rules.linear)),
    ("conv2d-same-dilated", nn.Conv2d, without_dilation),
    ("conv2d-groups", nn.Conv2d, groups_swapped),
    ("conv3d", nn.Conv3d, twice(rules.convolution)),
    ("embedding-padding", nn.Embedding, padding_counted),
    ("layer-norm", nn.LayerNorm, without_normalising),
    ("rms-norm", nn.RMSNorm, twice(rules.rms_norm)),
    ("group-norm", nn.GroupNorm, twice(rules.group_norm)),
    ("batch-norm-2d", nn.BatchNorm2d, twice(rules.batch_norm)),
    ("called-twice", nn.Linear, twice(rules.linear)),
]


@pytest.fixture(params=BROKEN, ids=lambda broken: f"{broken[0]}-{broken[2].__name__}")
def broken(request, monkeypatch):
    name, module, rule = request.param
    monkeypatch.setitem(rules.RULES, module, rule)
    return BY_NAME[name]


def is_right(made, problem):
    _, expected = slow_twin.gradients(*made)
    found = problem.per_sample_gradients()
    return all(agrees(found[name], g) for name, g in expected.items())


def test_the_loop_sees_a_wrong_rule(broken, monkeypatch):
    monkeypatch.setattr(trust, "disagreements", lambda *probe: {})
    made = broken.make("mse")
    assert not is_right(made, Problem(*made))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_probe_sees_a_wrong_rule_and_the_numbers_stay_right(broken, dtype):
    made = broken.make("mse", dtype)
    problem = Problem(*made)
    assert is_right(made, problem)
    (chunk,) = problem.passes()
    assert "per-sample gradients by vmap (its layer's rule does not hold here)" in chunk.paths.values()


def test_the_loop_sees_axes_confused(monkeypatch):
    """What the probe protects from: as many time steps as samples, on the axis where the samples are expected."""
    monkeypatch.setattr(trust, "disagreements", lambda *probe: {})
    made = BY_NAME["sequence-first-of-three"].make("mse")
    three = (*made[:2], made[2][:3], made[3][:3])
    assert not is_right(three, Problem(*three))


@pytest.mark.parametrize("case", [case for case in CASES if case.written_out], ids=str)
def test_a_hook_that_changes_outputs_is_seen(case):
    """With a hook of the user's the recorded output is not the layer's own; whatever the path, numbers are right."""
    made = case.make("mse")
    for module in made[0].modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output: output.sin())
    assert is_right(made, Problem(*made))


@pytest.mark.parametrize("scale", [1.0, 5.0, 8.0, 30.0, 200.0])
def test_nearly_zero_losses_keep_the_fast_path(scale):
    """A saturated softmax in single precision: losses and gradients are rounding, which is no wrong rule."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(12, 4)
    targets = model(inputs).argmax(1)
    with torch.no_grad():
        model[2].weight.mul_(scale**2)
        model[2].bias.mul_(scale**2)
    problem = Problem(model, "cross_entropy", inputs, targets)
    (chunk,) = problem.passes()
    assert set(chunk.paths.values()) == {BY_RULE}
    gradients = problem.per_sample_gradients()
    _, expected = slow_twin.gradients(model, "cross_entropy", inputs, targets)
    size = max(float(g.abs().max()) for g in expected.values())
    assert all(agrees(gradients[name], g, whole=size) for name, g in expected.items())


def test_losses_that_rounding_separates_are_asked_again_in_double_precision(monkeypatch):
    """Evaluated together or alone, a sum of large terms that cancel differs in single precision by more than 2 %."""
    asked = []
    compare = examination.compare_with_alone

    def recorded(evaluation, samples):
        asked.append(evaluation.dtype)
        return compare(evaluation, samples)

    monkeypatch.setattr(examination, "compare_with_alone", recorded)
    rounding = Calls(lambda self, x: self.a(x) + _single_precision_noise(x), a=nn.Linear(3, 1))
    problem = Problem(rounding, lambda out, y: 1e-6 * out[:, 0], torch.randn(6, 3), torch.zeros(6))
    (chunk,) = problem.passes()
    assert asked == [torch.float32, torch.float64]
    assert set(chunk.paths.values()) == {BY_RULE}


def _single_precision_noise(x):
    """What depends on the size of the batch in float32 alone, as the order of a sum does."""
    return 0.0 if x.dtype == torch.float64 else len(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_that_mixes_samples_is_refused(dtype):
    centred = Calls(lambda self, x: self.a(x - x.mean(0)), a=nn.Linear(3, 2)).to(dtype)
    problem = Problem(centred, "mse", torch.randn(6, 3, dtype=dtype), torch.randn(6, 2, dtype=dtype))
    with pytest.raises(PerSampleGradientError, match="when evaluated together but .* one at a time: the model mixes"):
        next(problem.passes())


class Shared(torch.autograd.Function):
    """The identity, whose gradient is averaged over the batch."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d / len(d)


def test_a_backward_pass_that_mixes_samples_is_refused():
    model = Calls(lambda self, x: Shared.apply(self.a(x)), a=nn.Linear(3, 2))
    problem = Problem(model, "mse", torch.randn(6, 3), torch.randn(6, 2))
    with pytest.raises(PerSampleGradientError, match=r"with respect to 'a\.weight' is not the sum of their gradients"):
        next(problem.passes())


def test_the_probe_is_asked_again_when_modes_or_parameters_change():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    problem = Problem(model.eval(), "mse", torch.randn(4, 3), torch.randn(4, 3))
    assert set(next(problem.passes()).paths) == {"0.weight", "0.bias"}
    model[0].bias.requires_grad_(False)
    assert set(next(problem.passes()).paths) == {"0.weight"}
    model.train()
    with pytest.raises(PerSampleGradientError, match=r"Dropout '1' is in training mode"):
        next(problem.passes())
