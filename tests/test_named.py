"""Squared norms of long float32 vectors: no digits lost to one running sum."""

import pytest
import torch

from shotnoise.named import square


@pytest.mark.parametrize("count", [1, 3, 1023, 1024, 1025, 5_000_000])
def test_square_is_the_sum_of_squares_in_double(count):
    vector = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert square(vector) == pytest.approx(float(vector.double().square().sum()), rel=2e-7)


def test_one_running_sum_in_single_precision_would_not_do():
    vector = torch.rand(5_000_000, generator=torch.Generator().manual_seed(0))
    assert float(torch.linalg.vector_norm(vector)) ** 2 != pytest.approx(
        float(vector.double().square().sum()), rel=2e-7
    )


def test_any_shape_and_no_entry_at_all():
    assert square(torch.ones(3, 5, 7).transpose(0, 2)) == pytest.approx(105, rel=1e-6)
    assert square(torch.ones(0)) == 0


@pytest.mark.parametrize("count", [500, 5000])
def test_squares_too_large_for_single_precision_are_squares_all_the_same(count):
    vector = torch.full((count,), 1e19)
    assert float(vector.square().sum()) == float("inf") > square(vector)
    assert square(vector) == pytest.approx(count * 1e38, rel=1e-6)
    assert square(torch.tensor([1.0, float("inf")])) == float("inf")
