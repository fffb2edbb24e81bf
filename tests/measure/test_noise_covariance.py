from importlib import import_module

import numpy as np
import pytest
import torch
from measure_cases import CASES, LINE, MLP, all_gradients, covariance
from scipy import stats
from scipy.sparse.linalg import eigsh

import shotnoise as sn
from shotnoise.errors import InputError
from shotnoise.measure.covariance import NoiseCovariance

module = import_module("shotnoise.measure.covariance")  # `shotnoise.measure` itself is the verb
ALARM = 1e-4
BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture
def no_gram(monkeypatch):
    """As if the data set were too large for its Gram matrix."""
    monkeypatch.setattr(module, "GRAM_LIMIT", 1)


@BY_CASE
@DTYPES
def test_products_are_those_of_the_matrix(case, dtype):
    problem = case.problem(n=11, dtype=dtype)
    sigma, dense = NoiseCovariance(problem), covariance(all_gradients(problem))
    p = problem.parameter_count
    x = np.random.default_rng(0).normal(size=(p, 3))
    close = {"rtol": RTOL[dtype], "atol": RTOL[dtype] * np.abs(dense).max() * p}
    assert sigma.shape == dense.shape and sigma.dtype == np.float64
    np.testing.assert_allclose(sigma.to_dense(), dense, **close)
    np.testing.assert_allclose(sigma @ x, dense @ x, **close)
    np.testing.assert_allclose(sigma @ x[:, 0], dense @ x[:, 0], **close)
    np.testing.assert_allclose(sigma @ np.eye(p), dense, **close)
    np.testing.assert_allclose(sigma.H @ x, sigma @ x, **close)
    np.testing.assert_allclose(sigma.T @ x, sigma @ x, **close)
    np.testing.assert_allclose(sigma.diagonal(), np.diag(dense), **close)
    assert sigma.trace() == pytest.approx(np.trace(dense), rel=RTOL[dtype])
    uncentred = all_gradients(problem).T @ all_gradients(problem) / 11
    assert not np.allclose(uncentred @ x, sigma @ x, rtol=1e-2), "the mean gradient must be taken off"


def test_it_is_symmetric_and_linear():
    sigma = NoiseCovariance(MLP.problem(n=11))
    x, y = np.random.default_rng(0).normal(size=(2, sigma.shape[0]))
    assert x @ (sigma @ y) == pytest.approx(y @ (sigma @ x), rel=1e-10)
    np.testing.assert_allclose(sigma @ (2 * x - y), 2 * (sigma @ x) - sigma @ y, rtol=1e-8, atol=1e-12)


def test_scipy_takes_it():
    problem = MLP.problem(n=40)
    expected = np.linalg.eigvalsh(covariance(all_gradients(problem)))[-3:]
    found = eigsh(NoiseCovariance(problem), k=3, v0=np.ones(problem.parameter_count), return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-8)


def check_eigenpairs(pairs, dense, k, rtol):
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(dense)[::-1][:k], rtol=rtol)
    np.testing.assert_allclose(np.linalg.norm(pairs.vectors, axis=0), 1, rtol=1e-6)
    residuals = np.linalg.norm(dense @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    assert (residuals < rtol * pairs.values[0]).all()
    np.testing.assert_allclose(pairs.residuals, residuals, atol=rtol * pairs.values[0])
    assert pairs.converged.shape == (k,) and pairs.converged.all()


@BY_CASE
@DTYPES
@pytest.mark.parametrize("way", ["gram", "lanczos"])
def test_leading_eigenpairs(case, dtype, way, request):
    if way == "lanczos":
        request.getfixturevalue("no_gram")
    problem = case.problem(n=12, dtype=dtype)
    k = 2
    check_eigenpairs(NoiseCovariance(problem).top(k), covariance(all_gradients(problem)), k, 10 * RTOL[dtype])


def test_all_eigenpairs_of_few_parameters(no_gram):
    """Lanczos cannot give as many as there are parameters; three are asked for, of three."""
    problem = LINE.problem(n=30)
    check_eigenpairs(NoiseCovariance(problem).top(3), covariance(all_gradients(problem)), 3, 1e-8)


def test_small_eigenvalues_are_had_in_double_precision():
    """Down to 1e-10 of the largest; in single precision they drown, and that is said."""
    inputs = torch.diag(torch.tensor([1.0, 1e-2, 1e-5, 0], dtype=torch.float64))
    for dtype in (torch.float64, torch.float32):
        model = torch.nn.Linear(4, 1, bias=False, dtype=dtype)
        torch.nn.init.zeros_(model.weight)
        problem = sn.Problem(model, "mse", inputs.to(dtype), torch.ones(4, 1, dtype=dtype))
        sigma = NoiseCovariance(problem)
        if dtype == torch.float64:
            check_eigenpairs(sigma.top(3), covariance(all_gradients(problem)), 3, 1e-6)
        else:
            with pytest.raises(
                InputError, match="numerical rank 1, but k=3 eigenpairs were asked for; ask for at most"
            ):
                sigma.top(3)


def test_eigenpairs_that_have_not_converged_are_marked():
    pairs = module.Eigenpairs(np.array([2.0, 1.0]), np.eye(2), np.array([1e-9, 0.1]), tolerance=1e-6)
    assert pairs.converged.tolist() == [True, False]


def test_the_tolerance_is_that_asked_for(no_gram):
    pairs = NoiseCovariance(MLP.problem(n=20)).top(2, tolerance=1e-3)
    assert pairs.tolerance == 1e-3 and pairs.converged.all()


@BY_CASE
def test_spectrum_is_that_of_the_matrix(case):
    for n in (6, 40):
        problem = case.problem(n=n)
        dense = covariance(all_gradients(problem))
        found = NoiseCovariance(problem).spectrum()
        assert len(found) == min(n - 1, problem.parameter_count)
        np.testing.assert_allclose(found, np.linalg.eigvalsh(dense)[::-1][: len(found)], atol=1e-9 * found[0])
        assert found.sum() == pytest.approx(np.trace(dense), rel=1e-9)


@BY_CASE
def test_frobenius_norm_and_effective_rank_are_exact_for_few_samples(case):
    problem = case.problem(n=10)
    dense = covariance(all_gradients(problem))
    sigma = NoiseCovariance(problem)
    norm, rank = sigma.frobenius_norm(), sigma.effective_rank()
    assert norm.value == pytest.approx(np.linalg.norm(dense), rel=1e-9) and norm.stderr == 0
    assert rank.value == pytest.approx(np.trace(dense) ** 2 / np.linalg.norm(dense) ** 2, rel=1e-9) and rank.stderr == 0
    assert 1 <= rank.value <= min(9, problem.parameter_count)


def test_estimated_norm_agrees_in_standard_errors(no_gram):
    problem = MLP.problem(n=30)
    sigma, dense = NoiseCovariance(problem), covariance(all_gradients(problem))
    for estimate, truth in (
        (sigma.frobenius_norm, np.linalg.norm(dense)),
        (sigma.effective_rank, np.trace(dense) ** 2 / np.linalg.norm(dense) ** 2),
    ):
        found = [estimate(probes=200, seed=seed) for seed in range(30)]
        z = np.array([(f.value - truth) / f.stderr for f in found])
        assert np.abs(z).max() < stats.norm.isf(ALARM / 2 / len(z))
        assert stats.chi2.sf((z**2).sum(), len(z)) > ALARM and stats.chi2.cdf((z**2).sum(), len(z)) > ALARM
        assert np.abs(np.array([(f.value - 1.5 * truth) / f.stderr for f in found])).max() > 5
    assert sigma.frobenius_norm(seed=1) == sigma.frobenius_norm(seed=1) != sigma.frobenius_norm(seed=2)


def identical_samples() -> sn.Problem:
    return sn.Problem(torch.nn.Linear(4, 1).double(), "mse", torch.ones(20, 4).double(), torch.ones(20, 1).double())


def test_without_noise_there_is_no_rank():
    sigma = NoiseCovariance(identical_samples())
    assert sigma.trace() == pytest.approx(0, abs=1e-14)
    with pytest.raises(InputError, match="numerical rank .*, but k=4 eigenpairs were asked for; ask for at most"):
        sigma.top(4)


def test_a_deficient_rank_is_refused():
    """Two kinds of samples: one direction of noise."""
    problem = MLP.problem(n=8)
    inputs, targets = problem.samples.batch(torch.tensor([0, 1] * 4))
    twice = sn.Problem(problem.model, "mse", inputs, targets)
    assert NoiseCovariance(twice).top(1).converged.all()
    assert NoiseCovariance(twice).effective_rank().value == pytest.approx(1)
    with pytest.raises(InputError, match="numerical rank 1, but k=2 eigenpairs were asked for; ask for at most 1"):
        NoiseCovariance(twice).top(2)


@pytest.mark.parametrize("k", [0, -1, 8, 100])
def test_the_number_of_eigenpairs(k):
    with pytest.raises(InputError, match=f"k={k} eigenpairs of a covariance of 8 samples.*k must be between 1 and 7"):
        NoiseCovariance(MLP.problem(n=8)).top(k)


def test_what_does_not_fit_is_refused(no_gram, monkeypatch):
    sigma = NoiseCovariance(MLP.problem(n=8))
    with pytest.raises(InputError, match=r"exact spectrum needs the n x n Gram matrix; n=8 exceeds 1: .*\.top\(k\)"):
        sigma.spectrum()
    monkeypatch.setattr(import_module("shotnoise.measure.spectra.operator"), "DENSE_LIMIT_BYTES", 8 * 25 * 25)
    with pytest.raises(InputError, match=r"a dense covariance of 26 parameters would take .* GiB .*as an operator"):
        sigma.to_dense()


def test_measure_puts_the_spectrum_into_its_result(no_gram):
    problem = MLP.problem(n=20)
    result = sn.measure(problem, [1], top=3, per_parameter=True, seed=4)
    sigma = NoiseCovariance(problem)
    np.testing.assert_array_equal(result["noise_eigenvalues"], sigma.top(3).values)
    np.testing.assert_array_equal(result["noise_eigenvalue_residuals"], sigma.top(3).residuals)
    norm, rank = sigma.frobenius_norm(seed=4), sigma.effective_rank(seed=4)
    assert (float(result["noise_frobenius_norm"]), float(result["noise_frobenius_norm_stderr"])) == (
        norm.value,
        norm.stderr,
    )
    assert (float(result["noise_effective_rank"]), float(result["noise_effective_rank_stderr"])) == (
        rank.value,
        rank.stderr,
    )
    np.testing.assert_allclose(result["parameter_noise_variance"], np.diag(sigma.to_dense()), rtol=1e-9)
    names = [name for name, p in problem.parameters.items() for _ in range(p.numel())]
    assert list(result["parameter_name"].values) == names
