"""Cutting the samples into chunks, and chunks into blocks, changes nothing but rounding."""

import pytest
import torch

import shotnoise.problem
import slow_twin
from model_cases import BY_NAME, N
from shotnoise.per_sample import explicit, structure
from shotnoise.problem import Problem
from slow_twin import agrees

NAMES = [
    "mlp", "linear-many-positions", "cnn", "conv2d-groups", "conv3d", "embedding-tied-head", "embedding-padding",
    "called-twice", "tied-convolutions-of-other-groups", "transformer-block", "lstm", "scalar-parameter",
    "layer-norm-two-axes", "sequence-first", "position-embedding", "unused-layer", "operation-without-vmap",
]  # fmt: skip


@pytest.fixture(params=NAMES)
def made(request):
    return BY_NAME[request.param].make("mse")


@pytest.fixture(params=[1, 2, 4])
def small(request, monkeypatch):
    """Blocks of few rows and few samples, and chunks of 1, 2 or 4 samples, the last one shorter."""
    monkeypatch.setattr(structure, "BLOCK_BYTES", 64)
    monkeypatch.setattr(explicit, "BLOCK_BYTES", 64)
    monkeypatch.setattr(structure, "CACHE_BYTES", 64)
    return request.param


def test_gradients_and_products(made, small):
    chunks = list(Problem(*made).passes(at_most=small))
    losses, expected = slow_twin.gradients(*made)
    assert [len(chunk.losses) for chunk in chunks] == [len(part) for part in torch.arange(N).split(small)]
    assert torch.cat([chunk.indices for chunk in chunks]).tolist() == list(range(N))
    assert agrees(torch.cat([chunk.losses for chunk in chunks]), losses)
    size = max(float(g.abs().max()) for g in expected.values())
    for name, g in expected.items():
        parts, flat = [chunk.per_sample[name] for chunk in chunks], g.reshape(N, -1)
        assert agrees(sum(chunk.gradient[name] for chunk in chunks), g.sum(0), size)
        assert agrees(torch.cat([part.explicit() for part in parts]), g, size)
        assert agrees(torch.cat([part.squared_norms() for part in parts]), flat.square().sum(1), size**2)
        assert agrees(sum(part.sum_of_squares() for part in parts), g.square().sum(0), size**2)
        gram = torch.cat([torch.cat([x.gram(y) for y in parts], 1) for x in parts])
        assert agrees(gram, flat @ flat.T, size**2)


def test_chunk_size_follows_the_memory_of_what_is_recorded(monkeypatch):
    made = BY_NAME["cnn"].make("mse")
    whole = Problem(*made)
    assert whole.chunk_size > N
    monkeypatch.setattr(shotnoise.problem, "ACTIVATION_BYTES", 1)
    one_by_one = Problem(*made)
    assert one_by_one.chunk_size == 1
    assert [len(chunk.losses) for chunk in one_by_one.passes()] == [1] * N
    gradients, expected = one_by_one.per_sample_gradients(), whole.per_sample_gradients()
    assert all(agrees(gradients[name], g) for name, g in expected.items())


def test_gradients_written_out_count_as_memory():
    """An LSTM's per-sample gradients are whole weights, so its chunks are small."""
    model = torch.nn.LSTM(64, 256, batch_first=True)
    problem = Problem(model, lambda out, y: out[0][:, -1, 0], torch.randn(8, 2, 64), torch.zeros(8))
    weights = 8 * sum(p.numel() for p in model.parameters()) * 4
    assert problem.chunk_size == shotnoise.problem.ACTIVATION_BYTES * 8 // weights


def test_some_samples_in_any_order(made):
    indices = torch.tensor([4, 0, 4])
    _, expected = slow_twin.gradients(*made)
    gradients = Problem(*made).per_sample_gradients(indices)
    size = max(float(g.abs().max()) for g in expected.values())
    assert all(agrees(gradients[name], g[indices], size) for name, g in expected.items())


def test_without_the_summed_gradient(made):
    (chunk,) = Problem(*made).passes(with_gradient=False)
    _, expected = slow_twin.gradients(*made)
    assert chunk.gradient == {}
    size = max(float(g.abs().max()) for g in expected.values())
    assert all(agrees(chunk.per_sample[name].explicit(), g, size) for name, g in expected.items())
