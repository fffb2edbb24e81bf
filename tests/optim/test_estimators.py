"""The estimates of one batch, averaged over all batches there are, equal ||mu||^2 and the variance of the gradient."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from optim_cases import classifier, data, per_sample

import shotnoise as sn
from shotnoise.optim import Exact, Microbatches, Observed
from shotnoise.sampling import WithoutReplacement, WithReplacement

N = 5


def readings(model, noise, x, y, batch, parts=1):
    """(||g||^2, V) of one batch, by coordinate if the source is bound so."""
    model.zero_grad()
    for some in torch.as_tensor(batch).chunk(parts):
        (F.cross_entropy(model(x[some]), y[some]) / parts).backward()
        if parts > 1:
            noise.mark()
    parameters = list(model.parameters())
    means = [p.grad if noise.by_coordinate else float(p.grad.square().sum()) for p in parameters]
    variances = noise.variances(parameters, means)
    noise.forget()
    if noise.by_coordinate:
        return torch.cat([g.flatten() for g in means]).square(), torch.cat([v.flatten() for v in variances])
    return tuple(torch.tensor([sum(part)], dtype=torch.float64) for part in (means, variances))


@pytest.mark.parametrize("by_coordinate", [False, True])
@pytest.mark.parametrize(("sampling", "m"), [("with", 2), ("with", 3), ("without", 2), ("without", 4)])
def test_over_all_batches_the_mean_is_exact(sampling, m, by_coordinate):
    model, (x, y) = classifier(), data(N)
    gradients = per_sample(model, x, y)
    mu = gradients.mean(0)
    sigma = gradients.var(0, correction=0)
    kappa = 1 / m if sampling == "with" else (N - m) / (m * (N - 1))
    noise = Observed(model, None if sampling == "with" else N)
    noise.bind(list(model.parameters()), by_coordinate)
    every = product(range(N), repeat=m) if sampling == "with" else combinations(range(N), m)
    found = [readings(model, noise, x, y, batch) for batch in every]
    second, variance = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
    square, spread = (mu**2, kappa * sigma) if by_coordinate else ((mu**2).sum(), kappa * sigma.sum())
    scale = float((mu**2 + sigma).max()) if by_coordinate else float((mu**2 + sigma).sum())
    assert float((second - variance - square).abs().max()) < 1e-14 * max(1.0, scale)
    assert float((variance - spread).abs().max()) < 1e-14 * max(1.0, scale)
    # broken: the divisor m in place of m - 1, and the other sampling
    assert float((second - variance * (m - 1) / m - square).abs().max()) > 1e-4 * scale
    wrong = 1 / m - 1 / N if sampling == "with" else 1 / m
    right = 1 / m if sampling == "with" else 1 / m - 1 / N
    assert float((second - variance * wrong / right - square).abs().max()) > 1e-4 * scale


@pytest.mark.parametrize("by_coordinate", [False, True])
def test_micro_batches_of_two_samples_are_unbiased_with_and_without_replacement(by_coordinate):
    model, (x, y) = classifier(), data(N)
    gradients = per_sample(model, x, y)
    mu, sigma, m = gradients.mean(0), gradients.var(0, correction=0), 4
    for drawn, kappa in ((0.0, 1 / m), (m / N, (N - m) / (m * (N - 1)))):
        noise = Microbatches(drawn)
        noise.bind(list(model.parameters()), by_coordinate)
        every = product(range(N), repeat=m) if not drawn else (
            o for b in combinations(range(N), m) for o in ([*b], [b[0], b[2], b[1], b[3]], [b[0], b[3], b[1], b[2]])
        )  # fmt: skip
        found = [readings(model, noise, x, y, list(batch), parts=2) for batch in every]
        second, variance = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
        square, spread = (mu**2, kappa * sigma) if by_coordinate else ((mu**2).sum(), kappa * sigma.sum())
        torch.testing.assert_close((second - variance).squeeze(), square, rtol=0, atol=2e-14)
        torch.testing.assert_close(variance.squeeze(), spread, rtol=0, atol=2e-14)


@pytest.mark.parametrize("by_coordinate", [False, True])
@pytest.mark.parametrize("sampling", [WithReplacement(), WithoutReplacement()])
def test_the_oracle_is_the_definition(sampling, by_coordinate):
    model, (x, y) = classifier(), data()
    gradients = per_sample(model, x, y)
    oracle = Exact(sn.Problem(model, "cross_entropy", x, y, chunk_size=10), 4, sampling)
    oracle.bind(list(model.parameters()), by_coordinate)
    moments = [oracle.moments()[id(p)] for p in model.parameters()]
    mu = torch.cat([m.flatten() for m, _ in moments])
    torch.testing.assert_close(mu, gradients.mean(0), rtol=0, atol=1e-14)
    expected = sampling.variance_factor(4, 24) * gradients.var(0, correction=0)
    if by_coordinate:
        torch.testing.assert_close(torch.cat([v.flatten() for _, v in moments]), expected, rtol=0, atol=1e-14)
    else:
        assert sum(v for _, v in moments) == pytest.approx(float(expected.sum()), rel=1e-12)


def test_the_estimates_are_those_of_measure():
    model, (x, y) = classifier(), data()
    noise = Observed(model, population=24)
    noise.bind(list(model.parameters()), by_coordinate=False)
    batch = list(range(3, 15))
    second, variance = readings(model, noise, x, y, batch)
    problem = sn.Problem(model, "cross_entropy", x[batch], y[batch])
    s2 = float(sn.measure.moments(problem).noise_trace[-1]) * 12 / 11
    assert float(variance) == pytest.approx(s2 * (1 / 12 - 1 / 24), rel=1e-12)
    assert float(second) == pytest.approx(float(sn.measure(problem, [1])["gradient_norm_sq"]), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 24.0])
def test_mean_and_sum_of_the_losses_both_describe_their_own_gradient(scale):
    model, (x, y) = classifier(), data()
    gradients = scale * per_sample(model, x, y)
    noise = Observed(model)
    parameters = list(model.parameters())
    noise.bind(parameters, by_coordinate=False)
    F.cross_entropy(model(x), y, reduction="mean" if scale == 1.0 else "sum").backward()
    found = sum(noise.variances(parameters, [float(p.grad.square().sum()) for p in parameters]))
    assert found == pytest.approx(float(gradients.var(0).sum()) / 24, rel=1e-12)


def test_the_smoothing_is_bias_corrected():
    """On a gradient that never changes every average equals it, from the first batch on."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    optimizer = sn.optim.AdaptiveSGD(model.parameters(), Observed(model), 1e9, beta=0.9, warmup=1)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).mean().backward()  # g_i = 1, 3: g = 2, S^2 = 2, V = 1
        optimizer.step()
        (report,) = optimizer.report()
        np.testing.assert_allclose((report["gradient_norm_sq"], report["batch_gradient_norm_sq"]), (3, 4), rtol=1e-12)
        assert report["signal_ratio"] == pytest.approx(0.75)


@pytest.mark.parametrize("model", ["classifier", "convolution"])
@pytest.mark.parametrize("passes", [1, 2])
def test_the_variance_goes_into_its_average_without_being_written_out(model, passes):
    x, y = data(6)
    if model == "classifier":
        model = classifier()
    else:  # several positions share a weight, so that no single product gives the sums of squares
        model, x = torch.nn.Sequential(torch.nn.Conv1d(1, 3, 2), torch.nn.Flatten(), torch.nn.LazyLinear(3)), x[:, None]
        model = model.double()
        model(x)
    noise = Observed(model, 20)
    parameters = list(model.parameters())
    noise.bind(parameters, by_coordinate=True)
    for inputs, targets in zip(x.chunk(passes), y.chunk(passes), strict=True):
        (F.cross_entropy(model(inputs), targets) / passes).backward()
    gradients = [p.grad for p in parameters]
    before = [torch.randn_like(p) for p in parameters]
    after = [b.clone() for b in before]
    noise.subtract_variances(parameters, gradients, after, 0.75)
    for old, new, variance in zip(before, after, noise.variances(parameters, gradients), strict=True):
        assert torch.allclose(new, 0.75 * old - 0.25 * variance, rtol=1e-12, atol=1e-15)
        assert not torch.allclose(new, 0.75 * (old - 0.25 * variance), rtol=1e-6)  # broken: a second pass that forgets


def test_batches_that_are_passed_over_are_not_kept():
    """Their activations would hold memory for nothing; the first look after them is as good as ever."""
    model, (x, y) = classifier(), data(6)
    noise = Observed(model)
    optimizer = sn.optim.PreconditionedSGD(model.parameters(), noise, 10.0, every=3, warmup=2)
    kept = []
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        kept.append(len(noise._calls))
        optimizer.step()
    assert [bool(k) for k in kept] == [True, True, False, True, False, False, True]
    assert optimizer.param_groups[0]["batches"] == 4
