"""Where an optimizer learns how noisy its gradient is: what every source of that knowledge has in common.

An estimate comes from the batch that also gives the gradient g: r independent contributions c_k to the gradient, whose
sum is g (of samples, or of micro-batches). With g_k = r c_k their mean is g, and

    S^2 = sum_k ||g_k - g||^2 / (r - 1),        V = S^2 / r (1 - m/n)

is unbiased for the variance of g over batches, and ||g||^2 - V for ||mu||^2: McCandlish et al. 2018, appendix A; the
U-statistics of `shotnoise.measure`. m of n samples are drawn without replacement; n is infinite otherwise. No
normalisation of the loss is assumed, only that the objective is the mean of what `backward` is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from shotnoise.measure.estimate import sample_variance


class Estimates(ABC):
    """A source that reads the batch: unbiased, and known only after the gradient it is about."""

    by_coordinate = False

    def bind(self, parameters: Sequence[Tensor], by_coordinate: bool) -> None:
        """Called by the optimizer that will ask. Raises where the noise of a parameter cannot be had."""
        self.by_coordinate = by_coordinate

    @abstractmethod
    def variances(self, parameters: Sequence[Tensor], squares: Sequence[Any]) -> list[Any]:
        """V for each parameter: floats, or tensors of its shape. squares: ||g||^2, or g^2, in the same order."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was read since the last step."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of the batch."""
        yield


def variance_of_mean(square_sum: Any, square: Any, count: int, drawn: float) -> Any:
    """V from sum_k ||g_k||^2, ||g||^2 and r = count; drawn = m/n. Numbers or tensors, entry by entry.

    >>> variance_of_mean(1.0 + 9.0, 4.0, count=2, drawn=0.0)  # g_k = 1 and 3: S^2 = 2
    1.0
    """
    return sample_variance(square_sum, square, count) * ((1 - drawn) / count)
