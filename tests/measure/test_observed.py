"""Real batches against the prediction."""

import numpy as np
import pytest
import torch
from measure_cases import CASES, MLP, all_gradients
from scipy import stats

import shotnoise as sn
from shotnoise.errors import InputError

ALARM = 1e-5
SCHEMES = [
    sn.sampling.WithReplacement(),
    sn.sampling.WithoutReplacement(),
    sn.sampling.ReshuffledEpochs(),
    sn.sampling.CyclicEpochs(),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_prediction_agrees_with_real_batches(scheme, dtype):
    problem = MLP.problem(n=24, dtype=dtype)
    sizes = [1, 5, 12, 24]
    predicted = sn.measure(problem, sizes, scheme)
    seen = sn.measure.observed(problem, sizes, scheme, draws=300)
    found = sn.compare(predicted, seen, alarm=ALARM)
    assert found.agrees, found.sentence
    assert len(found.rows) == (4 if isinstance(scheme, sn.sampling.WithReplacement) else 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prediction_agrees_for_every_model(case):
    problem = case.problem(n=20)
    predicted = sn.measure(problem, [1, 10])
    seen = sn.measure.observed(problem, [1, 10], draws=400)
    found = sn.compare(predicted, seen, alarm=ALARM)
    assert found.agrees, found.sentence
    wrong = sn.measure(problem, [1, 10], sn.sampling.WithReplacement())  # 1/b, although batches have no repetition
    assert not sn.compare(wrong, seen, alarm=ALARM).agrees
    too_much = predicted[["conditional_gradient_variance"]] * 1.6
    assert not sn.compare(too_much, seen, alarm=ALARM).agrees


def test_mean_and_standard_error_are_those_of_the_squared_deviations():
    problem = MLP.problem(n=20)
    scheme = sn.sampling.WithReplacement()
    g = all_gradients(problem)
    stream = scheme.batches(3, 20, np.random.default_rng([7, 3]))
    squares = np.array([((g[next(stream)].mean(0) - g.mean(0)) ** 2).sum() for _ in range(50)])
    found = sn.measure.observed(problem, [3], scheme, draws=50, seed=7).squeeze()
    assert float(found["conditional_gradient_variance"]) == pytest.approx(squares.mean())
    assert float(found["conditional_gradient_variance_stderr"]) == pytest.approx(squares.std(ddof=1) / np.sqrt(50))
    assert (found.attrs["draws"], found.attrs["seed"], found.attrs["sampling"]) == (50, 7, "WithReplacement()")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=str)
def test_a_batch_of_all_the_data_is_exact_to_the_last_bit(scheme, dtype):
    found = sn.measure.observed(MLP.problem(n=101, dtype=dtype), [101], scheme, draws=20)
    assert float(found["conditional_gradient_variance"].item()) == 0
    assert float(found["conditional_gradient_variance_stderr"].item()) == 0


def test_false_alarms_of_the_whole_comparison():
    """Many observations of one prediction: z has mean 0 and variance 1 up to the skewness of the squares."""
    problem = CASES[0].problem(n=16)
    predicted = sn.measure(problem, [4])
    z = []
    for seed in range(20):
        seen = sn.measure.observed(problem, [4], draws=150, seed=seed)
        z.append(sn.compare(predicted, seen).rows[0].z)
    assert abs(np.mean(z)) < stats.norm.isf(1e-4 / 2) / np.sqrt(20) + 0.1
    spread = np.var(z) * 20
    assert stats.chi2.cdf(spread, 19) > 1e-4 and stats.chi2.sf(spread, 19) > 1e-4


def test_a_budget_of_samples_agrees_too():
    problem = MLP.problem(n=60)
    estimated = sn.measure(problem, [2, 8], samples=30)
    seen = sn.measure.observed(problem, [2, 8], draws=300)
    assert sn.compare(estimated, seen, alarm=ALARM).agrees


def test_progress_counts_every_batch():
    counted = []
    problem = MLP.problem(n=12)
    sn.measure.observed(problem, [1, 2], draws=3, progress=lambda done, of: counted.append((done, of)))
    assert counted == [(i, 6) for i in range(1, 7)]


def test_coordinates_must_match():
    problem = MLP.problem(n=12)
    with pytest.raises(InputError, match="coordinates of 'conditional_gradient_variance' differ"):
        sn.compare(sn.measure(problem, [1, 4]), sn.measure.observed(problem, [1, 2], draws=3))
