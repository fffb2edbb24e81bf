import numpy as np
import pytest
import torch
from measure_cases import CASES, LINE, MLP, all_gradients, covariance
from scipy import stats

import shotnoise as sn

ALARM = 1e-4


def hessian_by_definition(problem: sn.Problem) -> np.ndarray:
    """Of the mean loss with penalty, by differentiating twice with respect to one flat vector."""
    inputs, targets = problem.samples.batch(torch.arange(problem.n))
    start = problem.flatten(problem.parameters).detach()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(problem.model, problem.unflatten(flat), (inputs,))
        return problem.loss_spec.per_sample(outputs, targets).mean() + 0.5 * problem.l2 * flat.square().sum()

    return torch.autograd.functional.hessian(loss, start).double().numpy()


def by_definition(problem: sn.Problem) -> tuple[float, float]:
    """Tr(H Sigma) and g^T H g"""
    hessian, g = hessian_by_definition(problem), all_gradients(problem)
    return float(np.trace(hessian @ covariance(g))), float(g.mean(0) @ hessian @ g.mean(0))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_for_few_samples(case):
    problem = case.problem(n=12)
    noise, gradient = by_definition(problem)
    found = sn.measure.hessian_noise_scale(problem)
    assert found.noise_curvature == pytest.approx(noise, rel=1e-9) and found.noise_curvature_stderr == 0
    assert found.gradient_curvature == pytest.approx(gradient, rel=1e-9)
    if gradient > 0:
        assert found.value == pytest.approx(noise / gradient, rel=1e-9) and found.stderr == 0
    assert found.noise_curvature != pytest.approx(noise * 12 / 11, rel=1e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_estimated_for_many(case):
    problem = case.problem(n=50)
    noise, gradient = by_definition(problem)
    found = [sn.measure.hessian_noise_scale(problem, probes=40, seed=seed) for seed in range(25)]
    z = np.array([(f.noise_curvature - noise) / f.noise_curvature_stderr for f in found])
    assert np.abs(z).max() < stats.t.isf(ALARM / 2 / len(z), 39)
    assert abs(z.mean()) < stats.norm.isf(ALARM / 2) / np.sqrt(len(z)) + 0.3  # z is skew: its mean is not quite 0
    assert stats.chi2.cdf((z**2).sum(), len(z)) > ALARM, "standard errors far too large"
    wrong = np.array([(f.noise_curvature - 1.5 * noise) / f.noise_curvature_stderr for f in found])
    assert abs(wrong.mean()) > stats.norm.isf(ALARM / 2) / np.sqrt(len(z)) + 0.3
    assert all(f.gradient_curvature == pytest.approx(gradient, rel=1e-9) for f in found)
    for f in found:
        if gradient > 0:
            assert f.stderr / f.value == pytest.approx(f.noise_curvature_stderr / f.noise_curvature)


def test_it_is_the_plain_noise_scale_where_the_curvature_is_round():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=generator, dtype=torch.float64) + 1
    model = torch.nn.Linear(1, 3, bias=False, dtype=torch.float64)
    problem = sn.Problem(model, "mse", torch.ones(20, 1, dtype=torch.float64), points)  # H is the identity
    assert sn.measure.hessian_noise_scale(problem).value == pytest.approx(float(sn.measure(problem)["noise_scale"]))


def test_downhill_curvature_has_no_noise_scale():
    inputs = torch.linspace(1, 2, 12, dtype=torch.float64)[:, None]
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, 0.5)
    problem = sn.Problem(model, lambda f, y: -f.square().sum(1), inputs, inputs)
    found = sn.measure.hessian_noise_scale(problem)
    assert found.gradient_curvature < 0 and np.isnan(found.value) and np.isnan(found.stderr)
    assert np.isnan(float(sn.measure(problem, [1], hessian=True)["hessian_noise_scale"]))


def test_probes_are_cut_to_what_fits_in_memory(monkeypatch):
    problem = MLP.problem(n=20)
    whole = sn.measure.hessian_noise_scale(problem, probes=10, seed=3)
    functions = sn.measure.hessian_noise_scale.__globals__
    monkeypatch.setitem(functions, "MEMORY_BYTES", 4 * problem.parameter_count * 3)
    cut = sn.measure.hessian_noise_scale(problem, probes=10, seed=3)
    assert cut.noise_curvature == pytest.approx(whole.noise_curvature, rel=1e-12)
    assert cut.noise_curvature_stderr == pytest.approx(whole.noise_curvature_stderr, rel=1e-9)


def test_measure_adds_it_when_asked():
    problem = LINE.problem(n=50)
    result = sn.measure(problem, [1], hessian=True, seed=5)
    found = sn.measure.hessian_noise_scale(problem, seed=5)
    assert float(result["hessian_noise_scale"]) == found.value
    assert float(result["hessian_noise_scale_stderr"]) == found.stderr > 0
    assert "hessian_noise_scale" not in sn.measure(problem, [1])
