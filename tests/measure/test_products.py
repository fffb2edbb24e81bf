from importlib import import_module

import numpy as np
import pytest
import torch
from measure_cases import CASES, MLP, all_gradients, explicit_gradients

import shotnoise as sn
from shotnoise.errors import InputError

BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
RTOL = {torch.float64: 1e-10, torch.float32: 1e-4}


@BY_CASE
@DTYPES
@pytest.mark.parametrize("chunk", [None, 4])
def test_norms_by_layer(case, dtype, chunk):
    problem = case.problem(n=10, dtype=dtype)
    if chunk:
        problem.chunk_size  # noqa: B018  (looks at the model once)
        problem._chunk_size = chunk
    by_layer = explicit_gradients(problem)
    found = sn.measure.per_sample_norms(problem)
    assert list(found) == list(by_layer)
    for layer, g in by_layer.items():
        np.testing.assert_allclose(found[layer], (g**2).sum(1), rtol=RTOL[dtype])
    some = torch.tensor([7, 2, 2])
    for layer, norms in sn.measure.per_sample_norms(problem, some).items():
        np.testing.assert_allclose(norms, (by_layer[layer][some] ** 2).sum(1), rtol=RTOL[dtype])


@BY_CASE
@DTYPES
@pytest.mark.parametrize("chunk", [None, 4])
def test_gram_matrix(case, dtype, chunk):
    problem = case.problem(n=10, dtype=dtype)
    if chunk:
        problem.chunk_size  # noqa: B018
        problem._chunk_size = chunk
    g = all_gradients(problem)
    expected = g @ g.T
    found = sn.measure.gram(problem)
    np.testing.assert_allclose(found, expected, rtol=RTOL[dtype], atol=RTOL[dtype] * np.abs(expected).max())
    assert found.equal(found.T) or np.allclose(found, found.T, rtol=RTOL[dtype])
    some = [7, 2, 5, 0, 9]
    np.testing.assert_allclose(
        sn.measure.gram(problem, torch.tensor(some)),
        expected[np.ix_(some, some)],
        rtol=RTOL[dtype],
        atol=RTOL[dtype] * np.abs(expected).max(),
    )


def test_the_penalty_belongs_to_every_gradient():
    """A twin that forgets it is noticed."""
    problem = CASES[2].problem(n=6)
    with_penalty = sn.measure.gram(problem)
    norms = sn.measure.per_sample_norms(problem)
    problem.l2 = 0.0
    assert not torch.allclose(with_penalty, sn.measure.gram(problem), rtol=1e-2)
    assert not torch.allclose(norms["0"], sn.measure.per_sample_norms(problem)["0"], rtol=1e-2)


def test_a_gram_matrix_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(import_module("shotnoise.measure.products"), "GRAM_LIMIT", 9)
    problem = MLP.problem(n=10)
    with pytest.raises(InputError, match="Gram matrix of n=10 samples .*at most 9 samples .*indices of a subset"):
        sn.measure.gram(problem)
    assert sn.measure.gram(problem, torch.arange(9)).shape == (9, 9)


@BY_CASE
@DTYPES
def test_parameter_variance(case, dtype):
    problem = case.problem(n=10, dtype=dtype)
    found = sn.measure.parameter_variance(problem)
    assert {name: v.shape for name, v in found.items()} == {name: p.shape for name, p in problem.parameters.items()}
    g = all_gradients(problem)
    flat = problem.flatten(found).numpy()
    np.testing.assert_allclose(flat, g.var(0), rtol=RTOL[dtype], atol=RTOL[dtype] * g.var(0).max())
    assert not np.allclose(flat, g.var(0, ddof=1), rtol=1e-2), "the divisor is n"
    assert flat.sum() == pytest.approx(float(sn.measure(problem, [1])["noise_trace"]), rel=RTOL[dtype])
