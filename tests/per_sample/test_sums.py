"""||sum_i g_i||^2 from Gram matrices: exact, with an error that is known, and not used where it would lose digits."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shotnoise as sn
from model_cases import ROWS, row_name
from shotnoise.per_sample import sums
from shotnoise.per_sample.structure import Dense, Outer, PerSample
from shotnoise.per_sample.sums import from_gram, norms_and_square, spares_the_gradient
from slow_twin import gradients

ALWAYS = mock.patch.object(sums, "WORTH", -(10**18))
UNGUARDED = mock.patch.object(sums, "TOLERANCE", np.inf)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(a, d, *, bias):
    """The parameters of a dense layer as a pass delivers them."""
    weight = PerSample([Outer(a, d[:, None, :, None])], torch.Size([d.shape[1], a.shape[1]]))
    return [weight, PerSample([Dense(d)], d.shape[1:])] if bias else [weight]


def true_square(a, d, *, bias):
    a = F.pad(a, (0, 1), value=1.0) if bias else a
    return float((d.double().T @ a.double()).square().sum())


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("m", [1, 2, 63, 64, 65, 150])
def test_norms_and_square_are_those_of_the_written_out_gradients(m, bias):
    a, d = normal(m, m, 7), normal(m + 1, m, 5)
    written = torch.einsum("no,ni->noi", d, F.pad(a, (0, 1), value=1.0) if bias else a).flatten(1)
    for norms, square in (from_gram(a, d, bias)[:2], norms_and_square(layer(a, d, bias=bias))):
        torch.testing.assert_close(norms, written.square().sum(1), rtol=1e-12, atol=0)
        assert square == pytest.approx(float(written.sum(0).square().sum()), rel=1e-11)
    assert m == 1 or from_gram(a, d, not bias)[1] != pytest.approx(square, rel=1e-3)


def test_a_parameter_beside_the_weight_that_is_no_bias_of_it_is_added_by_itself():
    a, d, other = normal(1, 9, 7), normal(2, 9, 5), normal(3, 9, 5)
    norms, square = norms_and_square([*layer(a, d, bias=False), PerSample([Dense(other)], other.shape[1:])])
    torch.testing.assert_close(norms, a.square().sum(1) * d.square().sum(1) + other.square().sum(1))
    expected = true_square(a, d, bias=False) + float(other.sum(0).square().sum())
    assert square == pytest.approx(expected, rel=1e-12)


def dense_layers(model, x, loss):
    """(a, d) of each Linear of a Sequential, float32."""
    inputs, outputs = [], []
    for module in model:
        if isinstance(module, nn.Linear):
            inputs.append(x.detach())
        x = module(x)
        if isinstance(module, nn.Linear):
            outputs.append(x)
    return list(zip(inputs, torch.autograd.grad(loss(x), outputs), strict=True))


def trained(activation, steps, seed, inputs=150, hidden=120, n=96):
    torch.manual_seed(seed)
    sizes = [nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, 5)]
    model, x, y = nn.Sequential(*sizes), torch.rand(n, inputs), torch.arange(n) % 5
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def cross_entropy(y):
    return lambda outputs: F.cross_entropy(outputs, y, reduction="sum")


def require_within_a_quarter(activation, steps, **sizes):
    model, x, y = trained(activation, steps, seed=0, **sizes)
    repeated = (x[:8].repeat(12, 1), y[:8].repeat(12))
    for inputs, targets in ((x, y), repeated):
        for a, d in dense_layers(model, inputs, cross_entropy(targets)):
            _, square, error = from_gram(a, d, bias=True)
            assert abs(square - true_square(a, d, bias=True)) < error / 4


STEPS = pytest.mark.parametrize("steps", [0, 30, 300])
ACTIVATIONS = pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Identity])


@STEPS
@ACTIVATIONS
def test_errors_are_within_a_quarter_of_the_estimate(activation, steps):
    require_within_a_quarter(activation, steps)


@pytest.mark.slow
@STEPS
@ACTIVATIONS
def test_errors_of_wide_layers_are_within_a_quarter_of_the_estimate(activation, steps):
    require_within_a_quarter(activation, steps, inputs=768, hidden=500, n=256)


def test_an_estimate_without_the_pairs_is_too_small():
    """Equal samples have equal errors: what the diagonal alone says is not enough where two inputs repeat."""
    broken = []
    for seed in range(10):
        a = (1 + normal(seed, 2, 400, dtype=torch.float32).abs()).repeat(256, 1)
        d = normal(seed + 1, 1, 400, dtype=torch.float32).repeat(512, 1)
        d[1::2] *= -1  # cancels the gradient but for the difference of the inputs
        norms, square, error = from_gram(a, d, bias=False)
        found = abs(square - true_square(a, d, bias=False))
        assert found < error / 4
        broken.append(found / (torch.finfo(torch.float32).eps / 2 * 800**0.5 * float(norms.sum())))
    assert max(broken) > 1


def near_minimum(dtype=torch.float32):
    """Least squares so near the minimum that the gradient is 1e-4 of what it is made of; 120 samples, 90 x 80 weights."""
    x, y = normal(1, 120, 90) + 0.5, normal(2, 120, 80)
    weights = torch.linalg.lstsq(x, y).solution.T + 1e-6 * normal(3, 80, 90)
    model = nn.Sequential(nn.Linear(90, 80, bias=False)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(weights)
    return model, x.to(dtype), y.to(dtype)


def test_where_gradients_cancel_the_gradient_is_computed():
    model, x, y = near_minimum()
    ((a, d),) = dense_layers(model, x, lambda outputs: 0.5 * (outputs - y).square().sum())
    true = true_square(a, d, bias=False)
    assert norms_and_square(layer(a, d, bias=False))[1] == pytest.approx(true, rel=1e-4)
    with UNGUARDED:
        assert norms_and_square(layer(a, d, bias=False))[1] != pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_moments_of_every_model_are_those_of_the_loop(row):
    """With Gram matrices wherever the structure allows them, tied, repeated and unknown layers beside them."""
    case, loss = row
    with ALWAYS:
        found = sn.measure.moments(sn.Problem(*case.make(loss)))
    g = torch.cat([part.reshape(len(part), -1) for part in gradients(*case.make(loss))[1].values()], 1)
    assert found.gradient_norm_sq[-1] == pytest.approx(float(g.mean(0).square().sum()), rel=1e-8)
    assert found.noise_trace[-1] == pytest.approx(float(g.var(0, correction=0).sum()), rel=1e-8)


def mlp(dtype=torch.float32, **options):
    """Only the second layer, 200 x 300, is large enough for 96 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 10)).to(dtype)
    return sn.Problem(model, "cross_entropy", normal(1, 96, 20, dtype=dtype), torch.arange(96) % 10, **options)


def layers_by_gram(problem, worth=10**6):
    """The shapes of the weights whose Gram matrices are taken, and the moments."""
    with mock.patch.object(sums, "WORTH", worth), mock.patch.object(sums, "from_gram", wraps=from_gram) as used:
        found = sn.measure.moments(problem)
    return [(call.args[1].shape[1], call.args[0].shape[1]) for call in used.call_args_list], found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_layers_are_done_without_their_gradient(dtype):
    shapes, found = layers_by_gram(mlp(dtype))
    none, expected = layers_by_gram(mlp(dtype), worth=10**18)
    assert shapes == [(200, 300)] and none == []
    for name in ("gradient_norm_sq", "second_moment", "noise_trace"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=4e3 * torch.finfo(dtype).eps / 8)
    assert found.paths == expected.paths and found.loss == expected.loss


def test_not_with_a_penalty_nor_where_the_samples_do_not_meet():
    assert layers_by_gram(mlp(l2=0.1))[0] == []
    assert layers_by_gram(mlp(chunk_size=95))[0] == []
    assert layers_by_gram(mlp(chunk_size=96))[0] == [(200, 300)]


def test_not_where_products_are_rounded():
    """As on request: bfloat16 inside of float32 would lose what the estimate promises."""
    weight = torch.zeros(3000, 2000)
    assert spares_the_gradient(weight, 10) and spares_the_gradient(weight.double(), 10)
    assert not spares_the_gradient(weight.bfloat16(), 10) and not spares_the_gradient(weight, 2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not spares_the_gradient(weight, 10)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert not spares_the_gradient(weight, 10) and spares_the_gradient(weight.double(), 10)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("of_a", "of_d"), [(1e10, 1e-24), (1, 1e-15), (1, 1e15)])
def test_tiny_and_huge_output_gradients(of_a, of_d):
    """That their products underflow is no reason to see no gradient."""
    a, d = of_a * normal(1, 40, 30, dtype=torch.float32), of_d * normal(2, 40, 20, dtype=torch.float32)
    found = norms_and_square(layer(a, d, bias=True))[1]
    assert found == pytest.approx(true_square(a, d, bias=True), rel=1e-5, abs=0)
    assert (from_gram(a, d, bias=True)[1] == 0) == (of_d == 1e-24)


def test_terms_may_be_finite_where_their_sum_overflows():
    """Norms of 1e38 are numbers of single precision; the sum over 40 samples is not, and the gradient's square is a double."""
    a, d = torch.ones(40, 30), torch.full((40, 20), 4e17)
    norms, found = norms_and_square(layer(a, d, bias=True))
    assert norms.isfinite().all() and from_gram(a, d, bias=True)[1] == float("inf")
    assert found == pytest.approx(true_square(a, d, bias=True), rel=1e-5, abs=0)


def test_a_gradient_that_is_not_finite_is_named():
    problem = mlp()
    with torch.no_grad():
        problem.model[2].weight.mul_(1e-30)
        problem.model[4].weight.mul_(1e36)
    with pytest.raises(sn.NonFiniteError, match="the gradient of sample 0 in layer '0'|in layer '2'"):
        layers_by_gram(problem)
