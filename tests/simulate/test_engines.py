"""Every engine that takes a problem gives the losses and gradients of plain autograd, run by run, at any weights.

The slow twin copies the model, loads one run's weights into it and calls `loss.backward()`.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils.data import Dataset

import shotnoise as sn
from model_cases import Calls, Doubled, frozen, tied_linears
from shotnoise.errors import InputError
from shotnoise.models import Polynomial
from shotnoise.simulate.engines import ENGINES, Engine, choose, dense, native, stacked
from shotnoise.simulate.engines.dense import Dense
from shotnoise.simulate.engines.stacked import Stacked
from slow_twin import TOLERANCE, call, log_cosh

N, RUNS, BATCH = 12, 4, 5
DOUBLE, SINGLE = torch.float64, torch.float32
MEAN_LOSS = {  # written without the library
    "cross_entropy": F.cross_entropy,
    "mse": lambda outputs, targets: 0.5 * ((outputs - targets) ** 2).sum() / len(outputs),
    "logistic": lambda outputs, targets: F.binary_cross_entropy_with_logits(
        outputs.flatten(), targets.flatten().to(outputs)
    ),
    log_cosh: lambda outputs, targets: log_cosh(outputs, targets).mean(),
}
BUILT = ("native",) if native.MODULE is not None else ()
ANY, SLOW = ("stacked", "one-by-one"), ("one-by-one",)
NETWORK = (*BUILT, "dense", *ANY)
REGRESSION = (*BUILT, "linear", *NETWORK[len(BUILT) :])
NOT_LINEAR = "not a linear regression with one output"


class Items(Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], self.targets[i]


@dataclass(frozen=True, eq=False)
class Case:
    """A problem and the engines that take it, the fastest first; why_not: what those say that do not."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3,)
    loss: object = "mse"
    l2: float = 0.0
    takes: tuple[str, ...] = NETWORK
    why_not: dict[str, str] = field(default_factory=dict)
    inputs: Callable[[], object] | None = None
    targets: Callable[[Tensor], Tensor] | None = None
    dataset: bool = False

    def make(self, dtype: torch.dtype) -> sn.Problem:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = self.build().to(dtype)
            inputs = torch.randn(N, *self.shape) if self.inputs is None else self.inputs()
            if isinstance(inputs, dict):
                inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            else:
                inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
            outputs = call(model, inputs).detach()
            if self.targets is not None:
                targets = self.targets(outputs)
            elif self.loss == "logistic":
                targets = torch.randint(0, 2, (N,))
            elif self.loss == "cross_entropy":
                targets = torch.randint(0, outputs.shape[1], (N, *outputs.shape[2:]))
            else:
                targets = torch.randn(outputs.shape).to(dtype)
        if self.dataset:
            return sn.Problem(model, self.loss, Items(inputs, targets), l2=self.l2)
        return sn.Problem(model, self.loss, inputs, targets, l2=self.l2)

    def __str__(self):
        return self.name


def layers(*sizes: int, act: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i, o in pairwise(sizes):
        parts += [nn.Linear(i, o, bias=bias), act()]
    return nn.Sequential(*parts[:-1])


class Shifted(Polynomial):
    def forward(self, z):
        return super().forward(z) + 1


def hooked(model: nn.Module) -> nn.Module:
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def branching(self, x):
    """A branch on the weights, which vmap refuses."""
    return self.head(x if self.head.bias.sum() > 0 else x.square())


def not_known(kind: str) -> dict[str, str]:
    return {"dense": f"{kind} is not a Linear layer or a known activation"}


CUT = {"dense": "a layer is frozen, or shares its weights"}
WORDS = {"inputs": lambda: torch.randint(0, 6, (N, 4))}

CASES = [
    Case("line", lambda: nn.Linear(3, 1), takes=REGRESSION),
    Case("line-no-bias", lambda: nn.Linear(3, 1, bias=False), takes=REGRESSION),
    Case("line-l2", lambda: nn.Linear(3, 1), l2=0.3, takes=REGRESSION),
    Case("line-one-input", lambda: nn.Sequential(nn.Linear(1, 1)), (1,), takes=REGRESSION),
    Case("line-flattened", lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 1)), (3, 2)),
    Case("multi-output", lambda: nn.Linear(3, 2), l2=0.1),
    Case("multi-output-no-bias", lambda: nn.Linear(3, 2, bias=False)),
    Case("softmax", lambda: nn.Linear(3, 4), loss="cross_entropy"),
    Case("softmax-no-bias-l2", lambda: nn.Linear(3, 4, bias=False), loss="cross_entropy", l2=0.2),
    Case("logistic", lambda: nn.Linear(3, 1), loss="logistic"),
    Case("logistic-no-bias-l2", lambda: nn.Linear(3, 1, bias=False), loss="logistic", l2=0.2),
    Case("logistic-network", lambda: layers(3, 5, 4, 1, act=nn.ReLU), loss="logistic", l2=0.1,
         targets=lambda outputs: (torch.arange(N)[:, None] % 3 == 0).to(outputs)),
    Case("logistic-one-axis", lambda: Calls(lambda self, x: self.a(x)[:, 0], a=nn.Linear(3, 1)), loss="logistic",
         takes=ANY, why_not=not_known("Calls")),
    Case("logistic-item-by-item", lambda: layers(3, 4, 1), loss="logistic", takes=ANY, dataset=True,
         why_not={"dense": "the inputs are not one tensor in memory"}),
    Case("deep-linear", lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))),
    Case("relu", lambda: layers(3, 6, 4, act=nn.ReLU), loss="cross_entropy"),
    Case("relu-no-bias", lambda: layers(3, 6, 5, 2, act=nn.ReLU, bias=False), l2=0.1),
    Case("relu-in-place", lambda: layers(3, 6, 2, act=lambda: nn.ReLU(inplace=True))),
    Case("tanh", lambda: layers(3, 5, 5, 2), l2=0.1),
    Case("tanh-no-bias", lambda: layers(3, 5, 4, bias=False), loss="cross_entropy", l2=0.3),
    Case("sigmoid", lambda: layers(3, 5, 4, act=nn.Sigmoid), loss="cross_entropy"),
    Case("sigmoid-no-bias", lambda: layers(3, 5, 5, 1, act=nn.Sigmoid, bias=False)),
    Case("leaky", lambda: layers(3, 6, 3, act=lambda: nn.LeakyReLU(0.2)), loss="cross_entropy", l2=0.1),
    Case("leaky-no-bias", lambda: layers(3, 6, 2, act=nn.LeakyReLU, bias=False)),
    Case("mixed-biases", lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(),
                                               nn.Linear(4, 2, bias=False))),
    Case("flatten-first", lambda: nn.Sequential(nn.Flatten(), *layers(6, 5, 3)), (2, 3), "cross_entropy"),
    Case("nested", lambda: nn.Sequential(nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(6, 5)), nn.Sequential(
        nn.Sequential(nn.ReLU()), layers(5, 4, 3))), (3, 2), "cross_entropy", l2=0.2),
    Case("no-act-between", lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))),
    Case("polynomial", lambda: layers(3, 5, 4, 2, act=lambda: Polynomial([0.3, 1.0, -0.2, 0.05])), l2=0.1),
    Case("polynomial-no-bias", lambda: layers(3, 5, 4, act=lambda: Polynomial([0.0, 0.5, 0.1]), bias=False),
         loss="cross_entropy"),
    Case("polynomial-of-ones-own", lambda: layers(3, 5, 2, act=lambda: Shifted([0.0, 0.5, 0.1])), takes=ANY,
         why_not=not_known("Shifted")),
    Case("gelu", lambda: layers(3, 5, 2, act=nn.GELU), takes=(*BUILT, *ANY), why_not=not_known("GELU")),
    Case("leaky-flat", lambda: layers(3, 5, 2, act=lambda: nn.LeakyReLU(0.0)), takes=ANY,
         why_not=not_known("LeakyReLU")),
    Case("leaky-down", lambda: layers(3, 5, 2, act=lambda: nn.LeakyReLU(-0.5)), takes=ANY,
         why_not=not_known("LeakyReLU")),
    Case("act-first", lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), takes=ANY,
         why_not={"dense": "an activation does not follow a Linear layer"}),
    Case("flatten-inside", lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 2)), (4, 3), takes=ANY,
         why_not={"dense": "a Flatten module is not the first, or keeps axes"}),
    Case("flatten-some", lambda: nn.Sequential(nn.Flatten(1, 2), nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 1)),
         (2, 2, 3), takes=ANY, why_not={"dense": "a Flatten module is not the first, or keeps axes"}),
    Case("positions", lambda: nn.Linear(3, 2), (4, 3), takes=ANY, why_not={"dense": "the layers act on further axes"}),
    Case("hooks", lambda: hooked(layers(3, 4, 2)), takes=ANY, why_not={"dense": "the model has hooks"}),
    Case("parametrized", lambda: nn.Sequential(orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)), takes=ANY,
         why_not=not_known("ParametrizedLinear")),
    Case("own-loss", lambda: layers(3, 4, 2), loss=log_cosh, l2=0.1, takes=ANY,
         why_not={"dense": r"loss 'log_cosh' with targets \(12, 2\) is not written out"}),
    Case("soft-labels", lambda: layers(3, 4, 5), loss="cross_entropy", takes=ANY,
         targets=lambda outputs: torch.randn(outputs.shape).to(outputs.dtype).softmax(1),
         why_not={"dense": r"loss 'cross_entropy' with targets \(12, 5\) is not written out"}),
    Case("cnn", lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)),
         (2, 6, 6), "cross_entropy", l2=0.1, takes=ANY, why_not=not_known("Conv2d")),
    Case("layer-norm", lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), takes=ANY,
         why_not=not_known("LayerNorm")),
    Case("batch-norm-evaluated", lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval(),
         takes=ANY, why_not=not_known("BatchNorm1d")),
    Case("dropout-evaluated", lambda: nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.Linear(5, 2)).eval(), takes=ANY,
         why_not=not_known("Dropout")),
    Case("words", lambda: nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(12, 3)), loss="cross_entropy",
         takes=ANY, why_not=not_known("Embedding"), **WORDS),
    Case("named-inputs", lambda: Calls(lambda self, *, image, word: self.a(image) + self.b(word).sum(1),
                                       a=nn.Linear(3, 3), b=nn.Embedding(6, 3)), l2=0.1, takes=ANY,
         inputs=lambda: {"image": torch.randn(N, 3), "word": torch.randint(0, 6, (N, 2))}, why_not=not_known("Calls")),
    Case("read-item-by-item", lambda: layers(3, 4, 2), takes=ANY, dataset=True,
         why_not={"dense": "the inputs are not one tensor in memory"}),
    Case("frozen-layer", lambda: frozen(layers(3, 5, 2), "0.*"), l2=0.1, takes=ANY, why_not=CUT),
    Case("frozen-bias", lambda: frozen(layers(3, 5, 2), "2.bias"), takes=ANY, why_not=CUT),
    Case("shared-weights", tied_linears, l2=0.1, takes=ANY, why_not=CUT),
    Case("called-twice", lambda: Calls(lambda self, x: self.a(torch.tanh(self.a(x))), a=nn.Linear(3, 3)), takes=ANY,
         why_not=not_known("Calls")),
    Case("unused", lambda: Calls(lambda self, x: self.a(x), a=nn.Linear(3, 2), b=nn.Linear(2, 2)), takes=ANY,
         why_not=not_known("Calls")),
    Case("without-vmap", lambda: Calls(lambda self, x: self.head(Doubled.apply(x * self.scale)), head=nn.Linear(3, 3),
                                       scale=nn.Parameter(torch.ones(3))), loss="cross_entropy", l2=0.2, takes=SLOW,
         why_not=not_known("Calls") | {"stacked": "RuntimeError: .*autograd.Function"}),
    Case("branching", lambda: Calls(branching, head=nn.Linear(3, 2)), takes=SLOW,
         why_not=not_known("Calls") | {"stacked": "RuntimeError: .*control.flow"}),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
TAKEN = [(case, engine) for case in CASES for engine in case.takes]
IN_SINGLE = [
    (case, engine) for case in CASES for engine in case.takes[:3] if engine != "one-by-one" or case.takes == SLOW
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_pair = pytest.mark.parametrize(("case", "name"), TAKEN, ids=lambda value: str(value))


@cache
def problem_of(case: Case, dtype: torch.dtype) -> sn.Problem:
    return case.make(dtype)


@cache
def engine_of(case: Case, dtype: torch.dtype, name: str) -> Engine:
    return choose(problem_of(case, dtype), name, BATCH)


def runs_of(problem: sn.Problem, seed: int = 0) -> Tensor:
    """Weights (RUNS, P), all different."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters() if p.requires_grad])
    return own + 0.7 * torch.randn(RUNS, len(own), generator=generator).to(own)


BATCHES = torch.tensor([[0, 5, 5, 11, 2], [3, 3, 3, 3, 3], [11, 10, 9, 8, 7], [1, 4, 1, 6, 4]])  # some samples twice


def taken(tree, indices):
    return {k: v[indices] for k, v in tree.items()} if isinstance(tree, dict) else tree[indices]


def tensors_of(problem: sn.Problem):
    samples = problem.samples
    return (samples.inputs, samples.targets) if hasattr(samples, "inputs") else vars(samples.dataset).values()


def by_autograd(case: Case, problem: sn.Problem, weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient (P,) and outputs of one run, penalty included."""
    model, start = deepcopy(problem.model), 0
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = weights[start : start + p.numel()].view(p.shape).clone()
        start += p.numel()
    inputs, targets = (taken(tree, indices) for tree in tensors_of(problem))
    outputs = call(model, inputs)
    penalty = sum((p**2).sum() for p in trained)
    loss = MEAN_LOSS[case.loss](outputs, targets) + case.l2 / 2 * penalty
    loss.backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    return loss.detach(), torch.cat([g.reshape(-1) for g in gradient]), outputs.detach()


def expected(case: Case, problem: sn.Problem, weights: Tensor, batches: Tensor) -> tuple[Tensor, Tensor]:
    each = [by_autograd(case, problem, w, batch)[:2] for w, batch in zip(weights, batches, strict=True)]
    return torch.stack([loss for loss, _ in each]), torch.stack([g for _, g in each])


def close(found: Tensor, true: Tensor) -> bool:
    """Equal shapes and types, and equal numbers but for rounding, on the scale of each run."""
    if found.shape != true.shape or found.dtype != true.dtype or found.requires_grad:
        return False
    scale = true.abs().reshape(len(true), -1).amax(1)
    return bool(((found - true).abs().reshape(len(true), -1).amax(1) <= TOLERANCE[true.dtype] * scale).all())


def test_the_comparison_can_fail():
    case = BY_NAME["tanh"]
    for dtype in (DOUBLE, SINGLE):
        problem, engine = problem_of(case, dtype), engine_of(case, dtype, "dense")
        weights, tiny = runs_of(problem), 20 * TOLERANCE[dtype]
        _, true = expected(case, problem, weights, BATCHES)
        for wrong in (
            true.flip(0),
            true * (1 + tiny),
            true + tiny * true[1:2].abs().max() * torch.eye(RUNS, true.shape[1]),
        ):
            assert not close(wrong.to(dtype), true)
        assert not close(engine.minibatch(weights, BATCHES.flip(0))[1], true)
        assert not close(engine.minibatch(weights, BATCHES.sort().values.roll(1, 0))[1], true)
        assert not close(true.to(SINGLE if dtype == DOUBLE else DOUBLE), true)


def everything(engine: Engine, weights: Tensor, classes: bool) -> list[Tensor]:
    """All that an engine says of all the data."""
    losses, gradients = engine.full(weights)
    return [losses, gradients, engine.full_losses(weights), *([engine.accuracies(weights)] if classes else [])]


def has_classes(case: Case) -> bool:
    return case.loss == "logistic" or (case.loss == "cross_entropy" and case.targets is None)


def share_right(case: Case, outputs: Tensor, targets: Tensor) -> Tensor:
    if case.loss == "logistic":
        return ((outputs.flatten() > 0) == (targets.flatten() == 1)).double().mean()
    return (outputs.argmax(1) == targets).double().mean()


@cache
def truth_of(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """What minibatch, and everything, must give at `runs_of`, by autograd."""
    problem = problem_of(case, dtype)
    weights, (_, targets) = runs_of(problem), tensors_of(problem)
    each = [by_autograd(case, problem, w, torch.arange(N)) for w in weights]
    losses, gradients = (torch.stack([found[i] for found in each]) for i in (0, 1))
    right = [share_right(case, outputs, targets) for *_, outputs in each] if has_classes(case) else None
    full = [losses, gradients, losses, *([] if right is None else [torch.stack(right)])]
    return list(expected(case, problem, weights, BATCHES)), full


def all_close(found: Sequence[Tensor], true: Sequence[Tensor]) -> bool:
    return all(close(value, expected) for value, expected in zip(found, true, strict=True))


@pytest.mark.parametrize(
    ("case", "name", "dtype"), [(*pair, DOUBLE) for pair in TAKEN] + [(*pair, SINGLE) for pair in IN_SINGLE], ids=str
)
def test_an_engine_is_autograd_run_by_run(case, name, dtype):
    problem, engine = problem_of(case, dtype), engine_of(case, dtype, name)
    weights, (minibatch, full) = runs_of(problem), truth_of(case, dtype)
    assert all_close(engine.minibatch(weights, BATCHES), minibatch)
    assert all_close(everything(engine, weights, has_classes(case)), full)
    assert torch.equal(weights, runs_of(problem)), "an engine changes nothing"
    if name != "linear" and not case.dataset:
        as_samples = tuple(taken(tree, BATCHES) for tree in tensors_of(problem))
        assert all_close(engine.minibatch(weights, as_samples), minibatch)
    alone, sample = runs_of(problem, seed=1)[:1], torch.tensor([[7]])
    assert all_close(engine.minibatch(alone, sample), expected(case, problem, alone, sample))


@every_pair
def test_rows_never_influence_each_other(case, name):
    """A run of NaN and one of huge weights beside others, which come out as if they were not there."""
    problem, engine = problem_of(case, DOUBLE), engine_of(case, DOUBLE, name)
    weights, (minibatch, full) = runs_of(problem), truth_of(case, DOUBLE)
    weights[1], weights[3] = float("nan"), 1e200
    found, whole = engine.minibatch(weights, BATCHES), everything(engine, weights, has_classes(case))
    for value, true in zip([*found, *whole], [*minibatch, *full], strict=True):
        assert close(value[[0, 2]], true[[0, 2]])
    assert not any(bool(value[1].isfinite().all()) for value in (*found, *whole[:3]))


SLICED = ["flatten-first", "tanh", "softmax-no-bias-l2", "cnn", "named-inputs", "read-item-by-item", "without-vmap"]


@pytest.mark.parametrize("per_slice", [1, 5])
@pytest.mark.parametrize(
    ("case", "name"), [pair for pair in TAKEN if pair[0].name in SLICED and pair[1] != "native"], ids=str
)
def test_a_pass_over_all_the_data_in_slices_gives_the_same(case, name, per_slice, monkeypatch):
    problem, engine = problem_of(case, DOUBLE), engine_of(case, DOUBLE, name)
    weights = runs_of(problem)
    if isinstance(engine, Dense):
        widest = max(max(layer.inputs, layer.outputs) for layer in engine.layers)
        monkeypatch.setattr(dense, "SAMPLES_BYTES", per_slice * RUNS * widest * weights.element_size())
        sizes = [len(x) for x, _ in engine._slices(weights)]
    else:
        monkeypatch.setattr(stacked, "SAMPLES_BYTES", per_slice * RUNS * engine.widest)
        sizes = [count for _, _, count in engine.slices(weights)]
    assert sizes == [per_slice] * (N // per_slice) + [N % per_slice] * bool(N % per_slice)
    assert all_close(everything(engine, weights, has_classes(case)), truth_of(case, DOUBLE)[1])


def test_a_slice_holds_at_least_one_sample(monkeypatch):
    monkeypatch.setattr(dense, "SAMPLES_BYTES", 1)
    monkeypatch.setattr(stacked, "SAMPLES_BYTES", 1)
    for name in ("dense", "stacked"):
        engine = engine_of(BY_NAME["tanh"], DOUBLE, name)
        found = everything(engine, runs_of(engine.problem), False)
        assert all_close(found, truth_of(BY_NAME["tanh"], DOUBLE)[1])


def test_engines_leave_the_model_alone():
    case = BY_NAME["batch-norm-evaluated"]
    for name in case.takes:
        problem = case.make(DOUBLE)
        state = deepcopy(problem.model.state_dict())
        random, modes = torch.get_rng_state(), [m.training for m in problem.model.modules()]
        engine = choose(problem, name)
        engine.minibatch(runs_of(problem), BATCHES)
        everything(engine, runs_of(problem), False)
        assert all(torch.equal(value, state[key]) for key, value in problem.model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random) and modes == [m.training for m in problem.model.modules()]
        assert all(p.grad is None and p.requires_grad for p in problem.model.parameters())


@every_case
def test_the_fastest_engine_that_holds_is_chosen(case):
    problem = problem_of(case, DOUBLE)
    assert choose(problem, "auto", BATCH).key == case.takes[0]
    if not case.dataset and not isinstance(problem.samples.inputs, dict):
        without_linear = [name for name in case.takes if name != "linear"]
        assert choose(problem, "auto", BATCH, online=True).key == without_linear[0]


def test_linear_regression_gathers_samples_where_they_are_few_of_many():
    model = nn.Linear(3, 1)
    problem = sn.Problem(model, "mse", torch.randn(48, 3), torch.randn(48, 1))
    assert [choose(problem, "torch", batch_size=b).key for b in (1, 2, 3, 48)] == ["dense", "dense", "linear", "linear"]
    assert choose(problem, "linear", batch_size=1).key == "linear"


@every_case
def test_an_engine_that_does_not_take_a_problem_says_why(case):
    for name in set(ENGINES) - set(case.takes) - ({"native"} - set(BUILT)):
        why = NOT_LINEAR if name == "linear" else case.why_not["dense" if name == "native" else name]
        with pytest.raises(InputError, match=f"engine='{name}' does not take this problem: {why}.*; use engine='auto'"):
            choose(problem_of(case, DOUBLE), name, BATCH)


def test_engines_that_are_not_there():
    problem = problem_of(BY_NAME["line"], DOUBLE)
    with pytest.raises(
        InputError, match="""engine='fast' is not known; use "auto", "torch" or one of 'native', 'linear', 'dense'"""
    ):
        choose(problem, "fast")
    with pytest.raises(InputError, match="engine='linear' works on the residuals of a data set; use 'dense' or 'auto'"):
        choose(problem, "linear", online=True)


# What an engine gets wrong is seen before it is used.


def minibatch_with(change: Callable[[Tensor], Tensor]):
    right = Dense._minibatch

    def minibatch(self, weights, batch):
        losses, gradients = right(self, weights, batch)
        return losses, change(gradients)

    return minibatch


def one_entry_negated(gradients: Tensor) -> Tensor:
    gradients[:, 0] = -gradients[:, 0]
    return gradients


WRONG = {
    "one per thousand": lambda g: 1.001 * g,
    "one entry": one_entry_negated,
    "nothing": torch.zeros_like,
    "NaN": lambda g: g * float("nan"),
    "one run": lambda g: torch.cat([g[:1], 2 * g[1:]]),
}


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_seen(change, dtype, monkeypatch):
    problem = BY_NAME["tanh"].make(dtype)
    assert choose(problem, "torch").key == "dense"
    monkeypatch.setattr(Dense, "_minibatch", minibatch_with(change))
    assert choose(problem, "torch").key == "stacked"
    with pytest.raises(InputError, match="engine='dense' .* its gradient differs from that of autograd by .*, of "):
        choose(problem, "dense")


def test_an_engine_that_fails_is_passed_over(monkeypatch):
    def fails(self, weights, batch):
        raise ValueError("no such kernel\nand more")

    problem = BY_NAME["tanh"].make(DOUBLE)
    monkeypatch.setattr(Dense, "_minibatch", fails)
    assert choose(problem, "torch").key == "stacked"
    monkeypatch.setattr(Stacked, "_minibatch", fails)
    assert choose(problem, "torch").key == "one-by-one"
    with pytest.raises(InputError, match="engine='stacked' .*: ValueError: no such kernel; use"):
        choose(problem, "stacked")


def test_where_no_engine_holds_it_is_said(monkeypatch):
    def fails(self, weights, batch):
        raise ValueError("broken")

    for engine in (native.Native, Dense, Stacked, stacked.OneByOne):
        monkeypatch.setattr(engine, "_minibatch", fails)
    with pytest.raises(InputError, match="no engine differentiates Sequential: ValueError: broken"):
        choose(BY_NAME["tanh"].make(DOUBLE))


def test_rounding_is_not_taken_for_a_wrong_gradient():
    """In single precision, at weights where the gradients of the samples nearly cancel."""
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            problem = sn.Problem(layers(3, 40, 40, 3), "cross_entropy", torch.randn(3, 3), torch.tensor([0, 1, 2]))
        assert choose(problem, "torch").key == "dense"


def test_labels_read_item_by_item_are_looked_at_before_they_are_used():
    """The examinations of a problem and of an engine see a few samples only; the wrong label is not among them."""
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    y[21] = -1
    problem = sn.Problem(nn.Linear(3, 1), "logistic", Items(x, y))
    problem.examine()
    for record in ("loss", "minibatch_loss"):
        with pytest.raises(sn.DataError, match="logistic takes labels 0 and 1, but among the targets are -1"):
            sn.simulate(problem, sn.rules.SGD(0.1), 30, 3, 2, record=record, workers=1)
