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
