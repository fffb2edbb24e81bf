"""Columns with mean 0 and standard deviation 1 (divisor n), refused where a column is constant."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotnoise.errors import DataError


def standardised(columns: NDArray[np.float64], column_names: Sequence[str], *, where: str) -> NDArray[np.float64]:
    """(x - mean) / sd for each column of a (n, d) table; DataError names the columns that never change.

    >>> standardised(np.array([[1.0], [3.0]]), ["x"], where="example").ravel().tolist()
    [-1.0, 1.0]
    """
    constant = [name for name, column in zip(column_names, columns.T, strict=True) if np.ptp(column) == 0]
    if constant:
        raise DataError(
            f"{where}: column {', '.join(map(repr, constant))} has the same value in all {len(columns)} rows "
            "and cannot be standardised; drop the column or pass standardise=False."
        )
    standard: NDArray[np.float64] = (columns - columns.mean(0)) / columns.std(0)
    return standard


def column_tensor(columns: NDArray[np.float64]) -> Tensor:
    """A (n, d) table as a float32 tensor of its own memory."""
    return torch.from_numpy(columns.astype(np.float32))
