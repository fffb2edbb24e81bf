"""Every answer of the fast paths against the slow twin, for each model, loss and precision of the table."""

from types import SimpleNamespace

import pytest
import torch

import slow_twin
from model_cases import ROWS, N, row_name
from shotnoise.per_sample.chunk import BY_RULE
from shotnoise.problem import Problem
from slow_twin import agrees

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=ROWS, ids=row_name)
def both(request, dtype):
    """One pass of the library, and the loop; size: the largest norm of a sample's gradient."""
    case, loss = request.param
    made = case.make(loss, dtype)
    (chunk,) = Problem(*made).passes()
    losses, gradients = slow_twin.gradients(*made)
    size = float(torch.cat([g.reshape(N, -1) for g in gradients.values()], 1).norm(dim=1).max())
    return SimpleNamespace(case=case, chunk=chunk, losses=losses, gradients=gradients, size=size)


def each(both):
    """(name, fast, slow (n, *shape), slow (n, p)) of every parameter."""
    assert list(both.chunk.per_sample) == list(both.chunk.paths) == list(both.gradients)
    return [(name, both.chunk.per_sample[name], g, g.reshape(N, -1)) for name, g in both.gradients.items()]


def test_losses(both):
    assert agrees(both.chunk.losses, both.losses)


def test_summed_gradient(both):
    for name, _, g, _ in each(both):
        assert agrees(both.chunk.gradient[name], g.sum(0), g.abs().sum(0).max(), both.size), name


def test_explicit_gradients(both):
    for name, fast, g, _ in each(both):
        assert agrees(fast.explicit(), g, whole=both.size), name


def test_squared_norms(both):
    for name, fast, _, g in each(both):
        assert agrees(fast.squared_norms(), g.square().sum(1), whole=both.size**2), name


def test_gram_matrix(both):
    for name, fast, _, g in each(both):
        assert agrees(fast.gram(), g @ g.T, whole=both.size**2), name


def test_sum_of_squares(both):
    for name, fast, g, _ in each(both):
        assert agrees(fast.sum_of_squares(), g.square().sum(0), whole=both.size**2), name


def test_product_with_a_direction(both):
    for name, fast, g, flat in each(both):
        v = torch.randn(g.shape[1:], generator=torch.Generator().manual_seed(0)).to(g.dtype)
        assert agrees(fast.dot(v), flat @ v.flatten(), flat.norm(dim=1).max() * v.norm(), both.size), name


def test_weighted_sums(both):
    weights = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).to(both.losses.dtype)
    for name, fast, g, flat in each(both):
        expected = (weights.T @ flat).reshape(2, *g.shape[1:])
        assert agrees(fast.weighted_sum(weights), expected, g.abs().max() * weights.abs().sum(), both.size), name


def test_path_taken(both):
    """A rule must not give way to the slow path unnoticed, nor be used where it cannot hold."""
    for name, path in both.chunk.paths.items():
        if both.case.has_no_rule(name):
            assert path.startswith(f"per-sample gradients by {both.case.way} ("), (name, path)
        else:
            assert path == BY_RULE, name
