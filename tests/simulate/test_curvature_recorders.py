"""The curvature along the training: every run's against matrices from the definitions at its own weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise.errors import InputError
from shotnoise.measure.curvature import runs as module
from shotnoise.measure.curvature.runs import RunCurvature

sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))
import curvature_twins as twins

MODELS = {model.name: model for model in twins.MODELS}
BY_MODEL = pytest.mark.parametrize("name", ["relu", "tanh", "layer-norm"])
TOP = 4


def at(problem, weights):
    one = problem.replica()
    torch.nn.utils.vector_to_parameters(torch.as_tensor(weights).to(problem.dtype), one.model.parameters())
    return one


def descending(A):
    values, vectors = np.linalg.eigh(A)
    return values[::-1], vectors[:, ::-1]


def weights_of(problem, count, scale=0.6):
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(count, problem.parameter_count, generator=generator, dtype=torch.float64)


@BY_MODEL
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_every_run_is_that_of_its_matrices(name, l2):
    problem = twins.problem_of(MODELS[name], n=14, l2=l2)
    weights = weights_of(problem, 2)
    settings = RunCurvature(TOP, layers=True, full=True, probes=200, tolerance=1e-10)
    found = {key: value.numpy() for key, value in settings.of(problem, weights).items()}
    assert set(found) == set(settings.names) and (found["eigenpair_error"] <= 1e-10).all()
    for r in range(2):
        one = at(problem, weights[r])
        H, g = twins.hessian(one), twins.gradients(one)
        M, p = g.T @ g / len(g), len(H)
        (h, U), (m, V), (d, _) = descending(H), descending(M), descending(M - H)
        close = {"atol": 1e-8 * np.abs(h).max()}
        np.testing.assert_allclose(found["hessian_eigenvalues"][r], h[:TOP], **close)
        np.testing.assert_allclose(found["second_moment_eigenvalues"][r], m[:TOP], **close)
        np.testing.assert_allclose(found["residual_eigenvalues"][r], d[:TOP], **close)
        np.testing.assert_allclose(found["residual_lowest_eigenvalues"][r], d[::-1][:TOP], **close)
        for key, values in (("hessian", h), ("second_moment", m), ("residual", d)):
            np.testing.assert_allclose(found[f"{key}_spectrum"][r], values, **close)
        W = U[:, :TOP].T @ V[:, :TOP]
        np.testing.assert_allclose(found["principal_angle_cosines"][r], np.linalg.svd(W)[1], atol=1e-6)
        literal = [np.linalg.norm(W[:k, :k]) ** 2 / k for k in range(1, TOP + 1)]
        np.testing.assert_allclose(found["subspace_overlap"][r], literal, atol=1e-6)
        single = np.sqrt(1 - np.diag(W) ** 2)
        np.testing.assert_allclose(found["eigenvector_sines"][r], single, atol=1e-6)
        mean = g.mean(0)
        share = np.cumsum((U[:, :TOP].T @ mean) ** 2) / (mean @ mean)
        np.testing.assert_allclose(found["gradient_share"][r], share, atol=1e-6)
        place = np.concatenate(
            [[0], np.cumsum([sum(one.parameters[n].numel() for n in names) for names in one.layers.values()])]
        )
        for i in range(len(place) - 1):
            block, rest = slice(place[i], place[i + 1]), slice(place[i], None)
            loading = (U[block, :TOP] ** 2).mean(0) * p
            np.testing.assert_allclose(found["layer_loading"][r, i], loading, atol=1e-5)
            np.testing.assert_allclose(
                found["layer_hessian_eigenvalues"][r, i], descending(H[block, block])[0][:TOP], **close
            )
            np.testing.assert_allclose(
                found["subnetwork_hessian_eigenvalues"][r, i], descending(H[rest, rest])[0][:TOP], **close
            )
        assert found["second_moment_trace"][r] == pytest.approx(np.trace(M))
        assert found["second_moment_frobenius_norm"][r] == pytest.approx(np.linalg.norm(M))
        assert found["hessian_frobenius_norm"][r] == pytest.approx(np.linalg.norm(H), rel=0.05)
        assert found["residual_frobenius_norm"][r] == pytest.approx(np.linalg.norm(M - H), rel=0.05)


def test_traces_and_squared_norms_have_no_bias():
    """Over many seeds, judged in standard errors; a trace without what the eigenpairs leave is rejected."""
    problem = twins.problem_of(MODELS["relu"], n=14)
    weights = weights_of(problem, 1)
    H = twins.hessian(at(problem, weights[0]))
    traces, squares = [], []
    for seed in range(60):
        found = RunCurvature(2, probes=2, seed=seed).of(problem, weights)
        traces.append(float(found["hessian_trace"]))
        squares.append(float(found["hessian_frobenius_norm"]) ** 2)
    for values, truth, wrong in (
        (traces, np.trace(H), np.linalg.eigvalsh(H)[-2:].sum()),
        (squares, np.linalg.norm(H) ** 2, (np.linalg.eigvalsh(H)[-2:] ** 2).sum()),
    ):
        stderr = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - truth) < 4.5 * stderr < abs(np.mean(values) - wrong)


@BY_MODEL
def test_groups_and_other_runs_make_no_difference(name, monkeypatch):
    problem = twins.problem_of(MODELS[name], n=14)
    weights = weights_of(problem, 3)
    whole = RunCurvature(3).of(problem, weights)
    alone = RunCurvature(3).of(problem, weights[2:])
    monkeypatch.setattr(module, "GROUP_BYTES", 1)
    cut = RunCurvature(3).of(problem, weights)
    for key in whole:
        torch.testing.assert_close(cut[key], whole[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone[key][0], whole[key][2], rtol=1e-5, atol=1e-6)


def test_runs_that_have_diverged_are_nan_and_disturb_no_other():
    problem = twins.problem_of(MODELS["relu"], n=14)
    weights = weights_of(problem, 3)
    weights[1, 4] = float("nan")
    found = RunCurvature(3).of(problem, weights)
    for value in found.values():
        assert value[1].isnan().all() and not value[[0, 2]].isnan().any()


def test_what_has_not_converged_is_nan_and_the_error_says_so(monkeypatch):
    monkeypatch.setattr(module, "MOST", 0)
    monkeypatch.setattr(module, "LAYER_BASIS", 10)
    problem = twins.problem_of(MODELS["relu"], n=14)
    found = RunCurvature(4).of(problem, weights_of(problem, 2))
    assert found["hessian_eigenvalues"].isnan().any() and (found["eigenpair_error"] > 1e-6).all()


def ensemble(problem, **options):
    settings = {"steps": 6, "runs": 3, "initial": "resampled", "seed": 1, "workers": 1, "block": 2}
    return sn.simulate(problem, sn.rules.SGD(0.1), 4, **(settings | options))


@BY_MODEL
def test_as_recorders_of_a_training(name):
    problem = twins.problem_of(MODELS[name], n=6)
    looked = sn.simulate.curvature(3, steps=[0, 5], layers=name == "relu")
    runs = ensemble(problem, record=["loss", looked, sn.simulate.weights(steps=[0, 5])])
    assert runs["hessian_eigenvalues"].dims == ("batch_size", "run", "curvature_step", "mode")
    assert runs["layer_loading"].dims == ("batch_size", "run", "curvature_step", "layer", "mode")
    assert (
        runs["curvature_step"].values.tolist() == [0, 5]
        and runs["hessian_trace"].attrs["long_name"] == "trace of the Hessian"
    )
    for r, i in ((0, 0), (2, 1)):
        H = twins.hessian(at(problem, runs["weights"].values[0, r, i]))
        np.testing.assert_allclose(runs["hessian_eigenvalues"].values[0, r, i], descending(H)[0][:3], rtol=1e-5)
    without = ensemble(problem, record=["loss"])
    np.testing.assert_array_equal(runs["loss"], without["loss"], err_msg="looking changes nothing")


def test_mean_spectra_with_their_errors():
    problem = twins.problem_of(MODELS["relu"], n=14)
    record = ["loss", sn.simulate.curvature(3)]
    raw, pooled = (ensemble(problem, record=record, every=3, raw=raw, runs=12) for raw in (True, False))
    summary = sn.simulate.summary(raw)
    assert raw["hessian_eigenvalues"].dims == ("batch_size", "run", "step", "mode")
    for name in ("hessian_eigenvalues", "principal_angle_cosines", "layer_loading", "residual_frobenius_norm"):
        values = raw[name].values.astype(float)
        np.testing.assert_allclose(summary[name], values.mean(1), rtol=1e-6)
        np.testing.assert_allclose(pooled[name], values.mean(1), rtol=1e-5, atol=1e-7)
        stderr = values.std(1, ddof=1) / np.sqrt(12)
        np.testing.assert_allclose(summary[f"{name}_stderr"], stderr, rtol=1e-5, atol=1e-9)


def test_a_store_takes_them(tmp_path):
    problem = twins.problem_of(MODELS["relu"], n=14)
    record = ["loss", sn.simulate.curvature(2, steps=[6])]
    stored = ensemble(problem, record=record, store=tmp_path / "runs")
    again = ensemble(problem, record=record, store=tmp_path / "runs")
    memory = ensemble(problem, record=record)
    for name in ("hessian_eigenvalues", "gradient_share"):
        np.testing.assert_array_equal(stored[name], memory[name])
        np.testing.assert_array_equal(again[name], memory[name])


def test_refusals():
    problem = twins.problem_of(MODELS["relu"], n=14)
    p = problem.parameter_count
    with pytest.raises(InputError, match=f"top={p}: pairs at both ends of {p} eigenvalues; ask for 1 to {p // 2}"):
        ensemble(problem, record=[sn.simulate.curvature(p)])
    with pytest.raises(InputError, match="probes=1, tolerance=1e-06: at least 2 probes"):
        ensemble(problem, record=[sn.simulate.curvature(2, probes=1)])
    with pytest.raises(InputError, match=r"steps \[7\] must lie between 0 and 6"):
        ensemble(problem, record=[sn.simulate.curvature(2, steps=[7])])
    big = sn.Problem(nn.Linear(4, 3), "cross_entropy", torch.zeros(9000, 4), torch.zeros(9000, dtype=torch.long))
    with pytest.raises(InputError, match="n=9000: the second moment of every run .* subset of the data"):
        ensemble(big, record=[sn.simulate.curvature(2)])
