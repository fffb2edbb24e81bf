"""Full passes over tiny data sets against the definitions: loops over samples, enumeration of all batches."""

import numpy as np
import pytest
import torch
from measure_cases import CASES, MLP, all_gradients, covariance, explicit_gradients, variance_over_batches

import shotnoise as sn
from shotnoise.per_sample.chunk import BY_RULE

RTOL = {torch.float64: 1e-10, torch.float32: 2e-4}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])
def test_variance_is_that_over_all_batches(case, replacement):
    problem = case.problem(n=5)
    scheme = sn.sampling.WithReplacement() if replacement else sn.sampling.WithoutReplacement()
    sizes = [1, 2, 3, 5] if not replacement else [1, 2, 3]
    result = sn.measure(problem, sizes, scheme)
    g = explicit_gradients(problem)
    for b in sizes:
        total = variance_over_batches(np.concatenate(list(g.values()), 1), b, replacement=replacement)
        found = result["conditional_gradient_variance"].sel(batch_size=b)
        np.testing.assert_allclose(found, total, rtol=1e-9, atol=1e-14)
        for layer, rows in g.items():
            layer_variance = variance_over_batches(rows, b, replacement=replacement)
            found = result["layer_conditional_gradient_variance"].sel(batch_size=b, layer=layer)
            np.testing.assert_allclose(found, layer_variance, rtol=1e-9, atol=1e-14)
    # the other scheme, or the wrong divisor, would not pass
    other = variance_over_batches(all_gradients(problem), 2, replacement=not replacement)
    assert not np.isclose(result["conditional_gradient_variance"].sel(batch_size=2), other, rtol=1e-2)
    assert not np.isclose(result["conditional_gradient_variance"].sel(batch_size=1), total * 5 / 4, rtol=1e-2)


@pytest.mark.parametrize("scheme", [sn.sampling.ReshuffledEpochs(), sn.sampling.CyclicEpochs()], ids=str)
def test_epochs_have_the_variance_of_a_subset(scheme):
    problem = MLP.problem(n=6)
    a, b = (sn.measure(problem, [1, 2, 4], s) for s in (scheme, sn.sampling.WithoutReplacement()))
    np.testing.assert_array_equal(a["conditional_gradient_variance"], b["conditional_gradient_variance"])


def moments_by_definition(g: np.ndarray) -> dict[str, float]:
    mean = g.mean(0)
    noise = np.trace(covariance(g))
    return {
        "gradient_norm_sq": mean @ mean,
        "second_moment_trace": (g**2).sum(1).mean(),
        "noise_trace": noise,
        "noise_scale": noise / (mean @ mean),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_moments_are_those_of_the_written_out_gradients(case, dtype):
    problem = case.problem(n=23, dtype=dtype)
    result = sn.measure(problem, [1, 4])
    by_layer = explicit_gradients(problem)
    assert list(result["layer"].values) == list(by_layer)
    total = moments_by_definition(np.concatenate(list(by_layer.values()), 1))
    for name, expected in total.items():
        np.testing.assert_allclose(result[name], expected, rtol=RTOL[dtype], err_msg=name)
        for layer, rows in by_layer.items():
            found = result[f"layer_{name}"].sel(layer=layer)
            np.testing.assert_allclose(found, moments_by_definition(rows)[name], rtol=RTOL[dtype], err_msg=name)
    variance = total["noise_trace"] * np.array([1, (23 - 4) / 4 / 22])
    square = total["gradient_norm_sq"]
    np.testing.assert_allclose(result["conditional_gradient_variance"], variance, rtol=RTOL[dtype])
    np.testing.assert_allclose(result["noise_share"], variance / (variance + square), rtol=RTOL[dtype])
    np.testing.assert_allclose(result["signal_to_noise"], square / variance, rtol=RTOL[dtype])
    assert result["noise_scale_low"] == result["noise_scale"] == result["noise_scale_high"]
    assert result["noise_scale_status"] == "exact"
    assert result.attrs["samples_used"] == problem.n


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_has_the_penalty_in_it(case):
    problem = case.problem(n=9)
    inputs, targets = problem.samples.batch(torch.arange(9))
    with torch.no_grad():
        outputs = problem.model(inputs)
        if case.loss == "mse":
            data = 0.5 * ((outputs - targets) ** 2).sum(1).mean()
        else:
            data = torch.nn.functional.cross_entropy(outputs, targets)
    penalty = 0.5 * case.l2 * sum(float(p.detach().square().sum()) for p in problem.model.parameters())
    assert float(sn.measure(problem, [1])["loss"]) == pytest.approx(float(data) + penalty, rel=1e-12)


def test_the_penalty_moves_the_gradient_and_not_the_noise():
    free, bound = MLP.problem(12), MLP.problem(12)
    bound.l2 = 5.0
    a, b = sn.measure(free, [1, 3]), sn.measure(bound, [1, 3])
    for name in ("noise_trace", "conditional_gradient_variance", "layer_noise_trace"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12)
    assert b["gradient_norm_sq"] > 2 * a["gradient_norm_sq"]


def test_layers_add_up_and_say_how_they_were_had():
    for case in CASES:
        problem = case.problem(n=8)
        result = sn.measure(problem, [1, 2])
        for name in ("gradient_norm_sq", "second_moment_trace", "noise_trace", "conditional_gradient_variance"):
            np.testing.assert_allclose(result[f"layer_{name}"].sum("layer"), result[name], rtol=1e-12)
        assert result["layer_parameters"].sum() == problem.parameter_count
        ways = result["layer_path"].to_series()
        assert ways["head"] == BY_RULE and "per-sample gradients by" in ways["(model)"] if "head" in ways else True
        assert "head" in ways or set(ways) == {BY_RULE}


def test_a_batch_of_all_the_data_has_no_noise():
    result = sn.measure(MLP.problem(n=6), [6]).squeeze("batch_size")
    assert float(result["conditional_gradient_variance"]) == 0
    assert float(result["noise_share"]) == 0 and np.isinf(float(result["signal_to_noise"]))


def test_identical_samples_have_no_noise():
    problem = sn.Problem(torch.nn.Linear(2, 1), "mse", torch.ones(9, 2), torch.zeros(9, 1))
    result = sn.measure(problem, [1, 4])
    assert 0 <= float(result["noise_trace"]) < 1e-5 * float(result["second_moment_trace"])
    assert 0 <= float(result["noise_scale"]) < 1e-5


def test_chunks_make_no_difference():
    whole, cut = MLP.problem(n=30), MLP.problem(n=30)
    assert whole.chunk_size > 30
    cut.passes(at_most=1)
    expected = sn.measure(whole, [1, 5])
    assert cut.chunk_size > 7
    cut._chunk_size = 7
    found = sn.measure(cut, [1, 5])
    for name in expected.data_vars:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_progress_is_told_and_ends_at_all_samples():
    problem = MLP.problem(n=30)
    problem.chunk_size  # noqa: B018  (looks at the model once)
    problem._chunk_size = 7
    for arguments, total in (({}, 30), ({"samples": 20}, 40)):
        seen = []
        sn.measure(problem, [1], progress=lambda done, of: seen.append((done, of)), **arguments)
        assert seen[-1] == (total, total) and seen == sorted(seen)


def test_the_default_batch_sizes_fit_the_data():
    assert sn.measure(MLP.problem(n=20)).sizes["batch_size"] == 2
    online = sn.measure(MLP.problem(n=20), sampling=sn.sampling.Online())
    assert list(online["batch_size"].values) == [1, 8, 64, 512]


def test_the_model_is_left_as_it_was():
    problem = MLP.problem(n=12)
    before = {name: (p.detach().clone(), p.grad) for name, p in problem.model.named_parameters()}
    state = torch.random.get_rng_state()
    sn.measure(problem, [1], top=2, per_parameter=True, hessian=True)
    sn.measure(problem, [1], samples=10)
    sn.measure.observed(problem, [2], draws=3)
    for name, p in problem.model.named_parameters():
        assert p.equal(before[name][0]) and p.grad is before[name][1]
    assert torch.random.get_rng_state().equal(state)
