"""What users of torch.optim expect: state_dict, schedulers, closures, parameter groups, hooks, frozen parameters."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from optim_cases import batches, classifier, data, flat
from torch import nn

import shotnoise as sn
from shotnoise.optim import AdaptiveSGD, HessianNorm, Observed, PreconditionedSGD, Secant

BOTH = pytest.mark.parametrize("optimizer_type", [AdaptiveSGD, PreconditionedSGD])


def train(model, optimizer, steps, scheduler=None, with_closure=False):
    x, y = data()
    x, y = x.to(next(model.parameters()).dtype), y
    losses = []
    for batch in steps:

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            return loss

        if with_closure:
            losses.append(optimizer.step(closure))
        else:
            closure()
            assert optimizer.step() is None
        if scheduler is not None:
            scheduler.step()
    return losses


@BOTH
@pytest.mark.parametrize("smoothness", [3.0, Secant(every=3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded_it_continues_to_the_last_bit(optimizer_type, smoothness, dtype):
    steps, secant = batches(24, 6, 30), not isinstance(smoothness, float)
    whole = classifier().to(dtype)
    train(whole, optimizer_type(whole.parameters(), Observed(whole), smoothness, warmup=2), steps, None, secant)

    first = classifier().to(dtype)
    optimizer = optimizer_type(first.parameters(), Observed(first), smoothness, warmup=2)
    train(first, optimizer, steps[:11], None, secant)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = classifier(seed=5).to(dtype)
    second.load_state_dict(saved["model"])
    again = optimizer_type(second.parameters(), Observed(second), smoothness, warmup=9, beta=0.5)
    again.load_state_dict(saved["optimizer"])
    train(second, again, steps[11:], None, secant)
    assert torch.equal(flat(second), flat(whole))
    forgetful = optimizer_type(first.parameters(), Observed(first), smoothness, warmup=2)
    train(first, forgetful, steps[11:], None, secant)
    assert not torch.equal(flat(first), flat(whole)), "what is in the state matters"


@BOTH
def test_the_closure_gives_the_loss_and_the_same_steps(optimizer_type):
    one, two = classifier(), classifier()
    steps = batches(24, 6, 8)
    losses = train(one, optimizer_type(one.parameters(), Observed(one), 3.0, warmup=1), steps, with_closure=True)
    train(two, optimizer_type(two.parameters(), Observed(two), 3.0, warmup=1), steps)
    assert torch.equal(flat(one), flat(two))
    assert len(losses) == 8 and float(losses[0].detach()) > 0


@BOTH
def test_a_schedule_of_factors_is_a_schedule_of_c(optimizer_type):
    one, two = classifier(), classifier()
    steps = batches(24, 6, 10)
    optimizer = optimizer_type(one.parameters(), Observed(one), 3.0, warmup=1)
    train(one, optimizer, steps, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    twin = optimizer_type(two.parameters(), Observed(two), 3.0, warmup=1)
    for k, batch in enumerate(steps):
        twin.param_groups[0]["lr"] = 0.9**k
        train(two, twin, [batch])
    torch.testing.assert_close(flat(one), flat(two), rtol=0, atol=1e-14)


@BOTH
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=20, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    ],
)
def test_schedulers_drive_it(optimizer_type, scheduler):
    model = classifier()
    optimizer = optimizer_type(model.parameters(), Observed(model), 3.0, warmup=1)
    schedule = scheduler(optimizer)
    before, start = flat(model), optimizer.param_groups[0]["lr"]
    train(model, optimizer, batches(24, 6, 8), schedule)
    assert optimizer.param_groups[0]["lr"] != start and not torch.equal(flat(model), before)


@BOTH
def test_options_of_groups_and_a_group_that_comes_later(optimizer_type):
    model = classifier()
    first = {"params": model[0].parameters(), "weight_decay": 0.1}
    optimizer = optimizer_type([first], Observed(model), 3.0, warmup=2)
    train(model, optimizer, batches(24, 6, 4))
    before = model[3].weight.detach().clone()
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.5})
    train(model, optimizer, batches(24, 6, 2))
    assert torch.equal(model[3].weight, before), "a new group begins with its own first batches"
    train(model, optimizer, batches(24, 6, 4))
    assert not torch.equal(model[3].weight, before)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    with pytest.raises(sn.InputError, match=r"lr=2.5: the step is lr times the best one"):
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 2.5})


def test_all_parameters_are_verified_once_then_the_smallest_of_each_group(monkeypatch):
    from shotnoise.per_sample.structure import PerSample

    seen, plain = [], PerSample.weighted_sum
    monkeypatch.setattr(PerSample, "weighted_sum", lambda self, w: seen.append(tuple(self.shape)) or plain(self, w))
    model = classifier()
    groups = [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[3].parameters()]}]
    optimizer = AdaptiveSGD(groups, Observed(model), 3.0)
    train(model, optimizer, batches(24, 6, 1))
    assert len(seen) == 6
    train(model, optimizer, batches(24, 6, 2))
    assert seen[6:] == [(6,), (3,)] * 2


@BOTH
def test_frozen_parameters_and_named_ones(optimizer_type):
    model = classifier()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = optimizer_type(model.named_parameters(), Observed(model), 3.0, warmup=1)
    train(model, optimizer, batches(24, 6, 4))
    assert torch.equal(model[0].weight, before)


@BOTH
def test_hooks_of_torch_run_and_repr_names_the_options(optimizer_type):
    model, seen = classifier(), []
    optimizer = optimizer_type(model.parameters(), Observed(model), 3.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, batches(24, 6, 1))
    assert seen == ["before", "after"] and "weight_decay: 0.0" in repr(optimizer)


def test_a_step_without_any_gradient_does_nothing():
    model = classifier()
    before = flat(model)
    AdaptiveSGD(model.parameters(), Observed(model), 3.0).step()
    assert torch.equal(flat(model), before)


def test_zero_grad_forgets_a_batch_that_was_skipped():
    one, two = classifier(), classifier()
    x, y = data()
    steps = batches(24, 6, 6)
    a = AdaptiveSGD(one.parameters(), Observed(one), 3.0, warmup=1)
    for batch in steps:
        F.cross_entropy(one(x[:3]), y[:3]).backward()  # thrown away
        train(one, a, [batch])
    train(two, AdaptiveSGD(two.parameters(), Observed(two), 3.0, warmup=1), steps)
    assert torch.equal(flat(one), flat(two))


class Net(nn.Module):
    """A weight that is used twice, in-place activations, dropout, an embedding, a convolution, a norm."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(7, 8), nn.Linear(8, 8)
        self.conv, self.norm, self.out = nn.Conv1d(8, 4, 3), nn.LayerNorm(4), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, tokens):
        h = torch.relu(self.mix(torch.relu(self.mix(self.embedding(tokens)))))
        return self.out(self.norm(self.drop(torch.relu_(self.conv(h.mT))).mean(2)))


def test_shared_weights_dropout_embeddings_and_convolutions_are_read():
    torch.manual_seed(0)
    model = Net()
    tokens = torch.randint(7, (40, 6))
    y = (tokens == 2).sum(1).clamp(max=2)
    optimizer = PreconditionedSGD(model.parameters(), Observed(model, population=40), 1.0, every=2)
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        batch = torch.randperm(40)[:10]
        loss = F.cross_entropy(model(tokens[batch]), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert step or optimizer.report()[0]["still"] == 1.0
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_that_is_rounding_alone_is_no_disagreement(seed):
    """The bias of the keys cancels in the softmax: its gradient is the rounding of zero, each time another one."""
    from shotnoise.reproduce.optimizer_tasks import Transformer

    torch.manual_seed(seed)
    model = Transformer()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), 10.0, warmup=1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randint(2000, (16, 48))), torch.randint(2, (16,))).backward()
        optimizer.step()
    assert float(model.key.bias.grad.norm()) < 1e-6 * float(model.query.weight.grad.norm())


def test_lanczos_on_the_hessian_finds_the_largest_eigenvalue():
    model, (x, y) = classifier(), data()
    problem = sn.Problem(model, "cross_entropy", x, y)
    basis = torch.eye(problem.parameter_count, dtype=torch.float64)
    dense = torch.stack([problem.flatten(problem.hessian_vector_product(problem.unflatten(e))) for e in basis])
    largest = float(torch.linalg.eigvalsh(dense).abs().max())
    assert HessianNorm(problem, None, safety=1.0).at(0) == pytest.approx(largest, rel=0.02)
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), HessianNorm(problem, samples=12, every=4), warmup=1)
    seen = []
    for batch in batches(24, 6, 9):
        train(model, optimizer, [batch])
        seen.append(optimizer.report()[0]["smoothness"])
    assert len(set(seen)) == 3 and seen[0] == seen[3] != seen[4] == seen[7] != seen[8]


def test_a_look_at_the_hessian_is_on_samples_drawn_for_its_step():
    problem = sn.Problem(classifier(), "cross_entropy", *data())
    seen = HessianNorm(problem, samples=5, safety=2.0, seed=3)
    assert seen.at(7) == seen.at(7) != seen.at(8)
    drawn = torch.as_tensor(np.random.default_rng([3, 7]).choice(problem.n, 5, replace=False))
    H = sn.measure.curvature.hessian(problem.on(*problem.samples.batch(drawn))).to_dense()
    assert seen.at(7) == pytest.approx(2 * np.abs(np.linalg.eigvalsh(H)).max(), rel=0.01)


def test_close_eigenvalues_take_more_products_and_too_few_are_told(monkeypatch):
    """300 directions alike: 12 products do not tell them apart to 1 %, 120 do."""
    torch.manual_seed(0)
    x = torch.randn(900, 300, dtype=torch.float64)
    problem = sn.Problem(torch.nn.Linear(300, 1, bias=False).double(), "mse", x, x[:, :1])
    largest = float(np.linalg.eigvalsh(x.T.numpy() @ x.numpy() / 900)[-1])
    operator = sn.measure.curvature.hessian(problem)
    assert not sn.measure.curvature.extreme(operator, modulus=True, tolerance=1e-2, most=12).converged
    assert HessianNorm(problem, None, safety=1.0, iterations=12).at(0) == pytest.approx(largest, rel=0.01)
    monkeypatch.setattr("shotnoise.optim.smoothness.PATIENCE", 1)
    with pytest.raises(sn.InputError, match=r"no eigenvalue of the Hessian with iterations=12 \(residual .*allow more"):
        HessianNorm(problem, None, iterations=12).at(0)


def test_the_secant_is_the_curvature_along_the_step_and_leaves_no_trace():
    theta = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    noise = Observed(theta, population=2)  # every batch is all there is: no noise
    optimizer = AdaptiveSGD(theta.parameters(), noise, Secant(every=1, growth=2.0), warmup=3)
    calls = []

    def closure():
        calls.append(theta.weight.detach().clone())
        optimizer.zero_grad()
        loss = 0.5 * (theta(x) - 1).square().mean()  # Hessian: x^T x / 2 = 2 I
        loss.backward()
        return loss

    start = theta.weight.detach().clone()
    optimizer.step(closure)
    assert optimizer.report()[0]["smoothness"] == pytest.approx(2.0, rel=1e-6)
    assert len(calls) == 2 and torch.equal(theta.weight, start) and not torch.equal(calls[1], start)
    kept = theta.weight.grad.clone()
    closure()
    assert torch.equal(theta.weight.grad, kept), "the gradient of the batch is left in place"
    for _ in range(4):
        optimizer.step(closure)
    assert len(calls) == 3 + 8
    assert torch.equal(calls[-1], theta.weight), "once there are steps, the second look is after the step"


def test_the_secant_replays_the_random_numbers_of_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    x, y = data()
    masks = []
    model[1].register_forward_hook(lambda m, a, out: masks.append((out == 0).clone()))
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), Secant(every=1), warmup=1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(masks[::2], masks[1::2], strict=True))
    assert not torch.equal(masks[0], masks[2]), "but the next batch has its own"


def test_smoothness_rises_at_once_and_falls_slowly():
    secant = Secant(growth=1.25, safety=2.0)
    assert [secant.updated(None, 3.0), secant.updated(6.0, 4.0), secant.updated(10.0, 1.0)] == [6.0, 8.0, 8.0]
    assert secant.updated(6.0, float("nan")) == secant.updated(6.0, 0.0) == secant.updated(6.0, float("inf")) == 6.0


@BOTH
def test_a_loaded_state_takes_the_place_of_the_present_one(optimizer_type):
    model = classifier()
    optimizer = optimizer_type(model.parameters(), Observed(model), 3.0, warmup=1)
    train(model, optimizer, batches(24, 6, 3))
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, batches(24, 6, 3))
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["step"] == 3
