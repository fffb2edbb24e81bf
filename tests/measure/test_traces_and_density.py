"""Estimates from random vectors, judged in their own standard errors, and quadratures against all eigenvalues."""

import numpy as np
import pytest
import torch
from scipy import stats

from shotnoise.errors import InputError
from shotnoise.measure.spectra import Symmetric, diagonal, frobenius_norm, spectral_density, trace

ALARM = 1e-5


class Matrix(Symmetric):
    def __init__(self, values, seed=0, dtype=torch.float64):
        values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
        self.matrix = ((Q * values) @ Q.T).to(dtype)
        super().__init__(len(values), dtype, torch.device("cpu"))

    def product(self, vectors):
        return vectors @ self.matrix


SPECTRA = {"decaying": 1.1 ** -np.arange(150.0), "indefinite": np.linspace(-2, 3, 150), "flat": np.ones(150)}
BY_SPECTRUM = pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)


def agrees(found, truth):
    """Means and spreads of z values over many seeds, at a false-alarm rate of ALARM."""
    values, errors = np.array([f.value for f in found]), np.array([f.stderr for f in found])
    mean_z = (values.mean() - truth) / (values.std(ddof=1) / np.sqrt(len(values)) + 1e-12 * abs(truth) + 1e-14)
    ratio = errors.mean() / values.std(ddof=1) if values.std() > 1e-9 * abs(truth) else 1.0
    return abs(mean_z) < stats.t.isf(ALARM / 2, len(values) - 1) and 0.7 < ratio < 1.4


@BY_SPECTRUM
@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_traces_are_unbiased_and_know_their_error(values, method):
    A = Matrix(values)
    found = [trace(A, 30, method=method, seed=seed * 10) for seed in range(100)]
    assert agrees(found, values.sum())
    if method == "hutchinson" or values[0] != values[-1]:
        assert not agrees(found, 1.3 * values.sum() + 3)


def test_hutch_plus_plus_is_worth_it_for_few_large_eigenvalues():
    A = Matrix(1.5 ** -np.arange(150.0))
    errors = {m: np.std([trace(A, 30, method=m, seed=s).value for s in range(40)]) for m in ("hutch++", "hutchinson")}
    assert errors["hutch++"] < 0.5 * errors["hutchinson"]


@BY_SPECTRUM
def test_norms_and_diagonals(values):
    A = Matrix(values)
    norms = [frobenius_norm(A, 30, seed=seed) for seed in range(100)]
    assert agrees(norms, np.linalg.norm(values)) and not agrees(norms, 1.2 * np.linalg.norm(values))
    estimate, stderr = diagonal(A, 400)
    exact = np.diag(A.matrix)
    # Where the other entries of a row vanish, so does the error.
    z = (estimate - exact) / (stderr + 1e-12)
    assert np.abs(z).max() < stats.t.isf(ALARM / 2 / len(z), 399)
    if values[0] != values[-1]:
        assert np.abs((estimate - 1.5 * exact - 0.5) / (stderr + 1e-12)).max() > 10
    np.testing.assert_allclose(A.diagonal(), exact, atol=1e-14)


def test_enough_probes_make_it_exact():
    A = Matrix(SPECTRA["indefinite"])
    assert trace(A, 150).stderr == 0 and trace(A, 150).value == pytest.approx(SPECTRA["indefinite"].sum())
    assert frobenius_norm(A, 200).value == pytest.approx(np.linalg.norm(SPECTRA["indefinite"]))


def test_moments_of_the_quadrature():
    """Exact for the low powers but for the probes: together they are the traces of the powers."""
    values = np.concatenate([[5.0, 4.0, -3.0], np.linspace(-1, 1, 297)])
    found = spectral_density(Matrix(values), steps=12, probes=60, seed=1)
    for power in (1, 2, 3, 6):
        moment, stderr = found.moment(power)
        truth = (values**power).mean()
        assert abs(moment - truth) < stats.t.isf(ALARM / 2, 59) * stderr
        assert abs(moment - truth - 0.5 * abs(values**power).mean()) > stats.t.isf(ALARM / 2, 59) * stderr
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)


def test_the_density_against_all_eigenvalues():
    values = np.concatenate([np.random.default_rng(0).normal(size=396), [6.0, 7.0, 9.0, -5.0]])
    found = spectral_density(Matrix(values), steps=70, probes=20, width=0.4)
    exact = np.exp(-(((found.points[:, None] - values) / 0.4) ** 2) / 2).mean(1) / (0.4 * np.sqrt(2 * np.pi))
    z = (found.density - exact) / (found.stderr + 1e-6)
    assert np.abs(z).max() < stats.t.isf(1e-4 / len(z), 19)
    shifted = np.interp(found.points - 0.4, found.points, exact)
    assert np.abs((found.density - shifted) / (found.stderr + 1e-6)).max() > 20
    assert np.trapezoid(found.density, found.points) == pytest.approx(1, abs=1e-3)
    assert (found.nodes.max(1) == pytest.approx(9, abs=1e-8)) and (found.nodes.min(1) == pytest.approx(-5, abs=1e-8))


@pytest.mark.parametrize("values", [np.zeros(40), np.ones(40), [3.0, 0, 0, 0, 0]])
def test_densities_of_few_different_eigenvalues(values):
    found = spectral_density(Matrix(values), probes=6)
    assert np.isfinite(found.density).all() and found.moment(1)[0] == pytest.approx(
        np.mean(values), abs=3 * found.moment(1)[1] + 1e-9
    )


def test_single_precision():
    values = SPECTRA["decaying"]
    found = spectral_density(Matrix(values, dtype=torch.float32), probes=10)
    assert abs(found.moment(2)[0] - (values**2).mean()) < 5 * found.moment(2)[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: trace(A, 5), "probes=5: .* at least 6"),
        (lambda A: trace(A, 20, method="hutch"), "method='hutch': \"hutch\\+\\+\" or"),
        (lambda A: spectral_density(A, probes=1), "probes=1, .* needs 2 of each"),
        (lambda A: spectral_density(A, width=-1.0), "width=-1.0: a positive smoothing"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call(Matrix(SPECTRA["flat"]))
