"""Where an optimizer learns how noisy its gradient is: what every source of that knowledge has in common.

An estimate comes from the batch that also gives the gradient g: r independent contributions c_k to the gradient, whose
sum is g (of samples, or of micro-batches). With g_k = r c_k their mean is g, and

    S^2 = sum_k ||g_k - g||^2 / (r - 1),        V = S^2 / r (1 - m/n)

is unbiased for the variance of g over batches, and ||g||^2 - V for ||mu||^2: McCandlish et al. 2018, appendix A; the
U-statistics of `shotnoise.measure`. m of n samples are drawn without replacement; n is infinite otherwise. No
normalisation of the loss is assumed, only that the objective is the mean of what `backward` is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def always() -> bool:
    return True


class Estimates(ABC):
    """A source that reads the batch: unbiased, and known only after the gradient it is about."""

    by_coordinate = False
    wanted: Callable[[], bool] = staticmethod(always)

    def bind(self, parameters: Sequence[Tensor], by_coordinate: bool, wanted: Callable[[], bool] = always) -> None:
        """Called by the optimizer that will ask. Raises where the noise of a parameter cannot be had.

        wanted: says whether the coming step will ask; a batch of which nothing is asked need not be kept.
        """
        self.by_coordinate, self.wanted = by_coordinate, wanted

    @abstractmethod
    def variances(self, parameters: Sequence[Tensor], means: Sequence[Any]) -> list[Any]:
        """V for each parameter, in the same order: floats from means ||g||^2, by coordinate tensors from means g."""

    def subtract_variances(
        self, parameters: Sequence[Tensor], means: Sequence[Tensor], averages: Sequence[Tensor], beta: float
    ) -> None:
        """averages <- beta averages - (1 - beta) V in place, by coordinate."""
        for average, variance in zip(averages, self.variances(parameters, means), strict=True):
            average.mul_(beta).sub_(variance, alpha=1 - beta)

    @abstractmethod
    def forget(self) -> None:
        """Drop what was read since the last step."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of the batch."""
        yield


def variance_of_mean(square_sum: Any, mean_square: Any, count: int, drawn: float) -> Any:
    """V from sum_k ||c_k||^2, ||g||^2 and r = count; drawn = m/n. Numbers, or tensors entry by entry.

    >>> variance_of_mean(0.25 + 2.25, 4.0, count=2, drawn=0.0)  # g_k = 1 and 3: S^2 = 2
    1.0
    """
    return (square_sum - mean_square / count) * spread_factor(count, drawn)


def spread_factor(count: int, drawn: float) -> float:
    """V over sum_k ||c_k - g / r||^2."""
    return (1 - drawn) * count / (count - 1)
