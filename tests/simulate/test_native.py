"""The compiled kernel is plain autograd with PyTorch's optimizers, run by run, on every instruction set of this machine.

The slow twins are the engine that differentiates one run after the other, and the engines through torch.
"""

import signal
import threading
import time
from dataclasses import dataclass, replace
from functools import partialmethod
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor, nn
from typer.testing import CliRunner

import shotnoise as sn
from shotnoise.cli import app
from shotnoise.errors import InputError
from shotnoise.models import Polynomial
from shotnoise.predict import networks
from shotnoise.rules import SGD, Adam, AdamW, AveragedMomentum, Clipped, HeavyBall, RMSProp
from shotnoise.schedules import InverseTime
from shotnoise.simulate.engines import choose, native
from shotnoise.simulate.engines.native import (
    ACCURACY,
    COSINE,
    FULL_GRADIENT,
    FULL_LOSS,
    GRADIENT_NORM,
    KEEP_FULL_GRADIENT,
    KEEP_GRADIENT,
    KEEP_WEIGHTS,
    Native,
)
from shotnoise.simulate.engines.stacked import OneByOne
from shotnoise.simulate.recorders import NAMED

built = pytest.mark.skipif(native.MODULE is None, reason=f"no compiled engine here: {native.MISSING}")
SETS = native.instruction_sets()
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
ACTIVATIONS = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "quadratic": lambda: Polynomial([0.1, 0.8, -0.07]),
    "quintic": lambda: Polynomial([-0.2, 0.7, 0.0, -0.05, 0.01, 0.002]),
}
RULES = [
    SGD(0.3),
    SGD(0.2, weight_decay=-0.05),
    SGD(InverseTime(0.2, 0.3), momentum=0.9, weight_decay=0.1),
    SGD(0.1, momentum=0.8, nesterov=True),
    SGD(0.1, momentum=0.5, dampening=0.5),
    AveragedMomentum(0.3, 0.6),
    HeavyBall(InverseTime(0.2, 0.3), 0.7, weight_decay=-0.1),
    Adam(0.05, weight_decay=0.1),
    Adam(0.05, betas=(0.5, 0.9), amsgrad=True),
    AdamW(0.05, weight_decay=0.3),
    Clipped(SGD(0.5, momentum=0.5), 0.2),
    Clipped(SGD(0.5), 0.2),
]


@dataclass(frozen=True)
class Case:
    """A network with data, and runs of it; ends is how many inputs and outputs each layer has, in a row.

    The last is 1 for the logistic loss.
    """

    ends: tuple[int, ...] = (4, 6, 3)
    activation: str = "tanh"
    loss: str = "cross_entropy"
    dtype: torch.dtype = torch.float64
    bias: bool = True
    l2: float = 0.0
    samples: int = 13
    runs: int = 5
    batch: int = 4
    seed: int = 0

    def problem(self) -> sn.Problem:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            parts: list[nn.Module] = []
            outputs = 1 if self.loss == "logistic" else self.ends[-1]
            ends = (*self.ends[:-1], outputs)
            for i, o in pairwise(ends):
                parts += [nn.Linear(i, o, bias=self.bias), ACTIVATIONS[self.activation]()]
            x = torch.randn(self.samples, self.ends[0])
            if self.loss == "mse":
                y = torch.randn(len(x), outputs).to(self.dtype)
            else:
                y = torch.randint(2 if self.loss == "logistic" else outputs, (self.samples,))
            return sn.Problem(nn.Sequential(*parts[:-1]).to(self.dtype), self.loss, x.to(self.dtype), y, l2=self.l2)

    def weights(self, problem: sn.Problem) -> Tensor:
        own = torch.cat([p.detach().flatten() for p in problem.parameters.values()])
        noise = torch.randn(self.runs, len(own), generator=torch.Generator().manual_seed(self.seed))
        return own + 0.5 * noise.to(own)

    def batches(self, *shape: int) -> Tensor:
        return torch.randint(self.samples, shape, generator=torch.Generator().manual_seed(self.seed + 1))


cases = st.builds(
    Case,
    ends=st.lists(st.integers(1, 23), min_size=2, max_size=5).map(tuple),
    activation=st.sampled_from(list(ACTIVATIONS)),
    loss=st.sampled_from(["cross_entropy", "mse", "logistic"]),
    dtype=st.sampled_from(list(EPS)),
    bias=st.booleans(),
    l2=st.sampled_from([0.0, 0.2, -0.1]),
    samples=st.integers(1, 60),
    runs=st.integers(1, 35),
    batch=st.integers(1, 30),
    seed=st.integers(0, 99),
)
campaign = settings(max_examples=60, deadline=None)


def engine_of(problem: sn.Problem, name: str = "") -> Native:
    found = native.native(problem)
    assert isinstance(found, Native), found
    found.instruction_set = name
    return found


def close(found: Tensor, true: Tensor, units: float = 2000) -> bool:
    """Equal but for rounding, on the scale of each run."""
    if not len(true):
        return len(found) == 0
    scale = true.abs().reshape(len(true), -1).amax(1) + EPS[true.dtype]
    difference = (found - true).abs().reshape(len(true), -1).amax(1)
    return found.dtype == true.dtype and bool((difference <= units * EPS[true.dtype] * scale).all())


def agrees(engine: Native, case: Case, twin_case: Case | None = None) -> bool:
    """With plain autograd, on indices and on samples, on minibatches and on all the data."""
    problem = engine.problem
    twin = OneByOne((twin_case or case).problem())
    weights, indices = case.weights(problem), case.batches(case.runs, case.batch)
    own = problem.samples.inputs[indices], problem.samples.targets[indices]
    loss, gradient = twin.minibatch(weights, indices)
    full_loss, full_gradient = twin.full(weights)
    found = [*engine.minibatch(weights, indices), *engine.minibatch(weights, own), *engine.full(weights)]
    true = [loss, gradient, loss, gradient, full_loss, full_gradient]
    found, true = [*found, engine.full_losses(weights)], [*true, full_loss]
    same = all(close(a, b) for a, b in zip(found, true, strict=True))
    return same and (case.loss == "mse" or bool((engine.accuracies(weights) == twin.accuracies(weights)).all()))


@built
@pytest.mark.parametrize("name", SETS)
@given(case=cases)
@campaign
def test_losses_and_gradients_are_those_of_autograd(name, case):
    assert agrees(engine_of(case.problem(), name), case)


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize(("widths", "batch"), [((64, 100, 10), 30), ((64, 100, 10), 300), ((2500, 8, 3), 12)])
def test_more_samples_than_are_seen_at_a_time(name, dtype, widths, batch):
    """30 are as many as a batch may have to be seen whole all the same, except in small vectors; few of 2,500 inputs are."""
    case = Case(widths, "relu", dtype=dtype, samples=400, runs=3, batch=batch, l2=0.1)
    assert agrees(engine_of(case.problem(), name), case)


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("batch", [30, 300])
def test_steps_on_batches_seen_whole_and_in_parts_are_those_of_torch(name, batch, monkeypatch):
    """And the full loss, seen in portions that do not depend on the batch, has the bits of one looked at by itself."""
    case = Case((64, 100, 10), "relu", samples=400, runs=16, batch=batch)
    options = {"steps": 3, "record": ["loss", sn.simulate.weights(steps=[3])], "every": 1}
    monkeypatch.setattr(Native, "__init__", partialmethod(Native.__init__, instruction_set=name))
    found = simulated(case, SGD(0.3), "native", **options)
    assert same_records(found, simulated(case, SGD(0.3), "torch", **options), case.dtype)
    last = torch.from_numpy(found["weights"].values.reshape(case.runs, -1))
    alone = engine_of(case.problem(), name).full_losses(last)
    assert np.array_equal(found["loss"].isel(step=-1).values.reshape(-1), alone.numpy())


@built
def test_the_comparison_can_fail():
    for dtype in EPS:
        case = Case(dtype=dtype)
        engine = engine_of(case.problem())
        assert agrees(engine, case)
        for wrong in (
            replace(case, activation="sigmoid"),
            replace(case, activation="quadratic"),
            replace(case, l2=0.01),
            replace(case, samples=14),
            replace(case, seed=1),
        ):
            assert not agrees(engine, case, wrong)
        case = replace(case, loss="logistic")
        engine = engine_of(case.problem())
        assert agrees(engine, case)
        engine.targets = 1 - engine.targets
        assert not agrees(engine, case)


TRAINED = [
    Case(),
    Case((3, 1), loss="mse", batch=2, l2=0.1),
    Case((5, 7, 6, 4), "relu", l2=-0.05, runs=11, batch=7),
    Case((4, 6, 3), "gelu", "mse", bias=False, runs=17),
    Case((4, 5, 3), "softplus", dtype=torch.float32),
    Case((4, 5, 1), "sigmoid", "logistic", l2=0.05),
    Case((4, 6, 5, 3), "quadratic", "mse"),
]
EVERYTHING = [name for name in NAMED if name != "accuracy"]


def simulated(case: Case, rule, engine: str, steps=6, **options):
    record = EVERYTHING + ["accuracy"] * (case.loss != "mse")
    options = {"record": record, "initial": "resampled", "workers": 1} | options
    return sn.simulate(case.problem(), rule, case.batch, steps, case.runs, engine=engine, **options)


def same_records(found, true, dtype) -> bool:
    """Single precision: the rounding of a few steps, amplified."""
    rounding = {torch.float64: 1e-9, torch.float32: 2e-3}[dtype]
    for name in true.data_vars:
        a, b = found[name].values, true[name].values
        scale = np.nanmax(np.abs(b), initial=0)
        if a.shape != b.shape or not np.allclose(a, b, rtol=rounding, atol=rounding * scale, equal_nan=True):
            return False
    return True


@built
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_a_training_is_that_of_torch_with_every_recorder(case, rule):
    found, true = simulated(case, rule, "native"), simulated(case, rule, "torch")
    assert found.attrs["engine"] == "native" and true.attrs["engine"] != "native"
    assert same_records(found, true, case.dtype)
    assert not same_records(found, simulated(case, rule, "torch", seed=1), case.dtype)


@built
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_recorded_changes_nothing(rule):
    """Steps made together, or alone because a recorder must see the state: the same bits."""
    case, last = Case(runs=9), {"record": [sn.simulate.weights(steps=[6])]}
    whole = simulated(case, rule, "native")["weights"].isel(step=-1).values
    for options in (last, {"record": [*last["record"], "gradient_cosine", "loss"], "every": 4}):
        assert np.array_equal(simulated(case, rule, "native", **options)["weights"].values[..., 0, :], whole)


@built
def test_rules_that_the_kernel_lacks_go_by_torch_step_by_step():
    case = TRAINED[2]
    for rule in (RMSProp(0.01), Clipped(RMSProp(0.01), 0.5)):
        found = simulated(case, rule, "native")
        assert found.attrs["engine"] == "native"
        assert same_records(found, simulated(case, rule, "torch"), case.dtype)


@built
@given(case=cases, rule=st.sampled_from(RULES), name=st.sampled_from(SETS), threads=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_many_steps_are_many_single_ones_on_any_number_of_threads(case, rule, name, threads):
    """What is seen, what is kept of the states, and where the runs end, on samples by index or brought along.

    What is kept is the engine's at these weights.
    """
    engine, steps = engine_of(case.problem(), name), 5
    data = engine.problem.samples
    trainer = engine.trainer(rule)
    indices, rates = case.batches(case.runs, steps, case.batch), np.linspace(0.1, 0.2, steps)
    wanted = {"loss": np.array([True, False] * 3)[:steps], "gradient_cosine": np.ones(steps, bool)}
    kept = {"weights": np.ones(steps, bool), "gradients": np.arange(steps) % 3 > 0, "full": np.arange(steps) % 2 > 0}

    def trained(cuts, threads, fresh=False):
        engine.threads = threads
        weights = case.weights(engine.problem)
        memory, before, found, states = rule.start(weights), torch.full_like(weights, torch.nan), [], {}
        for start, stop in cuts:
            some, parts = ({what: when[start:stop] for what, when in all_of.items()} for all_of in (wanted, kept))
            batch = indices[:, start:stop]
            batch = (data.inputs[batch], data.targets[batch]) if fresh else batch
            seen, held = trainer(weights, memory, batch, rates[start:stop], start, some, parts, before)
            found.append(seen)
            states |= {(part, start + k): value for part, of in held.items() for k, value in of.items()}
        records = [torch.cat([part[what] for part in found]) for what in (*wanted, "minibatch_loss")]
        return [weights, before, *memory.values(), *records], states

    whole, states = trained([(0, steps)], 1)
    assert {part: [k for p, k in states if p == part] for part in kept} == {
        part: np.flatnonzero(when).tolist() for part, when in kept.items()
    }
    cut = [(0, 1), (1, 3), (3, 5)]
    for other, others in (trained([(0, steps)], threads), trained(cut, 1), trained(cut, threads, fresh=True)):
        assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(whole, other, strict=True))
        for place, value in states.items():
            pairs = zip(value, others[place], strict=True) if place[0] == "full" else [(value, others[place])]
            assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in pairs)
    for part, k in states:
        if part == "weights":
            continue
        at = states["weights", k]
        losses, gradients = engine.full(at) if part == "full" else engine.minibatch(at, indices[:, k])
        mine = states[part, k] if part == "full" else (losses, states[part, k])
        bounded = losses.isfinite() & gradients.isfinite().all(1)  # a run that diverges is not compared any more
        assert all(close(a[bounded], b[bounded]) for a, b in zip(mine, (losses, gradients), strict=True))


def looked_at(state):
    """Everything that a state has, in one tensor."""
    of_all = torch.stack([state.losses, state.full_gradients.norm(dim=1), state.accuracies.to(state.losses)], 1)
    return torch.cat([state.weights, state.gradients, of_all, state.minibatch_losses[:, None]], 1)


@built
def test_states_that_are_looked_back_at_are_the_states_of_torch(monkeypatch):
    """However many are kept at a time: the same bits, on any number of threads; and another step is another state."""
    case, rule, records = Case((4, 6, 3), runs=7), SGD(0.3, momentum=0.5), import_module("shotnoise.simulate.records")
    record = {"seen": looked_at, "w": (sn.simulate.weights(steps=[2, 5], name="thinned"), "gradient_variance")}
    record["layers"] = ("layer_full_gradient_variance", sn.simulate.loss_change(steps=[3]), "loss")
    found = simulated(case, rule, "native", record=record)
    assert same_records(found, simulated(case, rule, "torch", record=record), case.dtype)
    for size, threads in ((1, 1), (8 * 7 * 54 * 3 * 2, 3), (2**30, 2)):
        monkeypatch.setattr(records, "KEPT_BYTES", size)
        assert simulated(case, rule, "native", record=record, threads=threads).equals(found)
    weights = found["seen"].values[..., : found.sizes["parameter"]]
    thinned = found["thinned"].values
    assert np.array_equal(weights[:, :, [2, 5]], thinned) and not np.allclose(weights[:, :, [1, 4]], thinned)


@built
@pytest.mark.parametrize("name", NAMED)
def test_each_recorder_alone_gets_what_it_looks_at(name):
    case = Case(runs=6, l2=0.1)
    found, true = (simulated(case, SGD(0.3), engine, record=[name]) for engine in ("native", "torch"))
    assert same_records(found, true, case.dtype)


@built
@pytest.mark.parametrize(("record", "parts"), [(["gradient_variance"], 1), ([looked_at], 2), (["weights", "loss"], 1)])
def test_what_is_kept_at_a_time_is_bounded(record, parts, monkeypatch):
    """Never more states in a call than there is room for, and after the first step, which is alone, no fewer."""
    records, case, steps, states, asked = import_module("shotnoise.simulate.records"), Case(runs=6), 10, 4, []
    trained = native._Trainer.__call__

    def spied(self, weights, memory, indices, rates, first, wanted, kept, before):
        asked.append([int(when.sum()) for when in kept.values()])
        return trained(self, weights, memory, indices, rates, first, wanted, kept, before)

    monkeypatch.setattr(native._Trainer, "__call__", spied)
    size = states * parts * case.runs * case.problem().parameter_count * 8
    monkeypatch.setattr(records, "KEPT_BYTES", size)
    simulated(case, SGD(0.1), "native", steps, record=record)
    assert [sorted(set(counts)) for counts in asked] == [[1], [4], [4], [2]] and all(len(c) == parts for c in asked)


def population(case: Case) -> sn.Population:
    problem = case.problem()

    def draw(rng, count):
        x = rng.standard_normal((count, case.ends[0]))
        if case.loss == "mse":
            return x, np.tanh(x[:, :1]) + rng.standard_normal((count, case.ends[-1]))
        return x, (x[:, 0] > 0.3).astype(np.int64)

    return sn.Population(problem.model, case.loss, draw, evaluation_samples=40, l2=case.l2)


@built
@pytest.mark.parametrize("rule", [SGD(0.3), SGD(0.1, momentum=0.9, nesterov=True), Adam(0.05), Clipped(SGD(0.5), 0.2)])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "logistic"])
def test_a_population_goes_many_steps_at_a_time(loss, rule, monkeypatch):
    """That of torch with every recorder; the same bits however many steps are handed over, and on other threads."""
    case = Case((3, 5, 1 if loss == "logistic" else 2), loss=loss, l2=0.1, runs=6)
    block, calls = import_module("shotnoise.simulate.block"), []
    trained = native._Trainer.__call__

    def counted(self, *given):
        calls.append(given[2][0].shape[1])
        return trained(self, *given)

    monkeypatch.setattr(native._Trainer, "__call__", counted)

    def found(engine, record=EVERYTHING, **options):
        record = [*record, *(["accuracy"] if loss != "mse" else [])]
        return sn.simulate(population(case), rule, 4, 12, case.runs, record=record, engine=engine, workers=1, **options)

    mine = found("native")
    assert same_records(mine, found("dense"), case.dtype) and calls == [1, 12]
    assert not same_records(mine, found("dense", seed=1), case.dtype)
    monkeypatch.setattr(block, "SAMPLES_BYTES", 5 * 6 * 4 * (3 + (2 if loss == "mse" else 1)) * 8)
    assert found("native", threads=3).equals(mine) and calls[2:5] == [1, 5, 5]
    with_redraws = found("native", [*EVERYTHING, sn.simulate.loss_change(steps=[4])])
    assert all(with_redraws[name].equals(mine[name]) for name in ("weights", "minibatch_loss", "loss"))
    assert same_records(with_redraws[list(mine.data_vars)], mine, case.dtype)  # a step alone adds the penalty elsewhere


@built
def test_runs_that_diverge_are_left_out_of_what_is_looked_back_at():
    """Half of the runs start where they diverge: the variance over the others is that of torch."""
    case = Case((3, 5, 2), "relu", "mse", runs=12)

    def initial(rng):
        scale = 10.0 if rng.random() < 0.5 else 0.1
        return scale * rng.standard_normal(case.problem().parameter_count)

    record = ["gradient_variance", "minibatch_loss"]
    found, true = (simulated(case, SGD(0.1), name, 60, record=record, initial=initial) for name in ("native", "torch"))
    gone = int((true["divergence_step"] >= 0).sum())
    assert 2 < gone < 10 and np.array_equal(found["divergence_step"], true["divergence_step"])
    of_some, expected = (runs["gradient_variance"].values[0] for runs in (found, true))
    assert np.isfinite(expected).all() and of_some == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("engine", [*(["native"] if native.MODULE is not None else []), "dense"])
def test_redrawing_has_to_be_announced(engine):
    with pytest.raises(InputError, match=r"asks for state.redraw\(\) says so: .*redraws=1"):
        simulated(Case(), SGD(0.1), engine, record={"moved": lambda state: state.redraw()})


@built
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_a_run_is_the_same_in_any_company(dtype):
    case = Case((7, 9, 4), dtype=dtype, runs=33)
    engine = engine_of(case.problem())
    weights, indices = case.weights(engine.problem), case.batches(33, 4)
    losses, gradients = engine.minibatch(weights, indices)
    for some in (slice(0, 1), slice(5, 22), slice(16, 33)):
        alone = engine.minibatch(weights[some], indices[some])
        assert torch.equal(alone[0], losses[some]) and torch.equal(alone[1], gradients[some])


@built
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "logistic"])
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_runs_diverge_at_the_same_step(dtype, loss):
    case = Case((3, 5, 2), "relu", loss, dtype, runs=20)
    rates = [0.1] * 3 + [40.0] * 200
    found, true = (
        simulated(case, SGD(rates), name, len(rates), record=["minibatch_loss"]) for name in ("native", "torch")
    )
    if loss == "mse":
        assert (true["divergence_step"] > 3).all()
    assert np.array_equal(found["divergence_step"], true["divergence_step"])


def test_a_polynomial_student_has_the_exact_variance():
    """The polynomial in 1/b from fractions, at an alarm of 1e-6; another coefficient is told from it."""
    student, teacher = [[[1, -0.5], [0.25, 0.5], [-1, 0.5]], [[0.5, -1, 1]]], [[[1, 0.5]]]
    points, rate, sizes, ALARM = [[1, 0], [0, 1], [-1, 0.5]], 0.125, [1, 2, 5], 1e-6
    coefficients, wrong = [0.25, 1, -0.5], [0.25, 1, -0.4]
    parts = [nn.Linear(2, 3, bias=False), Polynomial(coefficients), nn.Linear(3, 1, bias=False)]
    model = nn.Sequential(*parts).double()
    with torch.no_grad():
        for layer, W in zip((model[0], model[2]), student, strict=True):
            layer.weight.copy_(torch.tensor(W))
    x = torch.tensor(points, dtype=torch.float64)
    problem = sn.Problem(model, "mse", x, x @ torch.tensor(teacher[0], dtype=torch.float64).T)
    exact = [
        networks.gradient_variance_polynomial(
            student, teacher, rate, 1, 1, activation=c, inputs=networks.Points(points)
        )
        for c in (coefficients, wrong)
    ]
    name, limit = "layer_gradient_variance", special.ndtri(1 - ALARM / 2 / len(sizes))
    for engine in (["native"] if native.MODULE is not None else []) + ["dense"]:
        runs = sn.simulate(problem, SGD(rate), sizes, 1, 8000, record=name, engine=engine, workers=1)
        at, error = (runs[what].isel(step=1, layer=1).values for what in (name, f"{name}_stderr"))
        right, broken = (np.abs((at - [float(found(b)) for b in sizes]) / error).max() for found in exact)
        assert right < limit < broken, engine


# Elementary functions, seen through a net of one unit: the gradient of the second weight at 0 with target -1 is z itself.


def through(activation: str, h: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """act(h) and act'(h), the latter from the gradient of the first weight at loss 1/2 (z - (z - 1))^2, about."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), ACTIVATIONS[activation](), nn.Linear(1, 1, bias=False))
    x, y = torch.ones(1, 1, dtype=h.dtype), -torch.ones(1, 1, dtype=h.dtype)
    engine = engine_of(sn.Problem(model.to(h.dtype), "mse", x, y), name)
    indices = torch.zeros(len(h), 1, dtype=torch.int64)
    values = engine.minibatch(torch.stack([h, torch.zeros_like(h)], 1), indices)[1][:, 1]
    tiny = torch.full_like(h, EPS[h.dtype] ** 2)  # outputs do not matter beside the target, slopes come out scaled
    return values, engine.minibatch(torch.stack([h, tiny], 1), indices)[1][:, 0] / tiny


def exactly(activation: str, h: Tensor) -> tuple[Tensor, Tensor]:
    """In extended precision where it matters: values and derivatives to float64 from numpy's longdouble."""
    x = h.double().numpy().astype(np.longdouble)
    if activation == "tanh":
        z = np.tanh(x)
        slope = 1 / np.cosh(x) ** 2
    elif activation == "sigmoid":
        z = 1 / (1 + np.exp(-x))
        slope = z * (1 / (1 + np.exp(x)))
    else:
        z = np.logaddexp(0, x)
        slope = 1 / (1 + np.exp(-x))
    return torch.from_numpy(z.astype(np.float64)), torch.from_numpy(slope.astype(np.float64))


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus"])
def test_elementary_functions_are_right_to_a_few_units_in_the_last_place(activation, dtype, name):
    h = torch.cat([torch.linspace(-19, 19, 4001), torch.logspace(-6, 0, 500), -torch.logspace(-6, 0, 500)]).to(dtype)
    (found, slope), (true, true_slope) = through(activation, h, name), exactly(activation, h)
    assert float(((found.double() - true) / true).abs().max()) <= 6 * EPS[dtype]
    absolute = 6 * EPS[dtype] * true_slope.max()  # 1 - z^2 cannot do better at saturation
    assert float((slope.double() - true_slope).abs().max()) <= absolute


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("coefficients", [(2, -3), (1, 0, 2), (0, 0, 0, 1), (-1, 2, 0, 0, 3, -1, 0, 1)])
def test_polynomials_of_whole_numbers_are_exact(coefficients, dtype, name, monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "whole", lambda: Polynomial(coefficients))
    h = torch.arange(-4, 5)
    value, slope = through("whole", h.to(dtype), name)
    assert value.tolist() == [sum(c * x**k for k, c in enumerate(coefficients)) for x in h.tolist()]
    assert slope.tolist() == [sum(k * c * x ** (k - 1) for k, c in enumerate(coefficients) if k) for x in h.tolist()]


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_the_loss_of_two_classes_is_softplus_of_their_difference(dtype, name):
    """exp and log together, from hits to complete misses; and what is not finite stays so."""
    problem = sn.Problem(
        nn.Linear(1, 2, bias=False).to(dtype), "cross_entropy", torch.ones(1, 1, dtype=dtype), torch.tensor([0])
    )
    gap = torch.linspace(-30, 300, 2001).to(dtype)
    losses = engine_of(problem, name).full_losses(torch.stack([torch.zeros_like(gap), gap], 1))
    true = torch.from_numpy(np.logaddexp(np.longdouble(0), gap.double().numpy()).astype(np.float64))
    assert float((losses.double() - true).abs().max()) <= 300 * EPS[dtype]
    odd = torch.tensor([[0.0, torch.inf], [torch.nan, 0.0], [-torch.inf, -torch.inf], [0.0, 1.0]], dtype=dtype)
    assert engine_of(problem, name).full_losses(odd).isfinite().tolist() == [False, False, False, True]


@built
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("label", [0, 1])
def test_the_logistic_loss_keeps_its_relative_precision_on_both_sides(dtype, name, label):
    one, target = torch.ones(1, 1, dtype=dtype), torch.tensor([label])
    problem = sn.Problem(nn.Linear(1, 1, bias=False).to(dtype), "logistic", one, target)
    most = 85 if dtype == torch.float32 else 700
    f = torch.cat([torch.linspace(-most, most, 3001), torch.linspace(-2, 2, 500)]).to(dtype)
    losses, slopes = engine_of(problem, name).minibatch(f[:, None], torch.zeros(len(f), 1, dtype=torch.int64))
    wrong = f.double().numpy().astype(np.longdouble) * (1 - 2 * label)  # the margin, negated
    small = np.exp(-np.abs(wrong))
    true = np.maximum(wrong, 0) + np.log1p(small)
    slope = (1 - 2 * label) * np.where(wrong > 0, 1, small) / (1 + small)
    assert float(np.abs(losses.double().numpy() / true - 1).max()) <= 8 * EPS[dtype]
    assert float(np.abs(slopes[:, 0].double().numpy() / slope - 1).max()) <= 8 * EPS[dtype]
    torch.testing.assert_close(losses, -nn.functional.logsigmoid((2 * label - 1) * f), rtol=20 * EPS[dtype], atol=0)
    odd = torch.tensor([[torch.nan], [torch.inf * (1 - 2 * label)], [1.0]], dtype=dtype)
    assert engine_of(problem, name).full_losses(odd).isfinite().tolist() == [False, False, True]


# What is refused.


def arguments(problem: sn.Problem, case: Case):
    engine, weights = engine_of(problem), case.weights(problem)
    steps = 2
    return engine, weights, {
        "wanted": [0] * steps,
        "indices": case.batches(case.runs, steps, case.batch),
        "losses": weights.new_empty(steps, case.runs),
    }  # fmt: skip


def with_last(indices, value):
    indices = indices.clone()
    indices[-1, -1, -1] = value
    return indices


CHANGES = [
    ({"indices": lambda v: v.float()}, TypeError, "incompatible function arguments"),
    ({"indices": lambda v: v.int()}, TypeError, "incompatible function arguments"),
    ({"indices": lambda v: v + 13}, ValueError, r"index \d+ of 13 samples"),
    ({"indices": lambda v: v - 13}, ValueError, r"index -\d+ of 13 samples"),
    ({"indices": lambda v: with_last(v, 13)}, ValueError, "index 13 of 13 samples"),
    ({"indices": lambda v: with_last(torch.cat([v, v], 2), 13)[..., v.shape[2] :]}, ValueError, "index 13 of 13 samples"),
    ({"indices": lambda v: v[:3]}, ValueError, r"indices must be \(runs, steps, batch\)"),
    ({"indices": lambda v: v.mT.contiguous().mT}, ValueError, "contiguous by batch"),
    ({"indices": lambda v: v[:, :, :0]}, ValueError, "a batch has at least one sample"),
    ({"losses": lambda v: v.float()}, TypeError, "incompatible function arguments"),
    ({"losses": lambda v: v[:1]}, ValueError, r"losses has shape \(1, 5\); expected \(2, 5\)"),
    ({"losses": lambda v: v.T.contiguous().T}, TypeError, "incompatible function arguments"),
    ({"weights": lambda v: v[:, 1:].contiguous()}, ValueError, "weights have 50 columns for 51 parameters"),
    ({"weights": lambda v: v.half()}, TypeError, "incompatible function arguments"),
    ({"wanted": lambda v: [COSINE] * 2}, ValueError, "a cosine needs the gradient before"),
    ({"wanted": lambda v: [KEEP_WEIGHTS] * 2}, ValueError, "no room for what is to be kept"),
    ({"wanted": lambda v: [0, KEEP_FULL_GRADIENT]}, ValueError, "no full gradient to keep"),
    ({"wanted": lambda v: [0, KEEP_GRADIENT], "kept_gradients": lambda v: torch.zeros(4, 51).double()}, ValueError,
     r"kept_gradients has shape \(4, 51\); expected \(5, 51\)"),
    ({"wanted": lambda v: [0, KEEP_GRADIENT], "indices": lambda v: None,
      "kept_gradients": lambda v: torch.zeros(5, 51).double()}, ValueError, "a gradient to keep needs a batch"),
    ({"rates": lambda v: np.ones(3)}, ValueError, "an update needs a step with a batch"),
    ({"rates": lambda v: np.ones(1), "rule": lambda v: "adam"}, ValueError, "the rule's memory is not complete"),
    ({"rates": lambda v: np.ones(1, np.float32)}, TypeError, "incompatible function arguments"),
    ({"rule": lambda v: "fast"}, ValueError, "'fast' is not known"),
    ({"options": lambda v: [0.0]}, ValueError, "six options of the rule"),
    ({"memory": lambda v: [torch.zeros(4, 51).double()], "rates": lambda v: np.ones(1),
      "options": lambda v: [0.9, 0.0, 0.0, 0.0, 0.0, 0.0]}, ValueError, r"memory has shape \(4, 51\); expected \(5, 51\)"),
    ({"set": lambda v: "abacus"}, ValueError, "instruction set 'abacus' is not one of this processor's"),
]  # fmt: skip


@built
@pytest.mark.parametrize(("changes", "error", "message"), CHANGES)
def test_what_does_not_fit_is_refused_at_the_door(changes, error, message):
    case = Case()
    problem = case.problem()
    engine, weights, options = arguments(problem, case)
    engine.run(engine.whole, weights, **options)
    targets, inputs = engine.targets, engine.inputs
    given = {"weights": weights, "rates": native.NO_UPDATE, **options}
    given = {name: given.get(name) for name in {**given, **changes}}
    given |= {name: change(given[name]) for name, change in changes.items()}
    given["wanted"] = np.asarray(given["wanted"], np.uint8)
    with pytest.raises(error, match=message):
        native.MODULE.run(engine.whole, given.pop("weights"), inputs, None, targets, **given)


@built
def test_networks_and_data_that_do_not_fit_are_refused():
    network, row = native.MODULE.Network, (2, 3, 0, 6, "relu", [])
    for layers, loss, message in (
        ([], "mse", "at least one layer"),
        ([row, (2, 3, 8, 14, "relu", [])], "mse", "a layer's inputs are the outputs of the one before"),
        ([(2, 3, 0, 7, "relu", [])], "mse", "weights lie outside the parameters"),
        ([(2, 0, 0, -1, "relu", [])], "mse", "sizes of layers are positive"),
        ([(2, 3, 0, 6, "step", [])], "mse", "'step' is not known"),
        ([row], "hinge", "'hinge' is not known"),
        ([row], "logistic", "the logistic loss takes one output"),
        ([(*row[:4], "polynomial", [])], "mse", "a polynomial at least one"),
        ([(*row[:4], "leaky_relu", [])], "mse", "a leaky ReLU has one constant"),
        ([(*row[:4], "relu", [1.0])], "mse", "other activations none"),
    ):
        with pytest.raises(ValueError, match=message):
            network(layers, loss, 0.0)
    whole, weights, one = network([row], "cross_entropy", 0.0), torch.zeros(1, 8), np.zeros(1, np.uint8)
    options = {"wanted": one, "rates": native.NO_UPDATE}
    with pytest.raises(ValueError, match="inputs have 4 columns for 3 inputs"):
        native.MODULE.run(whole, weights, torch.zeros(5, 4), None, torch.zeros(5).long(), **options)
    with pytest.raises(ValueError, match="one target per sample is needed"):
        native.MODULE.run(whole, weights, torch.zeros(5, 3), None, torch.zeros(4).long(), **options)
    single = network([(1, 3, 0, -1, "relu", [])], "logistic", 0.0)
    with pytest.raises(ValueError, match="class -1 of 2 classes"):
        native.MODULE.run(single, weights[:, :3].contiguous(), torch.zeros(5, 3), None, torch.full((5,), -1), **options)
    with pytest.raises(ValueError, match="class 2 of 2 classes"):
        native.MODULE.run(whole, weights, torch.zeros(5, 3), None, torch.full((5,), 2), **options)


# Around it.


@built
def test_ctrl_c_is_answered_within_a_second():
    """The handler's exception comes out of the call, and the next call works."""
    case = Case((64, 200, 10), "relu", dtype=torch.float32, runs=64)
    engine = engine_of(case.problem())
    trainer, weights = engine.trainer(SGD(0.1)), case.weights(engine.problem)
    for threads in (1, 2):
        engine.threads = threads
        indices = case.batches(64, 10, 4)[:, :1].expand(64, 200_000, 4)  # minutes of work, no memory
        timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
        start = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            trainer(weights, {}, indices, np.zeros(200_000), 0, {}, {}, None)
        assert time.monotonic() - start < 0.3 + 1.5  # the machine may be busy
    assert agrees(engine_of(Case().problem()), Case())


def test_without_the_module_everything_goes_through_torch(monkeypatch):
    monkeypatch.setattr(native, "MODULE", None)
    monkeypatch.setattr(native, "MISSING", "No module named 'shotnoise._native'")
    problem = Case().problem()
    assert choose(problem).key == "dense" and native.instruction_sets() == []
    with pytest.raises(InputError, match="installed without its compiled engine .*No module named"):
        choose(problem, "native")
    shown = CliRunner().invoke(app, ["info"])
    assert "engines of simulate: linear, dense" in shown.stdout and "native: not there (No module named" in shown.stdout


@built
def test_info_says_what_is_there():
    shown = CliRunner().invoke(app, ["info"])
    assert (
        "engines of simulate: native, linear, dense" in shown.stdout
        and f"native: compiled, uses {SETS[0]}" in shown.stdout
    )
    assert f"shotnoise {sn.__version__}" in shown.stdout


@pytest.mark.parametrize("engine", [*(["native"] if native.MODULE is not None else []), "dense", "stacked"])
def test_a_result_names_its_engine_and_the_instructions(engine, tmp_path):
    expected = SETS[0] if engine == "native" else torch.backends.cpu.get_cpu_capability().lower()
    for store in (None, tmp_path / "store"):
        found = simulated(Case(runs=2), SGD(0.1), engine, 1, record=["loss"], store=store)
        assert (found.attrs["engine"], found.attrs["instruction_set"]) == (engine, expected)


@built
def test_a_store_that_goes_on_with_other_instructions_says_so(tmp_path, monkeypatch):
    """The engine is part of what a store is; the processor may change, and the store notes it."""
    case, others = Case(runs=4), [name for name in SETS if name != SETS[0]]
    options = {"record": ["loss"], "store": tmp_path / "store", "block": 2}
    simulated(case, SGD(0.1), "native", shard=(1, 2), **options)
    monkeypatch.setattr(native, "instruction_sets", lambda: others)
    if not others:
        pytest.skip("this processor has one set only")
    with pytest.warns(UserWarning, match=f"another processor .*instruction_set {SETS[0]} before and {others[0]} now"):
        simulated(case, SGD(0.1), "native", **options)


@built
def test_large_networks_are_left_to_matrix_products():
    assert choose(sn.Problem(nn.Linear(200, 100), "mse", torch.zeros(3, 200), torch.zeros(3, 100))).key == "dense"


@built
def test_all_bits_are_seen_together():
    """The full quantities beside each other are those taken alone."""
    case = Case(runs=3)
    engine = engine_of(case.problem())
    weights = case.weights(engine.problem)
    names = ("full_losses", "full_norms", "accuracies")
    found = {name: weights.new_empty(1, 3) for name in names}
    engine.run(engine.whole, weights, wanted=[FULL_LOSS | FULL_GRADIENT | ACCURACY | GRADIENT_NORM], **found)
    losses, gradients = engine.full(weights)
    assert torch.equal(found["full_losses"][0], losses)
    assert close(found["full_norms"][0], gradients.norm(dim=1))
    assert close(found["accuracies"][0], engine.accuracies(weights))
