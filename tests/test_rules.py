import json
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.rules import (
    RULES,
    SGD,
    SHARED,
    Adam,
    AdamW,
    AveragedMomentum,
    Clipped,
    DampedNewton,
    HeavyBall,
    Matrix,
    NaturalGradient,
    Preconditioned,
    RMSProp,
    Rule,
    from_name,
)
from shotnoise.schedules import Cosine, InverseTime, values

RUNS, PARAMETERS, STEPS = 5, 7, 40
RATES = {"constant": 0.05, "schedule": InverseTime(0.1, 0.1), "sequence": [0.1, 0.0, 0.05, 0.2] * (STEPS // 4)}
INDEFINITE = (np.arange(49.0).reshape(7, 7) % 5 - 1) / 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Quadratic:
    """Noisy gradients of 1/2 w.K w, K with two neighbouring bands: each row of its own, computed entry by entry so
    that a row comes out the same in any crowd."""

    curvature: Tensor
    noise: Tensor

    @classmethod
    def random(cls, dtype: torch.dtype = torch.float64) -> "Quadratic":
        curvature = 0.2 + normal(RUNS, PARAMETERS, seed=1).abs()
        return cls(curvature.to(dtype), normal(STEPS, RUNS, PARAMETERS, seed=2).to(dtype))

    def gradient(self, weights: Tensor, t: int, rows: slice = slice(None)) -> Tensor:
        bent = self.curvature[rows] * weights
        return bent + 0.3 * bent.roll(1, 1) + 0.2 * self.noise[t, rows]


@dataclass(frozen=True)
class Regression:
    """Linear regression with squared loss, x (n, P), y (n,); the Fisher matrices run by run, from their definition."""

    x: Tensor
    y: Tensor

    @classmethod
    def random(cls, parameters: int = PARAMETERS, dtype: torch.dtype = torch.float64) -> "Regression":
        return cls(normal(20, parameters, seed=3).to(dtype), normal(20, seed=4).to(dtype))

    def hessian(self) -> Tensor:
        return self.x.T @ self.x / len(self.x)

    model_fisher = hessian

    def gradient(self, weights: Tensor) -> Tensor:
        return torch.stack([self.x.T @ (self.x @ w - self.y) / len(self.x) for w in weights])

    def fisher(self, weights: Tensor) -> Tensor:
        per_sample = [(self.x @ w - self.y)[:, None] * self.x for w in weights]
        return torch.stack([g.T @ g / len(g) for g in per_sample])


REGRESSION = Regression.random()
START = normal(RUNS, PARAMETERS, seed=5)


def path(
    rule: Rule, problem: Quadratic, weights: Tensor = START, rows: slice = slice(None), steps: int = STEPS
) -> Tensor:
    """The weights along the way, (steps + 1, R, P)."""
    weights, curvature = weights[rows].to(problem.noise.dtype).clone(), REGRESSION
    if weights.dtype == torch.float32:
        curvature = Regression.random(dtype=torch.float32)
    state, found = rule.start(weights), [weights.clone()]
    for t, rate in enumerate(values(rule.learning_rate, STEPS)[:steps]):
        rule.step(weights, problem.gradient(weights, t, rows), state, float(rate), t, curvature)
        found.append(weights.clone())
    return torch.stack(found)


def torch_path(optimizer_class, options: dict, rates, problem: Quadratic, max_norm: float | None = None) -> Tensor:
    """The same by PyTorch, one run after the other, its parameters in two tensors, the learning rate set each time.

    The weight decay is written into the optimizer afterwards, because its constructor refuses negative ones.
    """
    options = dict(options)
    weight_decay = options.pop("weight_decay", 0.0)
    runs = []
    for r in range(RUNS):
        start = START[r].to(problem.noise.dtype)
        parts = [torch.nn.Parameter(part.clone()) for part in start.split([3, PARAMETERS - 3])]
        optimizer = optimizer_class(parts, lr=0.0, weight_decay=0.0, **options)
        found = [start.clone()]
        for t, rate in enumerate(values(rates, STEPS)):
            gradient = problem.gradient(found[-1].unsqueeze(0), t, slice(r, r + 1)).squeeze(0)
            for part, g in zip(parts, gradient.split([3, PARAMETERS - 3]), strict=True):
                part.grad = g.clone()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(parts, max_norm)
            optimizer.param_groups[0].update(lr=float(rate), weight_decay=weight_decay)
            optimizer.step()
            found.append(torch.cat([part.detach() for part in parts]).clone())
        runs.append(torch.stack(found))
    return torch.stack(runs, 1)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference in units of the larger of the two, and of 1e-3 where both are smaller."""
    return float(((a - b).abs() / torch.maximum(a.abs(), b.abs()).clamp(min=1e-3)).max())


TWINS = [
    (SGD, torch.optim.SGD, {}),
    (SGD, torch.optim.SGD, {"weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"weight_decay": -0.1}),
    (SGD, torch.optim.SGD, {"momentum": 0.9}),
    (SGD, torch.optim.SGD, {"dampening": 0.5}),
    (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"momentum": 0.8, "dampening": 0.8}),
    (SGD, torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3, "weight_decay": -0.2}),
    (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, torch.optim.SGD, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {}),
    (Adam, torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (Adam, torch.optim.Adam, {"betas": (0.0, 0.99), "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"betas": (0.9, 0.0), "eps": 1e-2}),
    (Adam, torch.optim.Adam, {"amsgrad": True, "betas": (0.9, 0.5)}),
    (Adam, torch.optim.Adam, {"amsgrad": True, "weight_decay": -0.1}),
    (AdamW, torch.optim.AdamW, {"weight_decay": 0.01}),
    (AdamW, torch.optim.AdamW, {"weight_decay": 0.0}),
    (AdamW, torch.optim.AdamW, {"weight_decay": -0.3, "amsgrad": True, "betas": (0.8, 0.7)}),
    (RMSProp, torch.optim.RMSprop, {}),
    (RMSProp, torch.optim.RMSprop, {"alpha": 0.5, "eps": 1e-2, "weight_decay": 0.1}),
    (RMSProp, torch.optim.RMSprop, {"alpha": 0.0, "eps": 1e-2, "weight_decay": -0.1}),
    (RMSProp, torch.optim.RMSprop, {"momentum": 0.9}),
    (RMSProp, torch.optim.RMSprop, {"centered": True, "alpha": 0.9}),
    (RMSProp, torch.optim.RMSprop, {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
]
twins = pytest.mark.parametrize(
    ("ours", "theirs", "options"), TWINS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)

ALL = [
    SGD(0.05),
    SGD(0.05, momentum=0.9, dampening=0.5, weight_decay=-0.1),
    SGD(InverseTime(0.1, 0.1), momentum=0.9, nesterov=True, weight_decay=0.1),
    AveragedMomentum(0.05, momentum=0.9, weight_decay=0.1),
    HeavyBall(0.05, momentum=0.9, weight_decay=0.1),
    Adam(0.05, weight_decay=0.1),
    Adam(0.05, amsgrad=True),
    AdamW(0.05, weight_decay=-0.1),
    RMSProp(0.05, weight_decay=0.1),
    RMSProp(0.05, momentum=0.9, centered=True),
    Preconditioned(0.05, np.linspace(0.5, 1.5, PARAMETERS), momentum=0.5),
    Preconditioned(0.05, INDEFINITE, momentum=0.5),
    DampedNewton(0.05, damping=0.1, momentum=0.5),
    NaturalGradient(0.05, damping=0.1, momentum=0.5),
    NaturalGradient(0.05, damping=0.1, fisher="model"),
    Clipped(SGD(0.05, momentum=0.9, weight_decay=0.1), max_norm=0.5),
    Clipped(NaturalGradient(0.05, damping=0.1), max_norm=0.5),
]
every_rule = pytest.mark.parametrize("rule", ALL, ids=repr)


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@twins
def test_a_rule_is_its_torch_twin_run_by_run(ours, theirs, options, rates):
    problem = Quadratic.random()
    found, expected = path(ours(rates, **options), problem), torch_path(theirs, options, rates, problem)
    assert distance(found, expected) < 1e-12
    if ours is RMSProp or "dampening" in options or not options.get("momentum", ours is not SGD):
        assert torch.equal(found, expected), "here the operations are the same ones"


@twins
def test_a_rule_is_its_torch_twin_in_single_precision(ours, theirs, options):
    problem = Quadratic.random(torch.float32)
    found, expected = path(ours(0.05, **options), problem), torch_path(theirs, options, 0.05, problem)
    assert found.dtype == torch.float32 and distance(found, expected) < 1e-3


class DampedFromTheStart(SGD):
    def _buffer(self, gradient, state, t):
        return super()._buffer(gradient, state, t + 1)


class ForgetfulNesterov(SGD):
    def _advance(self, weights, gradient, state, learning_rate, t):
        SGD(self.learning_rate, self.momentum)._advance(weights, gradient, state, learning_rate, t)


class UncorrectedAdam(Adam):
    def _advance(self, weights, gradient, state, learning_rate, t):
        super()._advance(weights, gradient, state, learning_rate, t + 1000)


class LateAdam(Adam):
    def _advance(self, weights, gradient, state, learning_rate, t):
        super()._advance(weights, gradient, state, learning_rate, t + 1)


class EpsilonInTheRoot(RMSProp):
    def _advance(self, weights, gradient, state, learning_rate, t):
        square = state["square"].mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        weights.addcdiv_(gradient, (square + self.eps).sqrt(), value=-learning_rate)


@pytest.mark.parametrize(
    ("broken", "theirs", "options"),
    [
        (DampedFromTheStart, torch.optim.SGD, {"momentum": 0.8, "dampening": 0.8}),
        (ForgetfulNesterov, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (UncorrectedAdam, torch.optim.Adam, {}),
        (LateAdam, torch.optim.Adam, {}),
        (Adam, torch.optim.AdamW, {"weight_decay": 0.1}),
        (AdamW, torch.optim.Adam, {"weight_decay": 0.1}),
        (EpsilonInTheRoot, torch.optim.RMSprop, {"eps": 1e-8}),
    ],
)
def test_the_comparison_rejects_a_broken_twin(broken, theirs, options):
    for problem in (Quadratic.random(), Quadratic.random(torch.float32)):
        assert distance(path(broken(0.05, **options), problem), torch_path(theirs, options, 0.05, problem)) > 2e-3


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_the_defaults_are_torchs_own(name):
    theirs = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
    }
    defaults = theirs[name]([torch.zeros(1)]).defaults
    rule = from_name(name, **({"learning_rate": 1e-3} if name == "sgd" else {}))
    ours = {entry.name: getattr(rule, entry.name) for entry in fields(rule)}
    assert ours.pop("learning_rate") == defaults["lr"]
    assert ours == {key: defaults[key] for key in ours}


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
@pytest.mark.parametrize(("ours", "theirs", "options"), [TWINS[5], TWINS[10]])
def test_clipping_is_torchs(ours, theirs, options, max_norm):
    problem = Quadratic.random()
    found = path(Clipped(ours(0.05, **options), max_norm), problem)
    assert distance(found, torch_path(theirs, options, 0.05, problem, max_norm)) < 1e-12
    per_layer = torch_path(theirs, options, 0.05, problem)
    assert (distance(found, per_layer) < 1e-12) == (max_norm == 100)


@given(st.floats(0.01, 10), st.integers(0, 1000))
def test_clipping_turns_no_gradient_and_leaves_none_longer(max_norm, seed):
    gradient, weights = normal(4, 3, seed=seed), torch.zeros(4, 3, dtype=torch.float64)
    rule = Clipped(SGD(1.0), max_norm)
    rule.step(weights, gradient, rule.start(weights), 1.0, 0)
    norms = gradient.norm(dim=1)
    assert torch.allclose(-weights.norm(dim=1) * gradient.T, weights.T * norms)
    assert torch.allclose(weights.norm(dim=1), norms.clamp(max=max_norm), rtol=1e-3)
    assert (weights.norm(dim=1) <= min(max_norm, 10**6) * (1 + 1e-15)).all()


def stepped(rule: Rule, weights: Tensor, gradients: Tensor, rates: list[float] | None = None, curvature=None) -> Tensor:
    """The weights after updates with these gradients, (T, R, P)."""
    weights = weights.clone()
    state = rule.start(weights)
    for t, gradient in enumerate(gradients):
        rate = values(rule.learning_rate, len(gradients))[t] if rates is None else rates[t]
        rule.step(weights, gradient, state, float(rate), t, curvature)
    return weights


@pytest.mark.parametrize("weight_decay", [0.25, -0.25])
def test_weight_decay_of_either_sign_is_the_formula(weight_decay):
    w, g = START, normal(1, RUNS, PARAMETERS, seed=6)
    decayed = g[0] + weight_decay * w
    kept = {"weight_decay": weight_decay}
    for rule in (
        SGD(0.5, **kept),
        SGD(0.5, 0.9, **kept),
        HeavyBall(0.5, 0.9, **kept),
        AveragedMomentum(1.0, 0.5, **kept),
    ):
        assert torch.allclose(stepped(rule, w, g), w - 0.5 * decayed, rtol=1e-14)
    assert torch.allclose(stepped(Adam(0.5, eps=0.0, **kept), w, g), w - 0.5 * decayed.sign(), rtol=1e-12)
    shrunk = w - 0.5 * weight_decay * w
    assert torch.allclose(stepped(AdamW(0.5, eps=0.0, **kept), w, g), shrunk - 0.5 * g[0].sign(), rtol=1e-12)
    assert torch.allclose(stepped(RMSProp(0.05, eps=0.0, **kept), w, g), w - 0.5 * decayed.sign(), rtol=1e-12)


# Numbers with few binary digits: all sums and products below are exact, so that equality is of the formulas.
WHOLE_START = (8 * normal(3, 4, seed=7)).round()
WHOLE_GRADIENTS = (8 * normal(12, 3, 4, seed=8)).round()
DYADIC = [2.0 ** -(t % 3) for t in range(12)]


def polyak(weights: Tensor, gradients: Tensor, rates: list[float], mu: float) -> Tensor:
    """w_{t+1} = w_t - a_t g_t + mu (w_t - w_{t-1}) as it stands."""
    before, now = weights, weights
    for rate, gradient in zip(rates, gradients, strict=True):
        before, now = now, now - rate * gradient + mu * (now - before)
    return now


def test_the_conventions_of_momentum_agree_where_theory_says():
    w, g = WHOLE_START, WHOLE_GRADIENTS
    constant, varying = [0.25] * 12, DYADIC
    twice = [2 * rate for rate in varying]
    assert torch.equal(stepped(SGD(0.25, momentum=0.5), w, g), stepped(HeavyBall(0.25, 0.5), w, g))
    assert torch.equal(stepped(HeavyBall(0.25, 0.5), w, g), polyak(w, g, constant, 0.5))
    assert torch.equal(stepped(HeavyBall(varying, 0.5), w, g), polyak(w, g, varying, 0.5))
    assert torch.equal(stepped(AveragedMomentum(twice, 0.5), w, g), stepped(SGD(varying, momentum=0.5), w, g))
    assert torch.equal(stepped(HeavyBall(varying, 0.0), w, g), stepped(SGD(varying), w, g))
    assert torch.equal(stepped(AveragedMomentum(varying, 0.0), w, g), stepped(SGD(varying), w, g))


def test_and_only_there():
    w, g = WHOLE_START, WHOLE_GRADIENTS
    assert not torch.allclose(stepped(HeavyBall(DYADIC, 0.5), w, g), stepped(SGD(DYADIC, momentum=0.5), w, g))
    assert not torch.allclose(
        stepped(AveragedMomentum(0.5, 0.5), w, g), stepped(SGD(0.5, momentum=0.5, dampening=0.5), w, g)
    )


@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(-1, 1))
def test_the_conventions_of_momentum_agree_for_any_numbers(mu, rate, weight_decay):
    problem = Quadratic.random()
    sgd = path(SGD(rate, momentum=mu, weight_decay=weight_decay), problem, steps=10)
    ball = path(HeavyBall(rate, mu, weight_decay), problem, steps=10)
    averaged = path(AveragedMomentum(rate / (1 - mu), mu, weight_decay), problem, steps=10)
    scale = 1e-9 * float(sgd.abs().max())
    assert float((sgd - ball).abs().max()) < scale and float((sgd - averaged).abs().max()) < scale


def test_the_averaged_form_is_the_average():
    mu, gradients = 0.75, WHOLE_GRADIENTS
    weights = stepped(AveragedMomentum([0.0] * 11 + [1.0], mu), torch.zeros(3, 4, dtype=torch.float64), gradients)
    shares = torch.tensor([(1 - mu) * mu ** (11 - t) for t in range(12)], dtype=torch.float64)
    assert torch.allclose(-weights, torch.einsum("t,trp->rp", shares, gradients), rtol=1e-13)
    assert float(shares.sum()) == pytest.approx(1 - mu**12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("diagonal", [True, False])
def test_a_preconditioner_is_applied_to_the_momentum(momentum, diagonal):
    matrix = np.linspace(-1, 2, PARAMETERS) if diagonal else INDEFINITE
    assert diagonal or (INDEFINITE != INDEFINITE.T).any()
    weights, gradients = START.clone(), normal(10, RUNS, PARAMETERS, seed=9)
    found = stepped(Preconditioned(0.5, matrix, momentum), weights, gradients)
    full, slow = np.diag(matrix) if diagonal else matrix, START.numpy().copy()
    for r in range(RUNS):
        m = np.zeros(PARAMETERS)
        for gradient in gradients.numpy():
            m = momentum * m + gradient[r]
            slow[r] -= 0.5 * full @ m
    assert np.allclose(found, slow, rtol=1e-12)
    assert not np.allclose(stepped(Preconditioned(0.5, full.T + 0.01, momentum), weights, gradients), slow, rtol=1e-3)


def test_the_identity_is_no_preconditioner():
    problem = Quadratic.random()
    plain = path(SGD(0.05, momentum=0.9), problem)
    for identity in (np.eye(PARAMETERS), torch.eye(PARAMETERS), np.eye(PARAMETERS, dtype=int).tolist()):
        assert torch.equal(path(Preconditioned(0.05, identity, 0.9), problem), plain)
    assert distance(path(Preconditioned(0.05, np.ones(PARAMETERS), 0.9), problem), plain) < 1e-12


def least_squares(regression: Regression) -> Tensor:
    return torch.linalg.lstsq(regression.x, regression.y).solution


@pytest.mark.parametrize("rule", [DampedNewton(1.0), NaturalGradient(1.0, fisher="model")], ids=repr)
def test_newton_is_at_the_minimum_after_one_update(rule):
    gradient = REGRESSION.gradient(START)
    found = stepped(rule, START, gradient.unsqueeze(0), curvature=REGRESSION)
    assert torch.allclose(found, least_squares(REGRESSION).expand(RUNS, -1), rtol=1e-10)
    damped = stepped(replace(rule, damping=0.1), START, gradient.unsqueeze(0), curvature=REGRESSION)
    expected = START - torch.linalg.solve(REGRESSION.hessian() + 0.1 * torch.eye(PARAMETERS), gradient.T).T
    assert torch.allclose(damped, expected, rtol=1e-11) and not torch.allclose(damped, found, rtol=1e-3)


def test_newton_with_momentum_is_the_preconditioner_of_its_inverse():
    gradients = normal(10, RUNS, PARAMETERS, seed=10)
    inverse = torch.linalg.inv(REGRESSION.hessian() + 0.1 * torch.eye(PARAMETERS, dtype=torch.float64))
    for rule in (DampedNewton(0.05, 0.1, 0.9), NaturalGradient(0.05, 0.1, "model", 0.9)):
        found = stepped(rule, START, gradients, curvature=REGRESSION)
        assert torch.allclose(found, stepped(Preconditioned(0.05, inverse, 0.9), START, gradients), rtol=1e-10)


class Saddle(Regression):
    def hessian(self) -> Tensor:
        return torch.diag(torch.tensor([1.0, -2.0], dtype=torch.float64))


def test_newton_goes_to_a_saddle_too():
    weights = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    saddle = Saddle(weights, weights[0])
    gradient = weights @ saddle.hessian()
    assert torch.equal(stepped(DampedNewton(1.0), weights, gradient.unsqueeze(0), curvature=saddle), torch.zeros(1, 2))


class Counting(Regression):
    calls: list[str] = []  # noqa: RUF012 - counted over all instances

    def hessian(self) -> Tensor:
        self.calls.append("hessian")
        return super().hessian()


def test_a_constant_curvature_is_asked_for_once():
    counting = Counting(REGRESSION.x, REGRESSION.y)
    stepped(DampedNewton(0.1), START, normal(10, RUNS, PARAMETERS), curvature=counting)
    assert counting.calls == ["hessian"]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_natural_gradient_is_the_slow_loop(momentum, damping):
    x, y = REGRESSION.x.numpy(), REGRESSION.y.numpy()
    rule, weights = NaturalGradient(0.1, damping, momentum=momentum), START.clone()
    state = rule.start(weights)
    for t in range(10):
        rule.step(weights, REGRESSION.gradient(weights), state, 0.1, t, REGRESSION)
    for r in range(RUNS):
        w, m = START[r].numpy().copy(), np.zeros(PARAMETERS)
        for _ in range(10):
            per_sample = [(xi @ w - yi) * xi for xi, yi in zip(x, y, strict=True)]
            fisher = sum(np.outer(g, g) for g in per_sample) / len(x) + damping * np.eye(PARAMETERS)
            m = momentum * m + sum(per_sample) / len(x)
            w -= 0.1 * np.linalg.solve(fisher, m)
        assert np.allclose(weights[r].numpy(), w, rtol=1e-9)


def test_a_run_whose_fisher_matrix_is_singular_becomes_nan_alone():
    flat = Regression(REGRESSION.x, torch.zeros(20, dtype=torch.float64))
    weights = START.clone()
    weights[2] = 0  # fits exactly, so that every per-sample gradient vanishes
    expected = stepped(
        NaturalGradient(0.1), weights[[0, 1, 3, 4]], flat.gradient(weights)[[0, 1, 3, 4]].unsqueeze(0), curvature=flat
    )
    found = stepped(NaturalGradient(0.1), weights, flat.gradient(weights).unsqueeze(0), curvature=flat)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3, 4]], expected)
    damped = stepped(NaturalGradient(0.1, damping=0.1), weights, flat.gradient(weights).unsqueeze(0), curvature=flat)
    assert torch.equal(damped[2], weights[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_singular_curvature_is_refused_at_the_start(dtype):
    x = normal(20, PARAMETERS, seed=11).to(dtype)
    x[:, 3] = x[:, 0] + x[:, 1]  # singular up to rounding, which a factorisation may not notice
    collinear = Regression(x, normal(20).to(dtype))
    few = Regression(x[: PARAMETERS - 2], normal(PARAMETERS - 2).to(dtype))
    nothing = Regression(0 * x, normal(20).to(dtype))
    gradients = START.to(dtype).unsqueeze(0)
    for regression in (collinear, few, nothing):
        for rule, words in (
            (DampedNewton(0.1), "Hessian"),
            (NaturalGradient(0.1, fisher="model"), "model's Fisher matrix"),
        ):
            with pytest.raises(
                InputError, match=rf"the {words} plus damping=0 is singular: .* pass a larger damping, such as"
            ):
                stepped(rule, START.to(dtype), gradients, curvature=regression)
            assert (
                stepped(replace(rule, damping=0.1), START.to(dtype), gradients, curvature=regression).isfinite().all()
            )


@every_rule
def test_a_run_is_the_same_alone_and_in_a_crowd(rule):
    problem = Quadratic.random()
    together = path(rule, problem)
    for rows in (slice(0, 1), slice(3, 4), slice(1, 4), slice(RUNS - 1, None)):
        assert torch.equal(path(rule, problem, rows=rows), together[:, rows])
    assert not torch.equal(together[:, 0], together[:, 1])


@given(st.integers(1, 40), st.integers(1, 30), st.data())
def test_products_are_the_same_alone_and_in_a_crowd(runs, parameters, data):
    first = data.draw(st.integers(0, runs - 1))
    last = data.draw(st.integers(first + 1, runs))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    weights, gradients = normal(runs, parameters).to(dtype), normal(2, runs, parameters, seed=1).to(dtype)
    regression = Regression.random(parameters, dtype)
    for rule in (
        Preconditioned(0.1, normal(parameters, parameters, seed=2), 0.5),
        DampedNewton(0.1, 1.0),
        NaturalGradient(0.1, 1.0),
        Clipped(Adam(0.1), 0.1),
    ):
        together = stepped(rule, weights, gradients, curvature=regression)
        some = stepped(rule, weights[first:last], gradients[:, first:last], curvature=regression)
        assert torch.equal(together[first:last], some)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_rule
def test_a_run_that_diverges_touches_no_other(rule, bad):
    gradients = normal(10, RUNS, PARAMETERS, seed=12)
    rates = values(rule.learning_rate, 10).tolist()
    clean = stepped(rule, START, gradients, rates, REGRESSION)
    gradients[3, 1, 2] = bad
    hurt = stepped(rule, START, gradients, rates, REGRESSION)
    others = [0, 2, 3, 4]
    assert torch.equal(hurt[others], clean[others])
    assert not hurt[1].isfinite().all() or not torch.equal(hurt[1], clean[1])


@every_rule
def test_the_gradient_is_left_alone_and_the_weights_stay_in_place(rule):
    weights = START.clone()
    state, address = rule.start(weights), weights.data_ptr()
    for t in range(3):
        gradient = normal(RUNS, PARAMETERS, seed=t)
        copy, before = gradient.clone(), weights.clone()
        rule.step(weights, gradient, state, 0.05, t, REGRESSION)
        assert torch.equal(gradient, copy) and weights.data_ptr() == address and not torch.equal(weights, before)
        assert not any(entry.data_ptr() == gradient.data_ptr() for entry in state.values())


@every_rule
def test_the_state_is_one_row_per_run_but_for_what_is_shared(rule):
    weights = START.float()
    state = rule.start(weights)
    rule.step(weights, weights.clone(), state, 0.05, 0, Regression.random(dtype=torch.float32))
    shared = state.pop(SHARED, None)
    assert all(entry.shape == weights.shape and entry.dtype == weights.dtype for entry in state.values())
    assert shared is None or (shared.shape[-1] == PARAMETERS and shared.dtype == torch.float32)


@every_rule
def test_stopping_is_invisible(rule):
    """Twenty updates at once, and eight and twelve with everything pickled between and what is shared forgotten."""
    gradients = normal(20, RUNS, PARAMETERS, seed=13)
    rates = values(rule.learning_rate, STEPS).tolist()
    weights = START.clone()
    state = rule.start(weights)
    for t in range(20):
        if t == 8:
            rule, weights, state = pickle.loads(pickle.dumps((rule, weights, state)))
            state = {**rule.start(weights), **{name: entry for name, entry in state.items() if name != SHARED}}
        rule.step(weights, gradients[t], state, rates[t], t, REGRESSION)
    assert torch.equal(weights, stepped(rule, START, gradients, rates, REGRESSION))


@every_rule
def test_rules_are_values(rule):
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule and hash(copy) == hash(rule) and repr(copy) == repr(rule)
    assert rule.name == type(rule).__name__ and repr(rule).startswith(rule.name)
    assert len({*ALL, copy}) == len(ALL)
    with pytest.raises(FrozenInstanceError):
        rule.learning_rate = 0.1
    if SHARED not in rule.start(START):
        assert eval(repr(rule)) == rule
    rule.check(PARAMETERS)
    assert rule.needs_curvature == ("Newton" in repr(rule) or "Natural" in repr(rule))


@every_rule
def test_a_description_identifies_the_rule(rule):
    text = json.dumps(rule.describe(STEPS), allow_nan=False, sort_keys=True)
    assert json.loads(text)["name"] == rule.name
    others = [json.dumps(other.describe(STEPS), sort_keys=True) for other in ALL if other != rule]
    assert text not in others and len(set(others)) == len(ALL) - 1


def test_a_description_says_everything():
    assert Adam(0.1).describe(3) == {
        "name": "Adam",
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "learning_rate": 0.1,
    }
    schedule = Cosine(0.1, 10)
    described = Clipped(HeavyBall(schedule, 0.9), 2).describe(5)
    assert described["max_norm"] == 2.0 and described["rule"]["momentum"] == 0.9
    assert described["rule"]["learning_rate"]["schedule"] == repr(schedule)
    one, other = (SGD(lambda t, a=a: a).describe(3)["learning_rate"] for a in (0.1, 0.2))
    assert one["schedule"] == other["schedule"] and one["sha256"] != other["sha256"]
    assert SGD([0.1, 0.2]).describe(2)["learning_rate"]["schedule"] == "sequence"
    with pytest.raises(InputError, match="2 values for 3 updates"):
        SGD([0.1, 0.2]).describe(3)


def test_a_matrix_compares_by_value_and_keeps_its_own():
    array = np.eye(2)
    matrix = Matrix(array)
    array[0, 0] = 5
    assert matrix == Matrix(torch.eye(2)) == Matrix([[1, 0], [0, 1]]) and matrix != Matrix(array) != Matrix([1.0, 1.0])
    assert Matrix([1, 0, 0, 1]) != matrix, "the shape counts, not the entries alone"
    assert Preconditioned(0.1, np.eye(2)) == Preconditioned(0.1, matrix) != Preconditioned(0.1, array)
    assert matrix.array.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        matrix.array[0, 0] = 2
    assert repr(matrix) == f"Matrix(shape=(2, 2), sha256={matrix.sha256[:16]})"
    assert Preconditioned(0.1, matrix).describe(1)["matrix"] == {"shape": [2, 2], "sha256": matrix.sha256}


def test_numbers_of_other_types_become_pythons():
    assert repr(SGD(np.float32(0.5), np.float64(0.5))) == repr(SGD(0.5, 0.5))
    assert SGD(np.array([0.5, 0.25])).learning_rate == (0.5, 0.25)
    assert Adam(betas=[0, 0.5]).betas == (0.0, 0.5)
    assert Clipped(SGD(0.1), 1) == Clipped(SGD(0.1), 1.0) != Clipped(SGD(0.2), 1.0)


def test_rules_by_name():
    options = {
        "heavy-ball": {"momentum": 0.9},
        "averaged-momentum": {"momentum": 0.9},
        "preconditioned": {"matrix": [1.0]},
    }
    for name, kind in RULES.items():
        rule = from_name(name, learning_rate=0.1, **options.get(name, {}))
        assert type(rule) is kind and rule.learning_rate == 0.1 and name == name.lower()
    assert from_name("sgd", learning_rate=0.1, momentum=0.9) == SGD(0.1, momentum=0.9)
    assert from_name("adam") == Adam()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(-0.1), r"learning_rate=-0.1: expected a finite number >= 0, such as 0.1"),
        (lambda: SGD(math.nan), r"learning_rate=nan: "),
        (lambda: SGD("fast"), r"learning_rate='fast': "),
        (lambda: SGD([0.1, -0.1]), r"learning_rate\(t=1\)=-0.1: "),
        (lambda: Adam(None), r"learning_rate=None: "),
        (lambda: SGD(0.1, momentum=1), r"momentum=1: expected a finite number >= 0 and < 1, such as 0.9"),
        (lambda: SGD(0.1, momentum="0.9"), r"momentum='0.9': "),
        (lambda: SGD(0.1, dampening=-0.1), r"dampening=-0.1: "),
        (lambda: SGD(0.1, weight_decay=math.inf), r"weight_decay=inf: expected a finite number, such as 0.0001"),
        (lambda: SGD(0.1, 0.9, nesterov=1), r"nesterov=1: expected True or False"),
        (
            lambda: SGD(0.1, nesterov=True),
            r"nesterov=True with momentum=0 and dampening=0: expected momentum > 0 and dampening=0",
        ),
        (lambda: SGD(0.1, 0.9, 0.5, nesterov=True), r"nesterov=True with momentum=0.9 and dampening=0.5"),
        (lambda: AveragedMomentum(0.1, -0.5), r"momentum=-0.5: "),
        (lambda: AveragedMomentum(0.1, 0.5, None), r"weight_decay=None: "),
        (lambda: HeavyBall(0.1, 2), r"momentum=2: "),
        (lambda: HeavyBall(0.1, 0.5, math.nan), r"weight_decay=nan: "),
        (lambda: Adam(betas=0.9), r"betas=0.9: expected two numbers, such as \(0.9, 0.999\)"),
        (lambda: Adam(betas=(0.9, 0.99, 0.999)), r"betas=\(0.9, 0.99, 0.999\): expected two numbers"),
        (lambda: Adam(betas=(0.9, 1.0)), r"betas\[1\]=1.0: expected a finite number >= 0 and < 1"),
        (lambda: Adam(eps=-1e-8), r"eps=-1e-08: expected a finite number >= 0"),
        (lambda: AdamW(weight_decay="1e-2"), r"weight_decay='1e-2': "),
        (lambda: Adam(amsgrad="False"), r"amsgrad='False': expected True or False"),
        (lambda: RMSProp(alpha=1), r"alpha=1: "),
        (lambda: RMSProp(eps=None), r"eps=None: "),
        (lambda: RMSProp(momentum=-1), r"momentum=-1: "),
        (lambda: RMSProp(weight_decay=math.nan), r"weight_decay=nan: "),
        (lambda: RMSProp(centered=None), r"centered=None: expected True or False"),
        (lambda: Preconditioned(0.1, [1.0], 1.5), r"momentum=1.5: "),
        (
            lambda: Preconditioned(0.1, np.ones((2, 3))),
            r"matrix has shape \(2, 3\); expected \(P, P\), or \(P,\) for a diagonal matrix",
        ),
        (lambda: Preconditioned(0.1, 2.0), r"matrix has shape \(\); expected"),
        (lambda: Preconditioned(0.1, np.ones((2, 2, 2))), r"matrix has shape \(2, 2, 2\); expected"),
        (lambda: Preconditioned(0.1, []), r"matrix has shape \(0,\); expected"),
        (lambda: Preconditioned(0.1, [1.0, math.nan, math.inf]), r"matrix: 2 of its entries are NaN or infinite"),
        (
            lambda: Preconditioned(0.1, np.eye(2) * 1j),
            r"matrix: expected real numbers of shape \(P, P\) or \(P,\), but Cannot cast",
        ),
        (lambda: Preconditioned(0.1, [[1.0], [1.0, 2.0]]), r"matrix: expected real numbers .* but"),
        (lambda: Preconditioned(0.1, "identity"), r"matrix: expected real numbers .* but"),
        (lambda: Preconditioned(0.1, torch.eye(2, dtype=torch.bfloat16)), r"matrix: expected real numbers .* but"),
        (lambda: DampedNewton(0.1, -1), r"damping=-1: expected a finite number >= 0, such as 0.001"),
        (lambda: DampedNewton(0.1, momentum=1), r"momentum=1: "),
        (lambda: NaturalGradient(0.1, fisher="exact"), r"fisher='exact': expected 'empirical' or 'model'"),
        (lambda: Clipped(SGD(0.1), 0), r"max_norm=0 stops every run; expected a positive number, such as 1"),
        (lambda: Clipped(SGD(0.1), math.inf), r"max_norm=inf: expected a finite number >= 0"),
        (lambda: Clipped(0.1, 1.0), r"rule=0.1: expected an update rule, such as SGD\(0.1\)"),
        (
            lambda: from_name("sgdm"),
            r"rule 'sgdm' is not known; use one of sgd, averaged-momentum, heavy-ball, adam, adamw",
        ),
        (
            lambda: from_name("adam", momentum=0.9),
            r"rule 'adam': got an unexpected keyword argument 'momentum'; its parameters are learning_rate, betas, eps, weight_decay, amsgrad",
        ),
        (
            lambda: from_name("heavy-ball", learning_rate=1),
            r"rule 'heavy-ball': missing a required argument: 'momentum'",
        ),
    ],
)
def test_parameters_are_checked_on_construction(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("shape", [(3, 3), (3,)])
def test_a_matrix_fits_the_runs(shape):
    rule = Clipped(Preconditioned(0.1, np.ones(shape)), 1.0)
    rule.check(3)
    message = rf"matrix has shape \({shape[0]},.*, but each run has 7 parameters; expected \(7, 7\) or \(7,\)"
    with pytest.raises(InputError, match=message):
        rule.check(7)
    with pytest.raises(InputError, match=message):
        rule.start(START)


@pytest.mark.parametrize("weights", [torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.int64)])
def test_weights_are_rows_of_real_numbers(weights):
    with pytest.raises(
        InputError,
        match=r"weights of shape \(.*\) and type torch\..*: expected real floating-point numbers of shape \(runs, parameters\)",
    ):
        SGD(0.1).start(weights)


@pytest.mark.parametrize(
    "rule",
    [DampedNewton(0.1), NaturalGradient(0.1), NaturalGradient(0.1, fisher="model"), Clipped(DampedNewton(0.1), 1.0)],
    ids=repr,
)
def test_curvature_is_asked_for_in_words(rule):
    with pytest.raises(
        InputError,
        match=r"(DampedNewton|NaturalGradient) is for linear regression with squared loss, .*; none was given here. Use Preconditioned",
    ):
        stepped(rule, START, START.unsqueeze(0))


class Misshapen(Regression):
    def hessian(self) -> Tensor:
        return torch.full((2, 2), math.nan)


def test_a_curvature_that_cannot_be_right_is_refused():
    with pytest.raises(
        InputError,
        match=r"the Hessian has shape \(2, 2\) and 4 entries that are NaN or infinite; expected finite numbers of shape \(7, 7\)",
    ):
        stepped(DampedNewton(0.1), START, START.unsqueeze(0), curvature=Misshapen(REGRESSION.x, REGRESSION.y))


def test_the_rule_itself_is_abstract():
    with pytest.raises(NotImplementedError):
        stepped(Rule(0.1), START, START.unsqueeze(0))
