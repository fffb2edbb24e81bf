"""Whatever is asked, and however it ends, the user's module and the random generators are as they were, bit for bit."""

import random
from contextlib import suppress
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from model_cases import BY_NAME, CASES, Calls
from shotnoise.errors import NonFiniteError, PerSampleGradientError
from shotnoise.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def bits(tensor):
    return None if tensor is None else tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def snapshot(model):
    """Everything that must not change; tensors by identity, version and bits."""
    state = {"random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())}  # noqa: NPY002
    state["grad mode"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    state["kernels"] = torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled()
    for name, p in model.named_parameters(remove_duplicate=False):
        state["parameter", name] = id(p), p.data_ptr(), p._version, bits(p), p.requires_grad, p.is_leaf
        state["gradient", name] = id(p.grad), bits(p.grad)
    for name, b in model.named_buffers():
        state["buffer", name] = id(b), b._version, bits(b)
    for name, module in model.named_modules():
        attributes = dict(vars(module))
        for key, value in list(attributes.items()):
            if isinstance(value, dict):
                attributes[key] = [(inner, id(item)) for inner, item in value.items()]
            elif isinstance(value, list):
                attributes[key] = [id(item) for item in value]
            elif not isinstance(value, (bool, int, float, str)):
                attributes[key] = id(value)
        state["module", name] = attributes
    return state


def marked(model):
    """With gradients, hooks and flags of the user's own; calls: how often a hook on a parameter was called."""
    calls = []
    for k, p in enumerate(model.parameters()):
        if p.requires_grad:
            p.register_hook(lambda g: calls.append(g))
            p.register_post_accumulate_grad_hook(lambda p: calls.append(p))
        if k % 2:
            p.grad = torch.full_like(p, 3.0)
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: None)
        module.register_forward_pre_hook(lambda module, args: None)
    return calls


def ask_everything(problem):
    v = {name: torch.ones_like(p) for name, p in problem.parameters.items()}
    problem.loss(), problem.gradient(), problem.per_sample_gradients(), problem.hessian_vector_product(v)
    problem.fingerprints()
    for chunk in problem.passes(at_most=2):
        for gradients in chunk.per_sample.values():
            gradients.squared_norms(), gradients.gram(), gradients.sum_of_squares()
            gradients.weighted_sum(torch.ones(len(chunk.losses), 1, dtype=chunk.losses.dtype))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_of_the_table(case):
    made = case.make("mse")
    before = snapshot(made[0])
    data = bits(made[3])
    ask_everything(Problem(*made))
    assert snapshot(made[0]) == before
    assert bits(made[3]) == data


@pytest.mark.parametrize("name", ["mlp", "cnn", "batch-norm-2d", "lstm", "embedding-tied-head", "transformer-block"])
def test_gradients_and_hooks_of_the_users_own(name):
    made = BY_NAME[name].make("mse")
    calls = marked(made[0])
    before = snapshot(made[0])
    ask_everything(Problem(*made))
    assert snapshot(made[0]) == before
    assert calls == []


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training):
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.GroupNorm(1, 3)).train(training)
    model[1].train(not training)
    before = snapshot(model)
    ask_everything(Problem(model, "mse", torch.ones(4, 3), torch.ones(4, 3)))
    assert snapshot(model) == before


class Counting(nn.Module):
    """A forward pass that changes buffers, in place and by name."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().mean(0)
        return self.a(x)


def test_buffers_that_the_forward_pass_changes():
    model = Counting()
    before = snapshot(model)
    ask_everything(Problem(model, "mse", torch.ones(4, 3), torch.ones(4, 3)))
    assert snapshot(model) == before


def test_inputs_that_the_forward_pass_changes():
    inputs = torch.randn(4, 3)
    before = bits(inputs)
    ask_everything(Problem(Calls(lambda self, x: self.a(x.mul_(2)), a=nn.Linear(3, 3)), "mse", inputs, inputs))
    assert bits(inputs) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients(mode):
    made = BY_NAME["lstm"].make("mse")
    with mode():
        before = snapshot(made[0])
        ask_everything(Problem(*made))
        assert snapshot(made[0]) == before


class Remembering(nn.Module):
    """A forward pass that leaves results in attributes, one of which the loss reads."""

    def __init__(self):
        super().__init__()
        self.a, self.steps = nn.Linear(3, 3), 0

    def forward(self, x):
        self.steps += 1
        self.features = self.a(x)
        return self.features


def test_attributes_that_the_forward_pass_sets():
    model = Remembering()
    before = snapshot(model)
    loss = lambda outputs, targets: (outputs * model.features).sum(1)  # noqa: E731
    ask_everything(Problem(model, loss, torch.ones(4, 3), torch.ones(4, 3)))
    assert snapshot(model) == before
    assert (model.steps, hasattr(model, "features")) == (0, False)


def test_a_recurrent_model_can_be_copied_and_trained_afterwards():
    made = BY_NAME["lstm"].make("mse")
    ask_everything(Problem(*made))
    for model in (made[0], deepcopy(made[0])):
        model(made[2]).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_trained_model_goes_on_as_if_nothing_had_been_asked():
    def train(ask):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
            x, y = torch.randn(8, 3), torch.randn(8, 2)
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            for _ in range(4):
                optimizer.zero_grad()
                (model(x) - y).square().sum().backward()
                if ask:
                    ask_everything(Problem(model.eval(), "mse", x, y))
                    model.train()
                    with pytest.raises(PerSampleGradientError):
                        ask_everything(Problem(model, "mse", x, y))
                optimizer.step()
            return [bits(t) for t in model.state_dict().values()]

    assert train(ask=True) == train(ask=False)


class Breaking(nn.Module):
    """Raises at the k-th call of its forward pass, after drawing random numbers of every kind."""

    def __init__(self, inner, error, k):
        super().__init__()
        self.inner, self.error, self.left = inner, error, [k]

    def forward(self, x):
        x = self.inner(x)
        self.left[0] -= 1
        if self.left[0] == 0:
            torch.rand(1), np.random.random(), random.random()  # noqa: NPY002
            raise self.error
        return x


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("name", ["cnn", "packed-attention", "lstm", "operation-without-vmap"])
def test_an_error_in_the_middle_of_the_forward_pass(name, error):
    """At each call in turn: probes, chunks, fallback, double backward."""
    made = BY_NAME[name].make("mse")
    calls = marked(made[0])
    raised = 0
    for k in (1, 2, 3, 4, 6, 8, 10, 13, 17, 25, 40):
        model = Breaking(made[0], error, k)
        before = snapshot(model)
        problem = Problem(model, *made[1:])
        with suppress(Exception, KeyboardInterrupt):
            ask_everything(problem)
            model.left[0] = -1
        raised += model.left[0] == 0
        model.left[0] = k
        assert snapshot(model) == before
    assert raised > 5
    assert calls == []


@pytest.mark.parametrize("k", range(1, 12))
def test_an_error_in_the_loss(k):
    made = BY_NAME["cnn"].make("mse")
    calls, left = marked(made[0]), [k]

    def loss(outputs, targets):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return (outputs - targets).square().sum(1)

    before = snapshot(made[0])
    with pytest.raises(KeyboardInterrupt):
        ask_everything(Problem(made[0], loss, *made[2:]))
    assert snapshot(made[0]) == before
    assert calls == []


@pytest.mark.parametrize("sample", [0, 1])
def test_an_infinite_loss(sample):
    made = BY_NAME["cnn"].make("mse")
    made[3][sample] = float("inf")
    before = snapshot(made[0])
    with pytest.raises(NonFiniteError):
        ask_everything(Problem(*made))
    assert snapshot(made[0]) == before


def test_an_abandoned_pass():
    """A generator that is left in the middle leaves nothing behind."""
    made = BY_NAME["packed-attention"].make("mse")
    before = snapshot(made[0])
    passes = Problem(*made).passes(at_most=2)
    next(passes)
    assert snapshot(made[0]) == before
    passes.close()
    assert snapshot(made[0]) == before
