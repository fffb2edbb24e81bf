import numpy as np
import pytest
import torch
from measure_cases import MLP

import shotnoise as sn
from shotnoise.errors import InputError, NonFiniteError


@pytest.fixture(scope="module")
def problem() -> sn.Problem:
    return MLP.problem(n=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": [1, 4, 4]}, r"batch_sizes=\[1, 4, 4\]: give at least one, each once"),
        ({"batch_sizes": []}, r"batch_sizes=\[\]: give at least one"),
        ({"batch_sizes": [0]}, "batch_size=0: a batch is a whole number of samples, at least 1"),
        ({"batch_sizes": [2.5]}, r"batch_size=2\.5: a batch is a whole number"),
        ({"batch_sizes": [True]}, "batch_size=True: a batch is a whole number"),
        (
            {"batch_sizes": [4, 21]},
            r"batch_size=21 but only n=20 samples; WithoutReplacement\(\) needs batch_size <= n",
        ),
        ({"samples": 7}, "samples=7: a budget is a whole number between 8 and n=20 samples, or None for all"),
        ({"samples": 21}, "samples=21: a budget is a whole number between 8 and n=20"),
        ({"samples": 0}, "samples=0: a budget"),
        ({"samples": 10.5}, r"samples=10\.5: a budget is a whole number"),
        ({"confidence": 0}, "confidence=0: a probability between 0 and 1"),
        ({"confidence": 1.0}, r"confidence=1\.0: a probability"),
        ({"confidence": 95}, "confidence=95: a probability between 0 and 1, such as 0.95"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"top": -1}, "top=-1: the number of eigenpairs, 0 for none"),
        (
            {"top": 2, "samples": 10},
            "top and hessian speak of all samples of a data set, and have no unbiased estimate",
        ),
        (
            {"hessian": True, "sampling": sn.sampling.Online()},
            "top and hessian speak of all samples .*leave samples out",
        ),
        ({"top": 20}, "k=20 eigenpairs of a covariance of 20 samples"),
    ],
)
def test_measure_refuses(problem, arguments, message):
    with pytest.raises(InputError, match=message):
        sn.measure(problem, **arguments)


def test_a_batch_larger_than_the_data_with_replacement_is_fine(problem):
    for scheme in (sn.sampling.WithReplacement(), sn.sampling.Online()):
        assert sn.measure(problem, [21], scheme)["conditional_gradient_variance"] > 0


def test_too_few_samples_for_a_population():
    with pytest.raises(InputError, match="5 samples are too few for standard errors; use at least 8"):
        sn.measure(MLP.problem(n=5), [1], sn.sampling.Online())


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (4, 6, r"6 batches of 4 are 24 samples, but there are n=20; take fewer batches, or a full pass"),
        (1, 4, "samples=4: a budget"),
        (0, 8, "batch_size=0: a batch is a whole number"),
        (-4, -4, "batch_size=-4: a batch is a whole number"),
    ],
)
def test_noise_scale_refuses(problem, size, count, message):
    with pytest.raises(InputError, match=message):
        sn.measure.noise_scale(problem, size, count)


@pytest.mark.parametrize(
    ("sizes", "scheme", "draws", "message"),
    [
        ([1], None, 1, "draws=1: a variance needs at least 2 batches"),
        ([1, 0], None, 5, "batch_size=0: a batch is a whole number"),
        ([21], None, 5, "batch_size=21 but only n=20"),
        ([2], sn.sampling.Online(), 5, r"Online\(\) draws fresh samples from a population"),
    ],
)
def test_observed_refuses(problem, sizes, scheme, draws, message):
    with pytest.raises(InputError, match=message):
        sn.measure.observed(problem, sizes, scheme, draws=draws)


@pytest.mark.parametrize("samples", [None, 12])
def test_an_infinite_gradient_is_named(samples):
    """The loss is finite, its slope is not: sqrt at 0."""
    inputs = torch.arange(1.0, 13.0)[:, None]
    inputs[5] = 0
    problem = sn.Problem(torch.nn.Linear(1, 1, bias=False), lambda f, y: f.abs().sum(1).sqrt(), inputs, inputs)
    with pytest.raises(NonFiniteError, match=r"the gradient of sample 5 in layer '\(model\)' is NaN or infinite"):
        sn.measure(problem, [1], samples=samples)


@pytest.mark.parametrize("samples", [None, 12])
def test_an_infinite_loss_is_named(samples):
    inputs = torch.ones(12, 1)
    inputs[7] = np.inf
    problem = sn.Problem(torch.nn.Linear(1, 1), "mse", inputs, torch.zeros(12, 1))
    with pytest.raises(NonFiniteError, match="the loss of sample 7 is "):
        sn.measure(problem, [1], samples=samples)
