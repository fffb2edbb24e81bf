"""Run r of an ensemble is the training that one would write by hand: torch.optim on the batches of its own stream."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.linalg import sqrtm
from torch import Tensor, nn

import shotnoise as sn
from model_cases import Calls, Doubled
from shotnoise import sampling
from shotnoise.errors import InputError
from shotnoise.rules import SGD, Adam, AdamW, Clipped, DampedNewton, NaturalGradient, RMSProp, Rule
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, WithoutReplacement, WithReplacement
from shotnoise.schedules import InverseTime, values
from shotnoise.simulate import block
from shotnoise.simulate.engines import choose
from shotnoise.simulate.recorders import NAMED, Recorder
from shotnoise.simulate.streams import BATCHES, INITIAL_WEIGHTS, REDRAWS

STEPS, SEED, N = 8, 5, 15
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
MEAN_LOSS = {
    "cross_entropy": F.cross_entropy,
    "mse": lambda out, y: 0.5 * ((out - y) ** 2).sum() / len(out),
    "logistic": lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.to(out)),
}
ALL = [name for name, recorder in NAMED.items() if recorder.per == "run"]
SEEN = [name for name in ALL if name != "accuracy"]


# Problems and rules.


def run_stream(seed: int, run: int, purpose: int, cell: tuple[int, ...] = ()) -> np.random.Generator:
    """What a run draws from, as NumPy makes it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, run, *cell)))


@cache
def problem(kind: str) -> sn.Problem:
    build, shape, loss, outputs, l2 = {
        "regression": (lambda: nn.Linear(3, 1), (3,), "mse", 1, 0.0),
        "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), (3,), "cross_entropy", 4, 0.1),
        "cnn": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)), (2, 5), "mse", 2,
                0.05),
        "slow": (lambda: Calls(lambda self, x: self.head(Doubled.apply(torch.tanh(x * self.scale))),
                               head=nn.Linear(3, 3), scale=nn.Parameter(torch.ones(3))), (3,), "cross_entropy", 3, 0.0),
    }[kind]  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = build().double(), torch.randn(N, *shape, dtype=torch.float64)
        y = torch.randn(N, outputs, dtype=torch.float64) if loss == "mse" else torch.randint(outputs, (N,))
    return sn.Problem(model, loss, x, y, l2=l2)


@dataclass(frozen=True)
class Twin:
    """A rule and the torch optimizer that it must equal, with the same options."""

    ours: type[Rule]
    theirs: type[torch.optim.Optimizer]
    rate: object = 0.05
    options: dict = field(default_factory=dict)

    @property
    def rule(self) -> Rule:
        return self.ours(self.rate, **self.options)

    def rates(self, steps: int) -> np.ndarray:
        return values(self.rate, steps)

    def __str__(self):
        return f"{self.ours.__name__}-{self.rate}-{self.options}"


DECAYING, BY_STEP = InverseTime(0.2, 0.3), [0.1, 0.2, 0.0, 0.05] * (STEPS // 4)
MOMENTUM = Twin(SGD, torch.optim.SGD, 0.1, {"momentum": 0.9})
TWINS = [
    Twin(SGD, torch.optim.SGD, 0.2),
    Twin(SGD, torch.optim.SGD, DECAYING, {"momentum": 0.9}),
    Twin(SGD, torch.optim.SGD, BY_STEP, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    Twin(SGD, torch.optim.SGD, DECAYING, {"momentum": 0.5, "dampening": 0.5, "weight_decay": 0.2}),
    Twin(Adam, torch.optim.Adam, DECAYING),
    Twin(Adam, torch.optim.Adam, 0.05, {"betas": (0.5, 0.9), "weight_decay": 0.1, "amsgrad": True}),
    Twin(AdamW, torch.optim.AdamW, BY_STEP, {"weight_decay": 0.3}),
    Twin(RMSProp, torch.optim.RMSprop, DECAYING, {"eps": 1e-3}),
    Twin(RMSProp, torch.optim.RMSprop, 0.01, {"momentum": 0.5, "centered": True, "weight_decay": 0.1}),
]


# The training by hand.


def loaded(model: nn.Module, vector: Tensor | None) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy of a model, with these weights."""
    model = deepcopy(model)
    trained, start = [p for p in model.parameters() if p.requires_grad], 0
    for p in trained if vector is not None else ():
        p.data = vector[start : start + p.numel()].view(p.shape).clone()
        start += p.numel()
    return model, trained


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).clone()


Sample = tuple[Tensor, Tensor]


class ByHand:
    """One training of `problem` with torch, whose batches are samples; `seen` holds lists by step."""

    def __init__(self, problem: sn.Problem, twin: Twin, steps: int, start: Tensor | None = None) -> None:
        self.problem, self.twin, self.steps = problem, twin, steps
        self.model, self.trained = loaded(problem.model, start)
        self.optimizer = twin.theirs(self.trained, lr=0.0, **twin.options)
        self.seen: dict[str, list] = defaultdict(list)

    def data(self) -> Sample:
        return self.problem.samples.inputs, self.problem.samples.targets

    def loss(self, sample: Sample, model: nn.Module | None = None) -> Tensor:
        model = self.model if model is None else model
        x, y = sample
        penalty = sum((p**2).sum() for p in model.parameters() if p.requires_grad)
        return MEAN_LOSS[self.problem.loss_name](model(x), y) + self.problem.l2 / 2 * penalty

    def gradient(self, sample: Sample) -> tuple[float, Tensor]:
        self.optimizer.zero_grad()
        loss = self.loss(sample)
        loss.backward()
        return float(loss.detach()), flat(p.grad for p in self.trained)

    def run(
        self, batches: Iterable[Sample], others: Iterator[Sample] = iter(()), redraws: int = 0, every: int = 1
    ) -> dict:
        """others: the batches that are redrawn, so many at every recorded step."""
        rates, before = self.twin.rates(self.steps), None
        for t, sample in zip(range(self.steps + 1), batches, strict=False):
            self.look(self.gradient(self.data()))
            rate = float(rates[min(t, self.steps - 1)]) if self.steps else 0.0
            if t % every == 0 or t == self.steps:
                self.seen["loss_change"].append([self.change(next(others), rate) for _ in range(redraws)])
            loss, gradient = self.gradient(sample)
            self.seen["minibatch_loss"].append(loss)
            self.seen["minibatch_gradient_norm"].append(float(gradient.norm()))
            cosine = np.nan if before is None else float(F.cosine_similarity(gradient, before, 0, eps=0.0))
            self.seen["gradient_cosine"].append(cosine)
            before = gradient
            if t < self.steps:
                self.optimizer.param_groups[0]["lr"] = rate
                self.optimizer.step()
        return {name: np.array(found) for name, found in self.seen.items()}

    def look(self, full: tuple[float, Tensor]) -> None:
        loss, gradient = full
        self.seen["loss"].append(loss)
        self.seen["gradient_norm"].append(float(gradient.norm()))
        self.seen["gradient_norm_sq"].append(float(gradient.square().sum()))
        self.seen["weights"].append(flat(self.trained).numpy())
        x, y = self.data()
        if self.problem.loss_name == "cross_entropy":
            self.seen["accuracy"].append(float((self.model(x).argmax(1) == y).double().mean()))
        if self.problem.loss_name == "logistic":
            self.seen["accuracy"].append(float(((self.model(x)[:, 0] > 0) == (y == 1)).double().mean()))

    def change(self, sample: Sample, rate: float) -> float:
        """Of the full loss, by one update on another batch from here."""
        other = ByHand(self.problem, self.twin, self.steps, flat(self.trained))
        other.optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        other.gradient(sample)
        other.optimizer.param_groups[0]["lr"] = rate
        other.optimizer.step()
        return float((other.loss(self.data()) - self.loss(self.data())).detach())


def samples(problem: sn.Problem, batches: Iterable[np.ndarray]) -> Iterator[Sample]:
    """The samples with these indices."""
    for batch in batches:
        indices = torch.as_tensor(batch)
        yield problem.samples.inputs[indices], problem.samples.targets[indices]


def batches_of(
    r: int,
    b: int,
    rule_index: int = 0,
    steps: int = STEPS,
    scheme: sampling.Sampling = WithReplacement(),
    purpose: int = BATCHES,
    n: int = N,
) -> np.ndarray:
    """What the stream of run r gives, (steps + 1, b)."""
    return scheme.draws(b, n, [run_stream(SEED, r, purpose, (b, rule_index))])(steps + 1)[0]


def by_hand(problem: sn.Problem, twin: Twin, batches: np.ndarray, start: Tensor | None = None) -> dict:
    return ByHand(problem, twin, len(batches) - 1, start).run(samples(problem, batches))


def simulated(problem, rule, b, runs=3, steps=STEPS, **options):
    options = {"seed": SEED, "workers": 1, "record": SEEN} | options
    return sn.simulate(problem, rule, b, steps, runs, **options)


def agrees(found, r: int, true: dict, names: Sequence[str] = SEEN, **cell: int) -> bool:
    one = found.isel(run=r, **({"batch_size": 0} | cell))
    return all(
        one[name].shape == true[name].shape and np.allclose(one[name], true[name], equal_nan=True, **CLOSE)
        for name in names
    )


# The whole loop.


@pytest.mark.parametrize("twin", TWINS, ids=str)
def test_a_run_is_a_training_by_torch(twin):
    p = problem("mlp")
    found = simulated(p, twin.rule, 4, record=ALL)
    for r in range(3):
        true = by_hand(p, twin, batches_of(r, 4))
        assert agrees(found, r, true, ALL)
        assert not agrees(found, r, true | {"loss": true["loss"] * (1 + 1e-6)}, ["loss"])
    assert np.isnan(found["gradient_cosine"][..., 0]).all() and (found["divergence_step"] == -1).all()


@pytest.mark.parametrize(
    "scheme", [WithReplacement(), WithoutReplacement(), ReshuffledEpochs(), CyclicEpochs()], ids=str
)
@pytest.mark.parametrize(("kind", "engine"), [("regression", "linear"), ("mlp", "dense"), ("cnn", "stacked"),
                                              ("slow", "one-by-one")])  # fmt: skip
def test_a_run_is_a_training_by_torch_with_every_engine_and_scheme(kind, engine, scheme):
    p = problem(kind)
    found = simulated(p, MOMENTUM.rule, 4, sampling=scheme, engine="torch")
    assert found.attrs["engine"] == engine
    for r in (0, 2):
        assert agrees(found, r, by_hand(p, MOMENTUM, batches_of(r, 4, scheme=scheme)))


def test_the_comparison_rejects_another_training():
    p, batches = problem("mlp"), batches_of(1, 4)
    found = simulated(p, MOMENTUM.rule, 4)
    assert agrees(found, 1, by_hand(p, MOMENTUM, batches))
    for other in (
        by_hand(p, Twin(SGD, torch.optim.SGD, 0.1), batches),
        by_hand(p, Twin(SGD, torch.optim.SGD, 0.1, {"momentum": 0.9, "nesterov": True}), batches),
        by_hand(p, MOMENTUM, batches_of(2, 4)),
        by_hand(p, MOMENTUM, batches_of(1, 4, rule_index=1)),
        by_hand(p, MOMENTUM, batches_of(1, 4, purpose=REDRAWS)),
        by_hand(p, MOMENTUM, np.concatenate([batches[1:], batches[:1]])),
        by_hand(p, MOMENTUM, batches, torch.zeros(p.parameter_count, dtype=torch.float64)),
    ):
        assert not agrees(found, 1, other, ["loss"])


def test_every_batch_size_and_rule_has_batches_of_its_own():
    p, rules = problem("regression"), [Twin(SGD, torch.optim.SGD, rate) for rate in (0.1, 0.3)]
    found = simulated(p, [twin.rule for twin in rules], [2, 5], runs=2)
    assert found["loss"].dims == ("learning_rate", "batch_size", "run", "step")
    assert found["learning_rate"].values.tolist() == [0.1, 0.3] and found["batch_size"].values.tolist() == [2, 5]
    for i, twin in enumerate(rules):
        for j, b in enumerate((2, 5)):
            true = by_hand(p, twin, batches_of(1, b, rule_index=i))
            assert agrees(found, 1, true, learning_rate=i, batch_size=j)
    mixed = simulated(p, [rules[0].rule, MOMENTUM.rule], 5, runs=2)
    assert mixed["loss"].dims == ("optimizer", "batch_size", "run", "step")
    assert agrees(mixed, 1, by_hand(p, MOMENTUM, batches_of(1, 5, rule_index=1)), optimizer=1)


def test_no_update_at_all():
    found = simulated(problem("regression"), SGD(0.1), 4, steps=0)
    assert found["loss"].sizes["step"] == 1
    assert agrees(found, 2, by_hand(problem("regression"), Twin(SGD, torch.optim.SGD, 0.1), batches_of(2, 4, steps=0)))


# Run 17 is run 17.


class Spy:
    """An engine that keeps the batches it is given."""

    def __init__(self, engine):
        self.engine, self.batches = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def minibatch(self, weights, batch):
        self.batches.append(batch)
        return self.engine.minibatch(weights, batch)

    def trainer(self, rule):
        own = self.engine.trainer(rule)
        return own and SpyingTrainer(own, self.batches)


class SpyingTrainer:
    """Of many steps in one call."""

    def __init__(self, own, batches):
        self.own, self.observed, self.batches = own, own.observed, batches

    def __call__(self, weights, memory, indices, *others):
        self.batches.extend(indices.unbind(1))
        return self.own(weights, memory, indices, *others)


def pieces(problem, runs: int, size: int, **options) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values and batches (runs, steps + 1, b) of all runs, in blocks of `size`."""
    plan = sn.simulate.plan(problem, MOMENTUM.rule, 4, STEPS, runs, seed=SEED, block=size, record=SEEN, **options)
    contents, batches = [], []
    for i in range(plan.layout.pieces):
        spy = Spy(plan.engine())
        contents.append(block.run_piece(plan, plan.layout.piece(i), spy))
        batches.append(torch.stack(spy.batches, 1).numpy())
    return {name: np.concatenate([c[name] for c in contents]) for name in SEEN}, np.concatenate(batches)


FRESH_OR_NOT = [WithReplacement(), WithoutReplacement(), ReshuffledEpochs()]


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("cnn", WithReplacement()), *[(kind, scheme) for kind in ("regression", "mlp") for scheme in FRESH_OR_NOT]],
    ids=str,
)
def test_run_17_is_the_same_alone_and_in_any_crowd(kind, scheme, monkeypatch):
    p = problem(kind)
    crowd, drawn = pieces(p, 18, 18, sampling=scheme)
    assert np.array_equal(drawn[17], batches_of(17, 4, scheme=scheme))
    for size in (7,) if kind == "cnn" else (1, 7):
        found, again = pieces(p, 18, size, sampling=scheme)
        assert np.array_equal(again, drawn)
        for name in SEEN:
            np.testing.assert_allclose(found[name], crowd[name], rtol=1e-10, atol=1e-13)
    monkeypatch.setattr(block, "NUMBERS_AHEAD", 1)
    assert np.array_equal(pieces(p, 18, 7, sampling=scheme)[1], drawn)
    more, drawn_more = pieces(p, 21, 18, sampling=scheme)
    assert np.array_equal(drawn_more[:18], drawn) and np.array_equal(more["loss"][:18], crowd["loss"])


# Where runs start.


def test_resampled_weights_are_those_of_the_layers_by_run():
    p = problem("mlp")
    random = torch.get_rng_state()
    found = simulated(p, MOMENTUM.rule, 4, initial="resampled")
    assert torch.equal(torch.get_rng_state(), random)
    starts = []
    for r in range(3):
        model = deepcopy(p.model)
        with torch.random.fork_rng():
            torch.manual_seed(int(run_stream(SEED, r, INITIAL_WEIGHTS, (4, 0)).integers(2**63)))
            for layer in (model[0], model[2]):
                layer.reset_parameters()
        starts.append(flat(model.parameters()))
        assert agrees(found, r, by_hand(p, MOMENTUM, batches_of(r, 4), starts[-1]))
    assert not torch.equal(starts[0], starts[1])
    assert np.array_equal(found["weights"][0, :, 0], torch.stack(starts))


def test_first_weights_from_a_function():
    p = problem("mlp")
    count, shapes = p.parameter_count, {name: tuple(q.shape) for name, q in p.parameters.items()}

    def by_name(rng):
        return {name: 0.1 * rng.standard_normal(shape) for name, shape in shapes.items()}

    for initial in (lambda rng: 0.1 * rng.standard_normal(count), by_name):
        found = simulated(p, MOMENTUM.rule, 4, initial=initial)
        for r in (0, 2):
            start = torch.from_numpy(0.1 * run_stream(SEED, r, INITIAL_WEIGHTS, (4, 0)).standard_normal(count))
            assert agrees(found, r, by_hand(p, MOMENTUM, batches_of(r, 4), start))


def test_first_weights_that_cannot_be():
    p = problem("mlp")
    with pytest.raises(InputError, match=r"gave an array \(3,\); expected \(44,\), or the weights by name"):
        simulated(p, SGD(0.1), 4, initial=lambda rng: np.zeros(3))
    with pytest.raises(InputError, match=r"initial\(rng\) gave weights .*; expected"):
        simulated(p, SGD(0.1), 4, initial=lambda rng: {"0.weight": np.zeros((5, 3))})
    with pytest.raises(InputError, match="initial='resampled': Calls .model. has no reset_parameters"):
        simulated(problem("slow"), SGD(0.1), 4, initial="resampled")
    with pytest.raises(InputError, match="initial='random': 'fixed' .* 'resampled' .* or a function"):
        simulated(p, SGD(0.1), 4, initial="random")


# Common random numbers.


@pytest.mark.parametrize("scheme", [WithReplacement(), WithoutReplacement()], ids=str)
def test_common_random_numbers_are_common_to_batch_sizes_and_rules(scheme):
    p, twins = problem("mlp"), [Twin(SGD, torch.optim.SGD, 0.1), Twin(Adam, torch.optim.Adam, 0.1)]
    found = simulated(p, [twin.rule for twin in twins], [2, 6, 3], sampling=scheme, common_random_numbers=True,
                      initial="resampled")  # fmt: skip
    starts = found["weights"].isel(step=0, drop=True)
    assert (starts == starts.isel(batch_size=0, optimizer=0)).all()
    largest = scheme.draws(6, N, [run_stream(SEED, 1, BATCHES)])(STEPS + 1)[0]
    for i, twin in enumerate(twins):
        for j, b in enumerate((2, 6, 3)):
            start = torch.from_numpy(starts.isel(batch_size=0, optimizer=0, run=1).values.copy())
            assert agrees(found, 1, by_hand(p, twin, largest[:, :b], start), optimizer=i, batch_size=j)


def test_with_epochs_common_random_numbers_are_common_orders():
    p, twin = problem("regression"), Twin(SGD, torch.optim.SGD, 0.1)
    found = simulated(p, twin.rule, [3, 5], sampling=ReshuffledEpochs(), common_random_numbers=True)
    for j, b in enumerate((3, 5)):
        rng = run_stream(SEED, 2, BATCHES)
        orders = np.concatenate([rng.permutation(N) for _ in range(STEPS)])  # 3 and 5 divide 15
        assert agrees(found, 2, by_hand(p, twin, orders[: (STEPS + 1) * b].reshape(-1, b)), batch_size=j)


def test_paired_differences_are_those_of_the_runs():
    p = problem("mlp")
    found = simulated(p, SGD(0.1), [2, 6, 3], runs=40, common_random_numbers=True)
    pairs = sn.simulate.paired(found, "loss", "batch_size")
    losses = found["loss"].values
    for i in (1, 2):
        by_run = losses[i] - losses[0]
        one = pairs.isel(batch_size=i - 1)
        np.testing.assert_allclose(one["loss_difference"], by_run.mean(0), **CLOSE)
        np.testing.assert_allclose(one["loss_difference_stderr"], by_run.std(0, ddof=1) / 40**0.5, **CLOSE)
    assert pairs["batch_size"].values.tolist() == [6, 3] and (pairs["pairs"] == 40).all()
    apart = simulated(p, SGD(0.1), [2, 6], runs=2)
    with pytest.raises(InputError, match="share their random numbers"):
        sn.simulate.paired(apart, "loss", "batch_size")
    with pytest.raises(InputError, match="'loss' has no values by run along 'optimizer'"):
        sn.simulate.paired(found, "loss", "optimizer")


# What is recorded.


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 6, 8]), (4, [0, 4, 8]), (100, [0, 8])])
def test_recording_now_and_then_changes_nothing_else(every, steps):
    p = problem("mlp")
    always, sometimes = (simulated(p, MOMENTUM.rule, 4, every=k) for k in (1, every))
    assert sometimes["step"].values.tolist() == steps
    for name in SEEN:
        assert np.array_equal(sometimes[name], always[name].sel(step=steps), equal_nan=True)


def test_functions_see_the_state():
    p, seen = problem("mlp"), []

    def energy(state):
        return state.weights.square().sum(1)

    def by_layer(state):
        seen.append({name: tuple(q.shape) for name, q in state.parameters.items()})
        return torch.stack([state.parameters[name].flatten(1).norm(dim=1) for name in ("0.weight", "2.bias")], 1)

    functions = {
        "energy": energy,
        "layers": by_layer,
        "a_loss": lambda s: s.losses,
        "b_loss": lambda s: s.minibatch_losses,
        "slope": lambda s: s.full_gradients.norm(dim=1),
        "share": lambda s: s.accuracies,
        "matrix": lambda s: s.gradients.view(-1, 11, 4),
        "now": lambda s: torch.full_like(s.losses, s.step),
    }
    found = simulated(p, MOMENTUM.rule, 4, runs=5, record=functions)
    named = simulated(p, MOMENTUM.rule, 4, runs=5, record=ALL)
    np.testing.assert_allclose(found["energy"], (named["weights"] ** 2).sum("parameter"), **CLOSE)
    for ours, theirs in {
        "a_loss": "loss",
        "b_loss": "minibatch_loss",
        "slope": "gradient_norm",
        "share": "accuracy",
    }.items():
        np.testing.assert_allclose(found[ours], named[theirs], **CLOSE)
    assert found["layers"].dims == ("batch_size", "run", "step", "layers_0") and found["layers"].shape == (1, 5, 9, 2)
    first = named["weights"][..., :15]
    np.testing.assert_allclose(found["layers"][..., 0], (first**2).sum("parameter") ** 0.5, **CLOSE)
    assert found["matrix"].shape == (1, 5, 9, 11, 4) and (found["now"] == found["step"]).all()
    assert seen[-1] == {"0.weight": (5, 5, 3), "0.bias": (5, 5), "2.weight": (5, 4, 5), "2.bias": (5, 4)}
    one = simulated(p, MOMENTUM.rule, 4, runs=5, record=energy)
    assert np.array_equal(one["energy"], found["energy"]) and "loss" not in one
    both = simulated(p, MOMENTUM.rule, 4, runs=5, record=["loss", energy, sn.simulate.weights(name="w")])
    assert np.array_equal(both["energy"], found["energy"]) and np.array_equal(both["w"], named["weights"])


def step_before(state):
    return torch.zeros_like(state.losses) if state.before is None else state.before.norm(dim=1)


def test_a_recorder_may_ask_for_the_gradients_of_the_step_before():
    p, record = problem("mlp"), [Recorder("then", step_before, needs_before=True), "minibatch_gradient_norm"]
    for engine in ("torch", "auto"):
        found = simulated(p, SGD(0.1), 4, record=record, engine=engine)
        norms = found["minibatch_gradient_norm"].values
        rounding = 0.0 if engine == "torch" else 1e-14  # a compiled engine sums the squares in another order
        np.testing.assert_allclose(found["then"][..., 1:], norms[..., :-1], rtol=rounding, atol=0)
        assert (found["then"][..., 0] == 0).all()


def fails(state):
    raise ZeroDivisionError("no weights")


REFUSED = [
    (
        {"sum": lambda s: s.losses.sum()},
        r"the function 'sum' gave a tensor \(\) for 2 runs; expected a tensor \(2, ...\)",
    ),
    ({"t": lambda s: s.weights.T}, r"the function 't' gave a tensor \(44, 2\) for 2 runs"),
    ({"number": lambda s: 1.0}, "the function 'number' gave float for 2 runs"),
    ({"array": lambda s: s.weights.numpy()}, "the function 'array' gave ndarray"),
    (fails, "the function 'fails' fails on two runs: ZeroDivisionError: no weights"),
    ([lambda s: s.losses], "a recorded function needs a name of its own"),
    ({"loss": lambda s: s.losses}, "a recorded function needs a name of its own: .*'loss'"),
    (["loss", "loss"], "each name once"),
    ("lost", "record='lost' is not known; use one of loss, minibatch_loss"),
    ([3], "names, recorders or functions of the state, not int"),
    ([sn.simulate.weights(steps=[2, 9])], "weights: steps .2, 9. must lie between 0 and 8"),
    ([sn.simulate.weights(np.ones((2, 5)))], "projection has 5 columns for 44 parameters"),
]


@pytest.mark.parametrize(("record", "why"), REFUSED, ids=[why[:30] for _, why in REFUSED])
def test_records_that_cannot_be(record, why):
    with pytest.raises(InputError, match=why):
        simulated(problem("mlp"), SGD(0.1), 4, record=record)


def test_records_that_a_problem_does_not_have():
    with pytest.raises(
        InputError, match="record='accuracy' needs the loss 'logistic', or 'cross_entropy' with .* the loss is 'mse'"
    ):
        simulated(problem("regression"), SGD(0.1), 4, record="accuracy")
    with pytest.raises(InputError, match=r"projection: a matrix \(k, parameters\) is needed, not \(4,\)"):
        sn.simulate.weights(np.ones(4))
    with pytest.raises(InputError, match="redraws=0: at least one"):
        sn.simulate.loss_change(0)


def test_weights_projected_and_at_steps_of_their_own():
    p, matrix = problem("mlp"), np.random.default_rng(0).normal(size=(2, 44))
    record = [sn.simulate.weights(steps=[1, 7]), sn.simulate.weights(matrix, name="along"), "loss"]
    found = simulated(p, MOMENTUM.rule, 4, every=4, record=record)
    whole = simulated(p, MOMENTUM.rule, 4)["weights"]
    assert found["weights"].dims == ("batch_size", "run", "weights_step", "parameter")
    assert found["weights_step"].values.tolist() == [1, 7] and found["step"].values.tolist() == [0, 4, 8]
    assert np.array_equal(found["weights"], whole.sel(step=[1, 7]))
    assert found["along"].dims == ("batch_size", "run", "step", "along_component")
    np.testing.assert_allclose(found["along"], whole.sel(step=[0, 4, 8]).values @ matrix.T, **CLOSE)
    late = simulated(p, MOMENTUM.rule, 4, every=4, record=sn.simulate.weights(matrix, steps=[3]))
    np.testing.assert_allclose(late["weights"][..., 0, :], whole.sel(step=3).values @ matrix.T, **CLOSE)


@pytest.mark.parametrize("twin", [TWINS[1], TWINS[2], TWINS[5], TWINS[8]], ids=str)
def test_loss_changes_are_those_of_updates_that_are_taken_back(twin):
    p, redraws = problem("mlp"), 3
    with_them, without = (
        simulated(p, twin.rule, 4, record=[*SEEN, *more], every=2) for more in ([sn.simulate.loss_change(redraws)], [])
    )
    for name in SEEN:
        assert np.array_equal(with_them[name], without[name], equal_nan=True), "the training does not notice"
    assert with_them["loss_change"].dims == ("batch_size", "run", "step", "redraw")
    for r in (0, 2):
        others = samples(p, batches_of(r, 4, steps=5 * redraws, purpose=REDRAWS))
        true = ByHand(p, twin, STEPS).run(samples(p, batches_of(r, 4)), others, redraws, every=2)
        np.testing.assert_allclose(with_them["loss_change"][0, r], true["loss_change"], rtol=1e-8, atol=1e-12)
        assert not np.allclose(with_them["loss_change"][0, r], true["loss_change"][:, ::-1], rtol=1e-3)


def test_loss_changes_need_batches_that_can_be_redrawn():
    with pytest.raises(InputError, match="redraws batches at the same weights; ReshuffledEpochs.. does not"):
        simulated(problem("mlp"), SGD(0.1), 4, sampling=ReshuffledEpochs(), record=sn.simulate.loss_change())


# Runs that diverge.


@cache
def exploding(dtype: torch.dtype = torch.float64) -> sn.Problem:
    """Linear regression with two samples so far out that a run diverges when it has met them a few times."""
    generator, far = torch.Generator().manual_seed(2), 1e15 if dtype == torch.float64 else 1e5
    x, y = torch.randn(2, 20, 1, generator=generator, dtype=torch.float64)
    x[0], x[1] = far, -far / 10
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(model.weight, 0.5)
    return sn.Problem(model, "mse", x.to(dtype), y.to(dtype))


PLAIN = Twin(SGD, torch.optim.SGD, 0.1)
MANY, LONG = 24, {torch.float64: 50, torch.float32: 20}


def exploded(dtype: torch.dtype = torch.float64, **options):
    options = {"record": ["loss", "minibatch_loss", "weights", "gradient_variance"]} | options
    with np.errstate(all="ignore"):
        return simulated(exploding(dtype), PLAIN.rule, 1, runs=MANY, steps=LONG[dtype], **options)


@cache
def exploded_by_hand(dtype: torch.dtype) -> tuple[dict, ...]:
    drawn = [batches_of(r, 1, steps=LONG[dtype], n=20) for r in range(MANY)]
    return tuple(by_hand(exploding(dtype), PLAIN, batches) for batches in drawn)


def first_bad(losses: np.ndarray) -> int:
    bad = np.flatnonzero(~np.isfinite(losses))
    return int(bad[0]) if len(bad) else -1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_run_diverges_where_its_minibatch_loss_does_by_hand(dtype):
    found, hand = exploded(dtype), exploded_by_hand(dtype)
    when = [first_bad(true["minibatch_loss"]) for true in hand]
    assert found["divergence_step"].values[0].tolist() == when
    gone = np.array(when)
    assert len(set(when)) > 4 and 0.2 < (gone < 0).mean() < 0.8
    expected = [int(((gone >= 0) & (gone <= t)).sum()) for t in range(LONG[dtype] + 1)]
    assert found["runs_excluded"].values[0].tolist() == expected


def test_the_others_go_on_unchanged():
    found, hand = exploded(), exploded_by_hand(torch.float64)
    for r in np.flatnonzero(found["divergence_step"][0] < 0):
        assert agrees(found, r, hand[r], ["loss", "minibatch_loss", "weights"])
    assert not np.isfinite(found["minibatch_loss"][0, :, -1]).all()


def test_statistics_leave_out_what_has_diverged():
    """Minibatch losses, which are finite until a run diverges: mean, variance and quantiles of the others."""
    found, hand = exploded(), exploded_by_hand(torch.float64)
    losses = np.stack([true["minibatch_loss"] for true in hand])
    weights = np.stack([true["weights"][:, 0] for true in hand])
    x, y = (t.numpy()[:, 0] for t in exploding().samples.batch(torch.arange(20)))
    drawn = np.stack([batches_of(r, 1, steps=50, n=20)[:, 0] for r in range(MANY)])
    with np.errstate(all="ignore"):
        gradients = (weights * x[drawn] - y[drawn]) * x[drawn]
    gone = found["divergence_step"].values[0]
    without, within = (sn.simulate.summary(found, diverged=how) for how in ("exclude", "include"))
    summed = exploded(raw=False, record=["minibatch_loss", "gradient_variance"], block=MANY)
    for t in range(51):
        alive = (gone < 0) | (gone > t)
        kept = losses[alive, t]
        scale = np.abs(kept).max()  # the variance would overflow
        for result in (without, summed):
            one = result.isel(batch_size=0, step=t)
            assert one["minibatch_loss"] / scale == pytest.approx((kept / scale).mean(), rel=1e-9)
            if scale < 1e100:
                assert one["minibatch_loss_variance"] == pytest.approx(kept.var(ddof=1), rel=1e-9)
                assert one["minibatch_loss_stderr"] == pytest.approx((kept.var(ddof=1) / alive.sum()) ** 0.5, rel=1e-9)
            scale_g = np.abs(gradients[alive, t]).max()
            if scale_g < 1e100:
                assert one["gradient_variance"] == pytest.approx(gradients[alive, t].var(ddof=1), rel=1e-6)
        exact = np.quantile(kept, without["quantile"])
        np.testing.assert_allclose(without["minibatch_loss_quantile"][0, t], exact, rtol=1e-9)
        if alive.all():
            assert within["minibatch_loss"][0, t] == without["minibatch_loss"][0, t]
        else:
            assert np.isinf(within["minibatch_loss"][0, t]) and np.isinf(within["gradient_variance"][0, t])
            assert np.isinf(within["minibatch_loss_quantile"][0, t]).all()
    assert (summed["runs_excluded"] == found["runs_excluded"]).all()
    with pytest.raises(InputError, match="diverged='drop': .exclude. or .include."):
        sn.simulate.summary(found, diverged="drop")
    with pytest.raises(InputError, match="numbers between 0 and 1"):
        sn.simulate.summary(found, quantiles=[1.5])


# Populations.


S = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 0.5]])
TEACHER = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0]], dtype=torch.float64)


def student(*sizes: int, bias: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(*[nn.Linear(i, o, bias=bias) for i, o in pairwise(sizes)]).double()


@dataclass(frozen=True)
class Online:
    """A linear student of TEACHER, and its population loss 1/2 tr D S D^T + 1/2 ||c||^2 + outputs noise^2 / 2 + penalty,
    where the student is x -> (TEACHER + D) x + c."""

    name: str
    sizes: tuple[int, ...]
    bias: bool = False
    covariance: np.ndarray | None = None
    noise: float = 0.0
    l2: float = 0.0

    @property
    def population(self) -> sn.TeacherStudent:
        return sn.TeacherStudent(student(*self.sizes, bias=self.bias), TEACHER, covariance=self.covariance,
                                 label_noise=self.noise, l2=self.l2)  # fmt: skip

    def true_loss(self, model: nn.Module) -> Tensor:
        c = model(torch.zeros(1, 3, dtype=torch.float64))[0]
        matrix = (model(torch.eye(3, dtype=torch.float64)) - c).T
        moment = torch.from_numpy(np.eye(3) if self.covariance is None else self.covariance)
        off = matrix - TEACHER
        penalty = self.l2 / 2 * sum((p**2).sum() for p in model.parameters())
        return 0.5 * (off @ moment @ off.T).trace() + 0.5 * (c**2).sum() + self.noise**2 + penalty

    def __str__(self):
        return self.name


ONLINE = [
    Online("matrix", (3, 2)),
    Online("matrix-bias-noise", (3, 2), True, noise=0.5),
    Online("deep", (3, 4, 2)),
    Online("deep-covariance-noise-l2", (3, 4, 4, 2), covariance=S, noise=0.3, l2=0.1),
    Online("deep-bias-covariance", (3, 2, 2), True, covariance=S),
]
every_population = pytest.mark.parametrize("online", ONLINE, ids=str)


def at_random_weights(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


@every_population
def test_loss_and_gradient_of_a_population_are_exact(online):
    population = online.population
    assert population.full_quantities == "closed form"
    engine = sn.simulate.plan(population, SGD(0.1), 2, 1, 1).engine()
    for seed in range(5):
        model = at_random_weights(student(*online.sizes, bias=online.bias), seed)
        true = online.true_loss(model)
        gradient = torch.autograd.grad(true, list(model.parameters()))
        losses, gradients = engine.full(flat(model.parameters())[None])
        np.testing.assert_allclose(losses, [true.detach()], rtol=1e-12)
        np.testing.assert_allclose(gradients[0], flat(gradient), rtol=1e-10, atol=1e-12)


def test_without_noise_and_correlations_it_is_half_the_squared_distance():
    online = ONLINE[0]
    engine = sn.simulate.plan(online.population, SGD(0.1), 2, 1, 1).engine()
    matrix = TEACHER + torch.arange(6.0, dtype=torch.float64).view(2, 3)
    losses, gradients = engine.full(matrix.reshape(1, -1))
    assert float(losses) == pytest.approx(0.5 * sum(k**2 for k in range(6)), rel=1e-12)
    assert gradients[0].tolist() == pytest.approx([0, 1, 2, 3, 4, 5], rel=1e-12, abs=1e-12)


ALARM = 1e-5


def means_agree(rows: np.ndarray, expected: np.ndarray) -> bool:
    """Is the mean of the rows the expected one, judged in standard errors, at a false-alarm rate of ALARM?"""
    z = (rows.mean(0) - expected) / (rows.std(0, ddof=1) / len(rows) ** 0.5)
    return bool(np.abs(z).max() < stats.norm.isf(ALARM / z.size / 2))


@every_population
def test_samples_of_a_population_have_its_loss_and_gradient_on_average(online):
    population, model = online.population, at_random_weights(student(*online.sizes, bias=online.bias), 9)
    x, y = population.finish(*population.draw(np.random.default_rng(0), 40_000))
    named = dict(model.named_parameters())

    def loss(parameters, x, y):
        penalty = online.l2 / 2 * sum((p**2).sum() for p in parameters.values())
        return 0.5 * ((torch.func.functional_call(model, parameters, (x,)) - y) ** 2).sum() + penalty

    slopes, losses = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))(named, x, y)
    rows = torch.cat([losses[:, None], *[g.flatten(1) for g in slopes.values()]], 1).detach().numpy()
    true = online.true_loss(model)
    expected = np.append(float(true.detach()), flat(torch.autograd.grad(true, list(model.parameters()))))
    assert means_agree(rows, expected) and not means_agree(rows, 1.1 * expected)
    moments = np.einsum("ni,nj->nij", x, x).reshape(len(x), -1)
    covariance = np.eye(3) if online.covariance is None else online.covariance
    assert means_agree(moments, covariance.ravel()) and not means_agree(moments, 1.1 * covariance.ravel() + 0.1)
    if online.noise:
        e = (y - x @ TEACHER.T).numpy()
        assert means_agree(np.column_stack([e, e**2, e.prod(1)]), np.array([0, 0, *[online.noise**2] * 2, 0]))


class OnlineByHand(ByHand):
    """A training on fresh samples, whose full loss is that of the population."""

    def __init__(self, online: Online, twin: Twin, steps: int) -> None:
        super().__init__(online.population.problem, twin, steps)
        self.online = online

    def data(self) -> Sample:
        return self, self

    def loss(self, sample: Sample, model: nn.Module | None = None) -> Tensor:
        if sample[0] is self:
            return self.online.true_loss(self.model if model is None else model)
        return super().loss(sample, model)


def fresh_samples(online: Online, r: int, b: int, width: int, cell: tuple[int, ...], ahead: int) -> Iterator[Sample]:
    """Drawn so many batches of `width` at a time, the first b of each used."""
    rng, root = run_stream(SEED, r, BATCHES, cell), np.eye(3)
    if online.covariance is not None:
        root = np.real(sqrtm(online.covariance))
    while True:
        x = torch.from_numpy(rng.standard_normal((ahead * width, 3)) @ root)
        y = x @ TEACHER.T
        if online.noise:
            y = y + online.noise * torch.from_numpy(rng.standard_normal((ahead * width, 2)))
        for k in range(ahead):
            yield x[k * width : k * width + b], y[k * width : k * width + b]


@every_population
def test_a_run_on_fresh_samples_is_a_training_by_torch(online, monkeypatch):
    monkeypatch.setattr(block, "POPULATION_AHEAD", 60)
    numbers = 5 if online.noise else 3
    names = ["loss", "minibatch_loss", "gradient_norm", "weights"]
    found = simulated(online.population, MOMENTUM.rule, [4, 6], record=names)
    common = simulated(online.population, MOMENTUM.rule, [4, 6], record=names, common_random_numbers=True)
    assert (
        found.attrs["full_quantities"] == "closed form"
        and found.attrs["engine"] == choose(online.population.problem, online=True).key
    )
    for j, b in enumerate((4, 6)):
        for result, width, cell in ((found, b, (b, 0)), (common, 6, ())):
            batches = fresh_samples(online, 2, b, width, cell, 60 // (width * numbers))
            true = OnlineByHand(online, MOMENTUM, STEPS).run(batches)
            assert agrees(result, 2, true, names, batch_size=j)


def test_fresh_samples_do_not_depend_on_the_block():
    population = ONLINE[3].population
    found = [simulated(population, MOMENTUM.rule, 4, runs=6, block=size) for size in (1, 4, 6)]
    for other in found[1:]:
        for name in SEEN:
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 2), ("logistic", 1)])
def test_a_population_of_ones_own(loss, outputs):
    def draw(rng, count):
        x = rng.standard_exponential((count, 3))
        return x, (x.sum(1) > 3).astype(np.int64)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    population = sn.Population(model, loss, draw, evaluation_samples=200, seed=3)
    assert population.full_quantities == "estimates from 200 evaluation samples"
    found = simulated(population, MOMENTUM.rule, 5, record=ALL)
    x, y = draw(np.random.default_rng(3), 200)
    evaluation = sn.Problem(model, loss, x, y)
    rng = run_stream(SEED, 1, BATCHES, (5, 0))
    x, y = (torch.from_numpy(part) for part in draw(rng, block.POPULATION_AHEAD // 15 * 5))
    batches = ((x[5 * t : 5 * t + 5], y[5 * t : 5 * t + 5]) for t in range(STEPS + 1))
    assert agrees(found, 1, ByHand(evaluation, MOMENTUM, STEPS).run(batches), ALL)


def test_labels_of_a_population_are_looked_at_as_they_are_drawn():
    def draw(rng, count):
        x = rng.standard_normal((count, 3))
        return x, np.where(x[:, 0] > (4 if count == 50 else 0), 0.5, 1.0)

    population = sn.Population(nn.Linear(3, 1).double(), "logistic", draw, evaluation_samples=50)
    for engine in ("auto", "stacked"):
        with pytest.raises(sn.DataError, match="logistic takes labels 0 and 1, but among the targets are 0.5"):
            sn.simulate(population, SGD(0.1), 5, 3, 2, engine=engine)


def test_what_a_population_cannot_be():
    model = student(3, 2)
    wrong = [
        ({"covariance": np.eye(2)}, r"covariance: a symmetric matrix \(3, 3\) is needed; got \(2, 2\)"),
        ({"covariance": -np.eye(3)}, "negative eigenvalue -1"),
        ({"inputs": "uniform"}, 'inputs=.uniform.: "gaussian", or a function'),
        (
            {"inputs": lambda rng, count: np.zeros((count, 3)), "covariance": np.eye(3)},
            "covariance is that of Gaussian",
        ),
        ({"inputs": lambda rng, count: np.zeros((count, 2))}, r"gave an array \(4096, 2\); expected \(4096, 3\)"),
        ({"label_noise": -1.0}, "label_noise=-1.0: a standard deviation"),
    ]
    for options, why in wrong:
        with pytest.raises(InputError, match=why):
            sn.TeacherStudent(model, TEACHER, **options)
    with pytest.raises(InputError, match="a population is sampled online; WithReplacement.. draws from a data set"):
        simulated(ONLINE[0].population, SGD(0.1), 2, sampling=WithReplacement())
    with pytest.raises(InputError, match="Online.. draws fresh samples from a population, and this problem is a data"):
        simulated(problem("mlp"), SGD(0.1), 2, sampling=sampling.Online())
    with pytest.raises(InputError, match=r"draw\(rng, 10\) gave 9 samples"):
        sn.Population(model, "mse", lambda rng, count: (np.ones((9, 3)), np.ones((9, 2))), evaluation_samples=10)


def test_a_bent_student_or_other_inputs_are_estimated():
    def flat_inputs(rng, count):
        return rng.uniform(-1, 1, (count, 3))

    bent = nn.Sequential(*student(3, 2), nn.Tanh())
    for population in (
        sn.TeacherStudent(bent, TEACHER, evaluation_samples=50),
        sn.TeacherStudent(student(3, 2), bent, evaluation_samples=50),
        sn.TeacherStudent(student(3, 2), TEACHER, inputs=flat_inputs, evaluation_samples=50),
    ):
        assert population.full_quantities == "estimates from 50 evaluation samples" and population.problem.n == 50


# Rules that know the curvature.


@cache
def regression(outputs: int, bias: bool, l2: float) -> sn.Problem:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = nn.Linear(3, outputs, bias=bias).double()
        x, y = torch.randn(N, 3, dtype=torch.float64), torch.randn(N, outputs, dtype=torch.float64)
    return sn.Problem(model, "mse", x, y, l2=l2)


def curvature(p: sn.Problem, w: Tensor, kind: str) -> np.ndarray:
    """By differentiation: the Hessian with the penalty, the model's Fisher matrix without it, the empirical one."""

    def loss_of(w, x, y):
        out = torch.func.functional_call(p.model, p.unflatten(w), (x,))
        return 0.5 * ((out - y) ** 2).sum() / len(x)

    x, y = p.samples.inputs, p.samples.targets
    if kind == "empirical":
        rows = [torch.func.grad(loss_of)(w, x[i : i + 1], y[i : i + 1]) for i in range(N)]
        return sum(torch.outer(g, g) for g in rows).numpy() / N
    penalty = p.l2 if kind == "hessian" else 0.0
    return torch.autograd.functional.hessian(lambda w: loss_of(w, x, y), w).numpy() + penalty * np.eye(len(w))


def second_order(
    p: sn.Problem, batches: np.ndarray, kind: str, rate: float, damping: float, momentum: float
) -> np.ndarray:
    """Full losses by step of w <- w - rate (C + damping I)^-1 m."""
    w, m, losses = flat(p.model.parameters()), 0.0, []
    for sample in samples(p, batches):
        hand = ByHand(p, PLAIN, 1, w)
        losses.append(hand.gradient(hand.data())[0])
        gradient = hand.gradient(sample)[1].numpy()
        m = momentum * m + gradient
        matrix = curvature(p, w, kind) + damping * np.eye(len(w))
        w = w - rate * torch.from_numpy(np.linalg.solve(matrix, m))
    return np.array(losses)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("hessian", lambda **o: DampedNewton(0.2, **o)),
        ("model", lambda **o: NaturalGradient(0.2, fisher="model", **o)),
        ("empirical", lambda **o: NaturalGradient(0.2, fisher="empirical", **o)),
    ],
)
def test_second_order_rules_are_the_loop_by_hand(kind, rule, bias, outputs):
    p, options = regression(outputs, bias, 0.2), {"damping": 0.3, "momentum": 0.4}
    found = simulated(p, rule(**options), 4)
    true = second_order(p, batches_of(2, 4), kind, 0.2, **options)
    np.testing.assert_allclose(found["loss"][0, 2], true, rtol=1e-9)
    other = second_order(p, batches_of(2, 4), {"hessian": "model"}.get(kind, "hessian"), 0.2, **options)
    assert not np.allclose(found["loss"][0, 2], other, rtol=1e-3)


def test_second_order_rules_are_for_linear_regression():
    for rule in (DampedNewton(0.1), NaturalGradient(0.1, damping=0.1), Clipped(DampedNewton(0.1), 1.0)):
        with pytest.raises(InputError, match="for linear regression with squared loss, and the problem is not"):
            simulated(problem("mlp"), rule, 4)
