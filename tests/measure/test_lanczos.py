"""Block Lanczos on matrices whose spectra are known, and on what makes it hard."""

from importlib import import_module

import numpy as np
import pytest
import torch

from shotnoise.errors import InputError
from shotnoise.measure.spectra import lanczos

module = import_module("shotnoise.measure.spectra.lanczos")


@pytest.fixture(autouse=True, params=[module.LONG, 0], ids=["short", "as if long"])
def long(request, monkeypatch):
    """All of it also in the way that is meant for long vectors, which orthogonalises only when it must."""
    monkeypatch.setattr(module, "LONG", request.param)


def matrix(values, seed=0, dtype=torch.float64):
    """Symmetric, with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    A = (Q * values) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def search(A, k, *, blocks=1, basis=60, tolerance=1e-9, most=4000, end="largest"):
    A = A if A.ndim == 3 else A[None]
    start = torch.randn(len(A), blocks, A.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return lanczos(lambda v: v @ A, start.to(A), k, end=end, tolerance=tolerance, basis=basis, most=most)


SPECTRA = {
    "outliers": [10, 9, 8.5, 3, 2.9, *np.linspace(-1, 1, 195)],
    "tiny gap": [5, 5 - 1e-9, 4, 3, *np.linspace(0, 1, 196)],
    "indefinite": [*np.linspace(-3, -2, 100), *np.linspace(1, 4, 100)],
    "rank 3": [7, 5, 2, *np.zeros(197)],
    "multiple": [5, 5, 5, 4, 4, 2, *np.linspace(-1, 1, 194)],
    "zero": np.zeros(200),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("end", ["largest", "smallest", "both"])
def test_the_ends_of_known_spectra(name, blocks, end):
    A, values = matrix(SPECTRA[name]), np.sort(SPECTRA[name])
    found = search(A, 4, blocks=blocks, end=end)
    expected = {"largest": values[::-1][:4], "smallest": values[:4]}
    expected["both"] = np.concatenate(list(expected.values()))
    scale = np.abs(values).max()
    np.testing.assert_allclose(found.values[0], expected[end], atol=1e-8 * scale + 1e-12)
    again = found.vectors[0] @ A - found.values[0][:, None] * found.vectors[0]
    np.testing.assert_allclose(found.residuals[0], again.norm(dim=1), atol=1e-13 * max(scale, 1))
    assert (found.residuals <= 1e-9 * found.norms[:, None] + 1e-13).all()
    np.testing.assert_allclose(found.vectors[0] @ found.vectors[0].T, np.eye(len(expected[end])), atol=1e-10)


def test_without_confirmation_copies_of_an_eigenvalue_are_passed_over():
    """What the confirmation is for: one Krylov space sees one copy."""
    A = matrix(SPECTRA["multiple"])
    assert search(A, 6).values[0].tolist() == pytest.approx([5, 5, 5, 4, 4, 2])
    start = torch.randn(1, 1, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    once = module._Space(lambda v: v @ A[None], start, 60, 1e-9)
    assert once.extend("largest", 3, 1e-9, 4000), "it says that it has converged"
    assert float(once.pairs([once.size - 3]).values) < 4.5, "and of the three fives one is missing"


def test_restarts_lead_to_the_same_pairs():
    A = matrix(SPECTRA["outliers"])
    small, large = search(A, 4, basis=12), search(A, 4, basis=150)
    np.testing.assert_allclose(small.values, large.values, rtol=1e-12)
    assert small.products >= large.products


def test_what_has_not_converged_is_returned_and_its_residuals_say_so():
    A = matrix(SPECTRA["indefinite"])
    found = search(A, 5, most=12)
    assert found.values.shape == (1, 5) and found.products <= 12
    exact = np.linalg.eigvalsh(A)
    for value, residual in zip(found.values[0], found.residuals[0], strict=True):
        assert np.abs(exact - float(value)).min() <= float(residual) + 1e-12, "an eigenvalue lies within the residual"
    assert (found.residuals > 1e-9 * found.norms[:, None]).any()


def test_many_operators_at_once_are_those_one_by_one():
    A = torch.stack([matrix(np.linspace(-1, 3, 40) ** 3, seed) * (1 + seed) for seed in range(4)])
    together = search(A, 3, blocks=2, basis=30)
    for r in range(4):
        values = np.linalg.eigvalsh(A[r])[::-1][:3]
        np.testing.assert_allclose(together.values[r], values, rtol=1e-9)


def test_a_basis_as_large_as_the_space_gives_everything():
    A = matrix([3, 1, 1, 0, -2])
    found = search(A, 5, basis=100)
    np.testing.assert_allclose(found.values[0], [3, 1, 1, 0, -2], atol=1e-12)
    assert search(matrix([4.0]), 1).values.item() == pytest.approx(4)


def test_single_precision():
    A = matrix(SPECTRA["outliers"], dtype=torch.float32)
    found = search(A, 4, tolerance=1e-5)
    np.testing.assert_allclose(found.values[0], [10, 9, 8.5, 3], rtol=1e-5)
    assert (found.residuals <= 1e-5 * 10).all() and found.vectors.dtype == torch.float32


def test_a_basis_that_is_too_small_is_refused():
    with pytest.raises(
        InputError, match=r"a basis of 5 vectors is too small for 4 eigenpairs in blocks of 1; at least 6"
    ):
        search(matrix(SPECTRA["outliers"]), 4, basis=5)
