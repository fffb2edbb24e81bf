"""Plain SGD between measurements, against torch.optim."""

import copy

import numpy as np
import pytest
import torch

from shotnoise import models
from shotnoise.datasets import load
from shotnoise.errors import InputError, NonFiniteError
from shotnoise.problem import Problem
from shotnoise.sampling import Online, ReshuffledEpochs, WithoutReplacement
from shotnoise.training import SGD, stops


@pytest.fixture
def problem():
    data = load("digits")
    return Problem(models.build("mlp:6", data).double(), "cross_entropy", data.inputs.double(), data.targets, l2=0.01)


def test_the_weights_are_those_of_torch_optim(problem):
    twin = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3, weight_decay=0.01)
    batches = ReshuffledEpochs().batches(32, problem.n, np.random.default_rng(7))
    for _ in range(60):  # beyond one epoch
        batch = torch.as_tensor(next(batches))
        inputs, targets = problem.samples.batch(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
    assert list(stops(problem, SGD(0.3, 32, ReshuffledEpochs(), seed=7), [0, 60])) == [0, 60]
    for ours, theirs in zip(problem.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_it_stops_where_asked_with_nothing_done_in_between(problem):
    start = problem.model.output.weight.detach().clone()
    walk = stops(problem, SGD(0.1, 8, WithoutReplacement()), [0, 2, 3])
    assert next(walk) == 0 and torch.equal(problem.model.output.weight, start)
    assert next(walk) == 2 and not torch.equal(problem.model.output.weight, start)
    assert list(walk) == [3]


def test_progress_counts_the_steps(problem):
    seen = []
    list(stops(problem, SGD(0.1, 8, WithoutReplacement()), [3], lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("steps", [[], [-1], [3, 3], [5, 2]])
def test_steps_increase(problem, steps):
    with pytest.raises(InputError, match="increasing whole numbers"):
        list(stops(problem, SGD(0.1, 8, WithoutReplacement()), steps))


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_the_learning_rate_is_positive(rate):
    with pytest.raises(InputError, match="learning_rate="):
        SGD(rate, 8, WithoutReplacement())


def test_batches_come_from_the_data(problem):
    with pytest.raises(InputError, match="only n=1797"):
        list(stops(problem, SGD(0.1, 5000, WithoutReplacement()), [1]))
    with pytest.raises(InputError, match="fresh samples from a population"):
        list(stops(problem, SGD(0.1, 5, Online()), [1]))


def test_divergence_is_an_error(problem):
    with pytest.raises(NonFiniteError, match="the loss of sample"):
        list(stops(problem, SGD(1e200, 32, ReshuffledEpochs()), [20]))
