"""How minibatches are drawn, and what that does to the variance of their mean.

For per-sample gradients g_1 .. g_n with covariance Sigma (divisor n), the mean of a batch of b has variance

    kappa(b, n) Tr Sigma,    kappa = 1/b  drawn with replacement,   (n - b) / (b (n - 1))  without,

the second vanishing at b = n, where the batch is the whole data set (and 0 by convention for n = 1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """A rule for drawing batches of `batch_size` out of n samples; use one of its subclasses."""

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        """kappa: the variance of a batch mean in units of Tr Sigma (divisor n), at weights fixed beforehand.

        n is the number of samples, None for an unlimited population. Raises InputError for a batch that
        the rule cannot draw.
        """
        raise NotImplementedError

    def batches(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        """Endless batches of sample indices, each an int64 array of shape (batch_size,)."""
        self.check(batch_size, n)
        return self._draw(batch_size, n, rng)

    def _draw(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        raise NotImplementedError

    def check(self, batch_size: int, n: int | None) -> None:
        """Raise InputError unless this rule can draw such a batch."""
        _whole_batch_size(batch_size)
        if n is not None and n < 1:
            raise InputError(f"n={n} samples: there is nothing to draw from")

    def check_all(self, batch_sizes: Sequence[int], n: int | None) -> None:
        """Raise InputError unless this rule can draw all of them, and each is there once."""
        for b in batch_sizes:
            self.check(b, n)
        if not len(batch_sizes) or len(set(batch_sizes)) < len(batch_sizes):
            raise InputError(f"batch_sizes={list(batch_sizes)}: give at least one, each once")

    def __str__(self) -> str:
        return repr(self)


@dataclass(frozen=True)
class WithReplacement(Sampling):
    """Every index of every batch is drawn independently: kappa = 1/b, and b may exceed n.

    >>> WithReplacement().variance_factor(4, 10)
    0.25
    """

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        self.check(batch_size, n)
        return 1 / batch_size

    def _draw(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        while True:
            yield rng.integers(n, size=batch_size)


@dataclass(frozen=True)
class _Subset(Sampling):
    """Batches without repetition inside: each one alone is a uniform subset of size b."""

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        self.check(batch_size, n)
        if n is None:
            return 1 / batch_size
        return (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0

    def check(self, batch_size: int, n: int | None) -> None:
        super().check(batch_size, n)
        if n is not None and batch_size > n:
            raise InputError(
                f"batch_size={batch_size} but only n={n} samples; {self!r} needs batch_size <= n. "
                "Shrink the batch, or draw with sampling.WithReplacement()."
            )


@dataclass(frozen=True)
class WithoutReplacement(_Subset):
    """Every batch is a fresh uniform subset, independent of the others: kappa = (n - b) / (b (n - 1)).

    >>> WithoutReplacement().variance_factor(4, 10), WithoutReplacement().variance_factor(10, 10)
    (0.16666666666666666, 0.0)
    """

    def _draw(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        while True:
            yield rng.choice(n, size=batch_size, replace=False, shuffle=False)


@dataclass(frozen=True)
class ReshuffledEpochs(_Subset):
    """A new random order per epoch, cut into consecutive batches; what is left over (n mod b) is dropped.

    Seen alone, at weights that do not depend on the order, a batch is a uniform subset, so kappa is that of
    `WithoutReplacement`. Successive batches of an epoch are anticorrelated, and in training the weights have seen
    the earlier batches of the epoch: there kappa no longer gives the variance.
    """

    def _draw(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        while True:
            yield from _cut(rng.permutation(n), batch_size)


@dataclass(frozen=True)
class CyclicEpochs(_Subset):
    """One random order, drawn once, cut into batches and repeated every epoch; n mod b samples are never used.

    kappa is the variance over the draw of the order, at weights that do not depend on it. Given the order,
    training is deterministic and its variance is 0.
    """

    def _draw(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        order = rng.permutation(n)
        while True:
            yield from _cut(order, batch_size)


@dataclass(frozen=True)
class Online(Sampling):
    """Fresh samples from an unlimited population at every step: kappa = 1/b, Sigma that of the population.

    A data set in hand is then itself a sample: `measure` returns unbiased estimates for the population, with
    standard errors. Batches can only be drawn from a population, so `batches` refuses.

    >>> Online().variance_factor(4, None)
    0.25
    """

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        self.check(batch_size, n)
        return 1 / batch_size

    def batches(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        raise InputError(
            f"Online() draws fresh samples from a population, not from the n={n} samples of a data set; "
            "use WithReplacement() to redraw from the data"
        )


SCHEMES: dict[str, type[Sampling]] = {
    "with-replacement": WithReplacement,
    "without-replacement": WithoutReplacement,
    "reshuffled-epochs": ReshuffledEpochs,
    "cyclic-epochs": CyclicEpochs,
    "online": Online,
}


def _cut(order: Indices, batch_size: int) -> Iterator[Indices]:
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _whole_batch_size(batch_size: int) -> None:
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: a batch is a whole number of samples, at least 1")
