"""First weights as a configuration file can name them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Normal:
    """All weights of a run drawn independently from N(0, standard_deviation^2).

    >>> Normal(0.1, parameters=3)(np.random.default_rng(0)).shape
    (3,)
    """

    standard_deviation: float
    parameters: int

    def __call__(self, rng: np.random.Generator) -> NDArray[np.float64]:
        return self.standard_deviation * rng.standard_normal(self.parameters)
