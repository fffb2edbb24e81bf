"""The named losses against PyTorch's own, and every way in which a loss can be none per sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    with pytest.raises(InputError, match=r"loss='nll' is not known; use one of 'cross_entropy', 'mse', or a callable"):
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
