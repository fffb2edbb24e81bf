"""What is refused, and what the message says to do instead."""

import pytest
import torch
import torch.nn.functional as F
from optim_cases import classifier, data, flat
from torch import nn

import shotnoise as sn
from shotnoise.optim import (
    AdaptiveSGD,
    Exact,
    HessianNorm,
    Microbatches,
    Observed,
    PreconditionedSGD,
    Secant,
    guaranteed_decrease,
    steps_needed,
    window,
)

BOTH = pytest.mark.parametrize("optimizer_type", [AdaptiveSGD, PreconditionedSGD])


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 2.0}, "lr=2.0: the step is lr times the best one, and from 2 on nothing falls; .* smaller smoothness"),
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"beta": 1.0}, "beta=1.0: the weight of the past"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected 0 or more"),
        ({"warmup": 0}, "warmup=0, every=.: whole numbers of batches, at least 1"),
        ({"every": 0}, "every=0: whole numbers of batches"),
        ({"smoothness": 0.0}, "smoothness=0.0: a Lipschitz constant of the gradient is positive and finite"),
        ({"smoothness": "big"}, r"smoothness='big': a number, or how to estimate it: sn.optim.Secant\(\)"),
        ({"noise": None}, "noise=NoneType: where the noise is read; sn.optim.Observed"),
        ({"capturable": True}, "differentiable=True and capturable=True are not supported"),
        ({"differentiable": True}, "differentiable=True and capturable=True are not supported"),
    ],
)
def test_options_out_of_range(optimizer_type, options, message):
    model = classifier()
    arguments = {"noise": Observed(model), "smoothness": 1.0, **options}
    with pytest.raises(sn.InputError, match=message):
        optimizer_type(model.parameters(), **arguments)


@BOTH
def test_sparse_gradients(optimizer_type):
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = optimizer_type(model.parameters(), Observed(model), 1.0)
    model(torch.tensor([1, 2])).square().sum().backward()
    with pytest.raises(sn.InputError, match=r"shape \(5, 3\) is sparse, .*build the embedding with sparse=False"):
        optimizer.step()


@BOTH
@pytest.mark.parametrize("every", [1, 5])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer_type, every):
    model, (x, y) = classifier(), data()
    optimizer = optimizer_type(model.parameters(), Observed(model), 3.0, warmup=1, every=every)
    for batch in (x[:6], x[6:12], x[12:18] * float("nan")):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), y[: len(batch)]).backward()
        before, state = flat(model), optimizer.state_dict()["param_groups"][0]["batches"]
        if bool(batch.isnan().any()):
            with pytest.raises(
                sn.NonFiniteError, match="the gradient of this batch is not finite; no weight was changed"
            ):
                optimizer.step()
            assert torch.equal(flat(model), before)
            assert optimizer.state_dict()["param_groups"][0]["batches"] == state
        else:
            optimizer.step()


def test_complex_parameters():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(sn.InputError, match="complex parameters are not supported"):
        AdaptiveSGD(model.parameters(), Observed(model), 1.0)


def test_layers_without_a_rule_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    with pytest.raises(
        sn.PerSampleGradientError, match=r"no rule .* 1.in_proj_weight, .*use noise=sn.optim.Microbatches"
    ):
        AdaptiveSGD(model.parameters(), Observed(model), 1.0)


def test_parameters_of_another_model():
    with pytest.raises(sn.InputError, match=r"shapes \[\(3, 4\), \(3,\)\] do not belong to the Sequential observed"):
        AdaptiveSGD(nn.Linear(4, 3).parameters(), Observed(classifier()), 1.0)


def test_batch_normalisation_that_is_training():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    AdaptiveSGD(model.parameters(), Observed(model), 1.0)
    with pytest.raises(sn.PerSampleGradientError, match="BatchNorm1d in training mode mixes the samples"):
        model(torch.randn(5, 4))
    noise = Microbatches()
    optimizer = AdaptiveSGD(model.parameters(), noise, 10.0, warmup=1)
    model[1].eval()
    for _ in range(3):
        optimizer.zero_grad()
        for part in torch.randn(2, 4, 4):
            model(part).square().mean().div(2).backward()
            noise.mark()
        optimizer.step()
    assert optimizer.report()[0]["batch_gradient_norm_sq"] > 0


@pytest.mark.parametrize("what", ["clipped", "penalty", "scaled", "elsewhere"])
def test_gradients_that_are_not_the_sum_of_those_of_the_samples(what):
    model, (x, y) = classifier(), data()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), 1.0)

    def backward(wrong):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if wrong and what == "penalty":
            loss = loss + model[3].bias.square().sum() + model[3].bias.sum()
        if wrong and what == "elsewhere":
            loss = loss + (x @ model[0].weight.T).sum()
        (loss * (8.0 if wrong and what == "scaled" else 1.0)).backward()
        if wrong and what == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        if wrong and what == "scaled":
            for p in model.parameters():
                p.grad.div_(8.0)

    if what != "elsewhere":  # those that change the smallest parameter are seen at every step, not only at the first
        backward(False)
        optimizer.step()
    backward(True)
    with pytest.raises(
        sn.PerSampleGradientError, match="do not add up to its gradient .*clipping, unscaling, a penalty"
    ):
        optimizer.step()


def test_a_batch_that_shows_no_noise():
    model, (x, y) = classifier(), data()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), 1.0)
    F.cross_entropy(model(x[:1]), y[:1]).backward()
    with pytest.raises(sn.PerSampleGradientError, match="1 samples went through .* at least two"):
        optimizer.step()
    noise = Microbatches()
    optimizer = AdaptiveSGD(model.parameters(), noise, 1.0)
    noise.mark()
    with pytest.raises(sn.InputError, match="1 micro-batches since the last step: .* at least 2"):
        optimizer.step()


def test_samples_that_are_not_first():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x):
            return self.inner(x.flatten(0, 1))

    model = Turned()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), 1.0)
    model(torch.randn(6, 2, 4)).square().mean().backward()
    with pytest.raises(sn.PerSampleGradientError, match=r"Linear saw inputs \(12, 4\) in a forward pass of 6 samples"):
        optimizer.step()


def test_layers_called_without_the_model():
    model = classifier()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), 1.0)
    model[0](torch.randn(6, 4, dtype=torch.float64)).square().mean().backward()
    with pytest.raises(sn.PerSampleGradientError, match="a layer was called by itself, outside the forward pass"):
        optimizer.step()


def test_secants_need_a_closure():
    model, (x, y) = classifier(), data()
    optimizer = AdaptiveSGD(model.parameters(), Observed(model), Secant())
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(sn.InputError, match=r"call step\(closure\), or give a number"):
        optimizer.step()


def test_marks_before_an_optimizer():
    with pytest.raises(sn.InputError, match=r"mark\(\) before an optimizer was built"):
        Microbatches().mark()


def test_observers_and_oracles():
    model, (x, y) = classifier(), data()
    problem = sn.Problem(model, "cross_entropy", x, y, l2=0.1)
    with pytest.raises(sn.InputError, match=r"the problem has l2=0.1; .* weight_decay"):
        Exact(problem, 4)
    with pytest.raises(sn.InputError, match="are not trainable parameters of the problem's model"):
        AdaptiveSGD(classifier().parameters(), Exact(sn.Problem(model, "cross_entropy", x, y), 4), 1.0)
    with pytest.raises(sn.InputError, match="Observed needs the torch.nn.Module that is trained, not function"):
        Observed(lambda x: x)
    with pytest.raises(sn.InputError, match="population=1: the number of training samples"):
        Observed(model, population=1)
    with pytest.raises(sn.InputError, match=r"drawn=1.5: the share of the data"):
        Microbatches(drawn=1.5)
    with pytest.raises(sn.InputError, match="expected every >= 1 steps, safety > 0, growth > 1"):
        Secant(growth=1.0)
    with pytest.raises(sn.InputError, match="iterations=1, .*expected every >= 1"):
        HessianNorm(problem, iterations=1)


def test_theory_out_of_range():
    for call, message in (
        (lambda: guaranteed_decrease(1.0, 2.0, 1.0, c=2.5), "c=2.5: steps of c rho / L .* 0 < c < 2 only"),
        (lambda: window(1.0, 2.0, -1.0), "smoothness=-1.0: a Lipschitz constant"),
        (lambda: steps_needed(1.0, 1.0, 0.0, 0.0), "target=0.0: expected gap >= 0"),
        (lambda: steps_needed(1.0, 1.0, 0.0, 0.5, c=2.0), "c=2.0: nothing is guaranteed outside"),
    ):
        with pytest.raises(sn.InputError, match=message):
            call()


def test_closing_takes_the_hooks_away():
    model, (x, y) = classifier(), data()
    noise = Observed(model)
    AdaptiveSGD(model.parameters(), noise, 1.0)
    noise.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    F.cross_entropy(model(x), y).backward()
