"""What every function here asks first: positive rates, the variance factor of a batch, symmetric matrices."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import covariance, numbers, penalty
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithReplacement

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Learning rate eta, variance factor s_f of a batch and momentum mu."""

    learning_rate: float
    batch_size: int
    factor: float
    momentum: float
    sampling: Sampling

    @classmethod
    def of(
        cls, learning_rate: float, batch_size: int, momentum: float, sampling: Sampling | None, n: int | None
    ) -> "Setting":
        rate = positive("learning_rate", learning_rate)
        check_momentum(momentum)
        chosen = WithReplacement() if sampling is None else sampling
        if isinstance(chosen, (ReshuffledEpochs, CyclicEpochs)):
            raise InputError(
                f"{chosen!r}: batches of an epoch are correlated in time and no white noise describes them; use "
                "WithoutReplacement(), fresh at every step, or see diffusion.epoch_covariance"
            )
        return cls(rate, int(batch_size), chosen.variance_factor(batch_size, n), float(momentum), chosen)

    @property
    def epsilon(self) -> float:
        """eta s_f, the factor before the covariance of one sample's gradient in the diffusion."""
        return self.learning_rate * self.factor

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "momentum": self.momentum,
            "sampling": str(self.sampling),
        }


def positive(name: str, value: float) -> float:
    found = numbers(name, value)
    if found.ndim or not found > 0:
        raise InputError(f"{name}={value}: one positive number")
    return float(found)


def matrices(hessian: ArrayLike, noise_covariance: ArrayLike) -> tuple[Array, Array]:
    """H, symmetric of any sign, and C, positive semi-definite; a vector stands for a diagonal matrix."""
    given = numbers("hessian", hessian)
    H = np.diag(np.atleast_1d(given)) if given.ndim < 2 else given
    d = len(H)
    return penalty("hessian", H, d), covariance("noise_covariance", noise_covariance, d)
