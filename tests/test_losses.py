"""The named losses against PyTorch's own, and every way in which a loss can be none per sample."""

from dataclasses import replace
from decimal import Decimal, localcontext

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shotnoise as sn
from shotnoise import losses
from shotnoise.errors import DataError, InputError


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("axes", [(), (4,), (4, 3)])
def test_cross_entropy_is_torchs_on_average(axes):
    logits, classes = normal(5, 3, *axes), torch.arange(5 * 12).reshape(5, 4, 3)[(..., *[0] * (2 - len(axes)))] % 3
    loss = losses.resolve("cross_entropy").per_sample(logits, classes)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, classes))
    probabilities = normal(5, 3, *axes).softmax(1)
    loss = losses.resolve("cross_entropy").per_sample(logits, probabilities)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, probabilities))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4, 3)])
def test_mse_is_half_the_sum_of_squares(shape):
    outputs, targets = normal(*shape), torch.ones(shape, dtype=torch.float64)
    loss = losses.resolve("mse").per_sample(outputs, targets)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss.sum(), F.mse_loss(outputs, targets, reduction="sum") / 2)


def test_a_callable_goes_by_its_name():
    def huber(outputs, targets):
        return F.huber_loss(outputs, targets, reduction="none").sum(1)

    assert losses.resolve(huber).name == "huber"
    assert losses.resolve(nn.CrossEntropyLoss(reduction="none")).name == "CrossEntropyLoss"


def test_a_loss_that_is_none():
    with pytest.raises(
        InputError, match=r"loss='nll' is not known; use one of 'cross_entropy', 'mse', 'logistic', or a callable"
    ):
        losses.resolve("nll")
    with pytest.raises(InputError, match=r"loss must be a name or a callable loss\(outputs, targets\), not int"):
        losses.resolve(3)
    with pytest.raises(
        InputError, match=r"CrossEntropyLoss\(reduction='mean'\) returns one number .* reduction=\"none\""
    ):
        losses.resolve(nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.tensor(1.0), r"returned a single number for 4 samples \(a mean or a sum\).*shape \(4,\)"),
        (torch.ones(4, 1), r"returned shape \(4, 1\) for 4 samples; expected \(4,\): reduce every axis but the first"),
        (torch.ones(3), r"returned shape \(3,\) for 4 samples"),
        (1.0, r"the loss mine returned float, not a tensor of one value per sample"),
        (torch.ones(4, dtype=torch.long), r"the loss mine returned type torch\.int64; expected real"),
        (torch.ones(4, dtype=torch.complex64), r"the loss mine returned type torch\.complex64; expected real"),
    ],
)
def test_not_one_value_per_sample(returned, message):
    with pytest.raises(InputError, match=message):
        losses.require_per_sample(returned, 4, "mine")


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "error", "message"),
    [
        ("cross_entropy", normal(4), torch.zeros(4).long(), InputError, r"logits of shape \(n, classes, \.\.\.\).*\(4,\)"),
        ("cross_entropy", normal(4, 3), torch.zeros(4, 1).long(), InputError,
         r"logits \(4, 3\) expects class indices of shape \(4,\), but the targets have shape \(4, 1\)"),
        ("cross_entropy", normal(4, 5, 3), torch.zeros(4, 5).long(), InputError, "move them to axis 1"),
        ("cross_entropy", normal(4, 3), normal(4), InputError,
         r"class probabilities compares equal shapes, but the model returned \(4, 3\) for targets \(4,\)"),
        ("cross_entropy", normal(4, 3), torch.tensor([0, 3, 1, 2]), DataError,
         r"targets run from 0 to 3, but the model has 3 outputs, so classes 0 to 2; check the labels"),
        ("cross_entropy", normal(4, 3), torch.tensor([0, -100, 1, 2]), DataError, "targets run from -100 to 2"),
        ("mse", normal(4, 1), normal(4), InputError, r"returned \(4, 1\) for targets \(4,\); .*targets\.unsqueeze\(1\)"),
        ("mse", normal(4, 2), normal(4, 3), InputError, r"mse compares equal shapes, but the model returned \(4, 2\)"),
        ("mse", {"out": normal(4)}, normal(4), InputError, "the model returned dict, .* pass a callable loss that picks"),
        ("mse", normal(4), None, InputError, "loss='mse' needs targets, one per sample, but got NoneType"),
    ],
)  # fmt: skip
def test_outputs_and_targets_that_do_not_fit(loss, outputs, targets, error, message):
    with pytest.raises(error, match=message):
        losses.resolve(loss).check(outputs, targets)


# The logistic loss.


def exactly(f: float, label: int) -> tuple[float, float, float]:
    """Loss, slope and curvature with 60 digits, from -log of the probability of the label."""
    with localcontext(prec=60):
        chance = 1 / (1 + (-Decimal(f)).exp())
        loss = -(chance if label else 1 - chance).ln()
        return float(loss), float(chance - label), float(chance * (1 - chance))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("f", [-40.0, -3.0, -0.1, 0.0, 1e-9, 0.7, 25.0, 36.0])
def test_logistic_is_minus_the_log_of_the_labels_probability(f, label):
    at = torch.tensor([[f]], dtype=torch.float64, requires_grad=True)
    loss = losses.resolve("logistic").per_sample(at, torch.tensor([label]))
    (slope,) = torch.autograd.grad(loss.sum(), at, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), at)
    true = exactly(f, label)
    assert loss.shape == (1,)
    assert [loss.item(), slope.item()] == pytest.approx(true[:2], rel=1e-14)
    assert curve.item() == pytest.approx(true[2], rel=1e-12, abs=1e-16)  # 1 - p of autograd is absolute
    assert loss.item() != pytest.approx(exactly(f, 1 - label)[0], rel=1e-14) or f == 0


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("labels", [torch.int64, torch.float64, torch.bool, torch.uint8])
def test_logistic_is_torchs_with_logits(shape, labels):
    outputs, targets = 3 * normal(*shape), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = F.binary_cross_entropy_with_logits(outputs.flatten(), targets.double(), reduction="none")
    loss = losses.resolve("logistic")
    for given in (targets.to(labels), targets.to(labels)[:, None]):
        loss.check(outputs, given)
        torch.testing.assert_close(loss.per_sample(outputs, given), expected)
    signs = 2 * targets - 1
    torch.testing.assert_close(loss.per_sample(outputs, targets), torch.log(1 + torch.exp(-signs * outputs.flatten())))


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (torch.tensor([-1, 1, 1, -1]), DataError, r"labels 0 and 1, but the targets are -1 and 1; pass \(targets \+ 1\) / 2"),
        (torch.tensor([-1.0, 1.0, 1.0, 1.0]), DataError, r"pass \(targets \+ 1\) / 2"),
        (torch.tensor([0, 1, 2, 2]), DataError, "among the targets are 2, 2; for several classes take cross_entropy"),
        (torch.tensor([0, 1, 0.25, 1]), DataError, r"are 0\.25; .*for probabilities torch\.nn\.BCEWithLogitsLoss"),
        (torch.tensor([0, 1, torch.nan, 1]), DataError, "among the targets are nan"),
        (torch.zeros(4, 2), InputError, r"one label per sample, targets \(n,\) or \(n, 1\), but they have shape \(4, 2\)"),
        (None, InputError, "loss='logistic' needs labels 0 and 1, one per sample, but got NoneType"),
    ],
)  # fmt: skip
def test_other_labels_are_refused_before_there_are_outputs(targets, error, message):
    model, x = nn.Linear(2, 1), torch.zeros(4, 2)
    with pytest.raises(error, match=message):
        sn.Problem(model, "logistic", x, targets)
    good = sn.Problem(model, "logistic", x, torch.tensor([0, 1, 1, 0]))
    if targets is not None:
        with pytest.raises(error, match=message):
            good.on(x, targets)


def test_a_logit_is_one_number():
    problem = sn.Problem(nn.Linear(2, 2), "logistic", torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    message = (
        r"one output per sample, .* of shape \(3,\) or \(3, 1\), but the model returned \(3, 2\); .* cross_entropy"
    )
    with pytest.raises(InputError, match=message):
        problem.loss()


def test_a_function_that_shares_the_name_of_a_loss_is_not_that_loss():
    """A margin loss for labels of +-1, which its name must not turn into something else."""

    def logistic(outputs, targets):
        return F.softplus(-targets * outputs[:, 0])

    x, signs = normal(4, 2), torch.tensor([-1.0, 1.0, 1.0, -1.0]).double()
    problem = sn.Problem(nn.Linear(2, 1).double(), logistic, x, signs)
    assert problem.loss_name == "own logistic"
    assert problem.loss() == pytest.approx(sn.Problem(problem.model, "logistic", x, (signs + 1) / 2).loss())


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_logits_above_zero_stand_for_label_1(shape):
    outputs = torch.tensor([[1.0, -2.0, 0.0], [-1.0, 5.0, 0.1]]).view(shape)
    found = losses.right(losses.NAMED["logistic"], outputs, torch.tensor([1, 0, 0]))
    assert found.tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize("name", losses.NAMED)
def test_a_named_loss_is_known_in_another_process(name):
    loss = losses.NAMED[name]
    copied = replace(loss, per_sample=lambda outputs, targets: loss.per_sample(outputs, targets))  # by value, not name
    assert cloudpickle.loads(cloudpickle.dumps(copied)) == loss
    assert all((loss == other) == (name == n) for n, other in losses.NAMED.items())
