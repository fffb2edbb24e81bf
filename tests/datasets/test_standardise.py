import numpy as np
import pytest

from shotnoise.datasets.standardise import column_tensor, standardised
from shotnoise.errors import DataError


def test_columns_have_mean_zero_and_unit_deviation():
    columns = np.random.default_rng(0).normal([5.0, -100.0], [0.1, 30.0], size=(50, 2))
    standard = standardised(columns, ["a", "b"], where="toy")
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose((standard**2).mean(0), 1)


def test_constant_column_is_named():
    with pytest.raises(DataError, match="toy: column 'b' has the same value in all 3 rows"):
        standardised(np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]), ["a", "b"], where="toy")


def test_tensor_does_not_share_memory():
    columns = np.ones((2, 1), np.float32)
    column_tensor(columns).zero_()
    assert columns.tolist() == [[1.0], [1.0]]
