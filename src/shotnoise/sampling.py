"""How minibatches are drawn, and what that does to the variance of their mean.

For per-sample gradients g_1 .. g_n with covariance Sigma (divisor n), the mean of a batch of b has variance

    kappa(b, n) Tr Sigma,    kappa = 1/b  drawn with replacement,   (n - b) / (b (n - 1))  without,

the second vanishing at b = n, where the batch is the whole data set (and 0 by convention for n = 1).

Batches are drawn for many runs at once, each from its own stream of random numbers: what one run gets depends on its
stream alone, not on the other runs and not on how many steps are drawn together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError

try:
    from shotnoise import _native
except ImportError:  # installed where there was no compiler
    _native = None  # type: ignore[assignment]

Indices = NDArray[np.int64]
Draws = Callable[[int], Indices]  # steps -> the next batches of every run, (runs, steps, batch_size)
Streams = Sequence[np.random.Generator]
AHEAD = 64  # batches that `batches` draws at a time
SORTED_INSERTION = 100  # samples in a batch up to which drawing them side by side for many batches is the faster way
COMPILED_BELOW = 2**31  # samples, for the kernel's whole numbers
TILE = 8192  # batches drawn side by side: what stays in a core's cache


@dataclass(frozen=True)
class Sampling:
    """A rule for drawing batches of `batch_size` out of n samples; use one of its subclasses."""

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        """kappa: the variance of a batch mean in units of Tr Sigma (divisor n), at weights fixed beforehand.

        n is the number of samples, None for an unlimited population. Raises InputError for a batch that
        the rule cannot draw.
        """
        raise NotImplementedError

    def third_moment_factor(self, batch_size: int, n: int | None) -> float:
        """The third central moment of a batch mean in units of that of one sample, at weights fixed beforehand.

        1/b^2 with replacement or from an unlimited population, (n - b) (n - 2 b) / (b^2 (n - 1) (n - 2)) without
        replacement: negative from b > n/2 on, where what a batch leaves out is the smaller half.
        """
        self.check(batch_size, n)
        return 1 / batch_size**2

    def batches(self, batch_size: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
        """Endless batches of sample indices, each an int64 array of shape (batch_size,).

        Those that `draws` gives to a run with this stream. The generator is read ahead of the batch in hand.
        """
        take = self.draws(batch_size, n, [rng])
        return (batch for _ in iter(int, 1) for batch in take(AHEAD)[0])

    def draws(self, batch_size: int, n: int, streams: Streams, width: int | None = None) -> Draws:
        """A function that gives the next batches of every run, one stream per run.

        width: draw so many samples at each step and use the first batch_size of them, so that runs with the same
        streams and several batch sizes share their samples. Raises InputError for a batch that cannot be drawn.
        """
        width = batch_size if width is None else width
        self.check(batch_size, n)
        self.check(width, n)
        if width < batch_size:
            raise InputError(f"width={width} samples per step are too few for batch_size={batch_size}")
        return self._draws(batch_size, n, streams, width)

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
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

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
        if _native is not None and n < COMPILED_BELOW:
            return _Compiled(batch_size, n, streams, width, replace=True)

        def take(steps: int) -> Indices:
            drawn = np.empty((len(streams), steps, width), np.int64)
            for own, rng in zip(drawn, streams, strict=True):
                own[:] = rng.integers(n, size=(steps, width))
            return drawn[:, :, :batch_size]

        return take


@dataclass(frozen=True)
class _Subset(Sampling):
    """Batches without repetition inside: each one alone is a uniform subset of size b."""

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        self.check(batch_size, n)
        if n is None:
            return 1 / batch_size
        return (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0

    def third_moment_factor(self, batch_size: int, n: int | None) -> float:
        if n is None:
            return super().third_moment_factor(batch_size, n)
        if n < 3:  # two values lie symmetrically about their mean
            return 0.0
        return self.variance_factor(batch_size, n) * (n - 2 * batch_size) / (batch_size * (n - 2))

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

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
        if _native is not None and n < COMPILED_BELOW and width <= SORTED_INSERTION:
            return _Compiled(batch_size, n, streams, width, replace=False)

        def take(steps: int) -> Indices:
            if width > SORTED_INSERTION:
                drawn = [[rng.choice(n, size=width, replace=False) for _ in range(steps)] for rng in streams]
                return np.array(drawn, np.int64).reshape(len(streams), steps, width)[:, :, :batch_size]
            uniform = np.empty((len(streams), steps, width))
            for own, rng in zip(uniform, streams, strict=True):
                rng.random(out=own)
            return distinct(uniform.reshape(-1, width), n).reshape(uniform.shape)[:, :, :batch_size]

        return take


@dataclass(frozen=True)
class ReshuffledEpochs(_Subset):
    """A new random order per epoch, cut into consecutive batches; what is left over (n mod b) is dropped.

    Seen alone, at weights that do not depend on the order, a batch is a uniform subset, so kappa is that of
    `WithoutReplacement`. Successive batches of an epoch are anticorrelated, and in training the weights have seen
    the earlier batches of the epoch: there kappa no longer gives the variance.
    """

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
        return _Orders(batch_size, n, [partial(rng.permutation, n) for rng in streams])


@dataclass(frozen=True)
class CyclicEpochs(_Subset):
    """One random order, drawn once, cut into batches and repeated every epoch; n mod b samples are never used.

    kappa is the variance over the draw of the order, at weights that do not depend on it. Given the order,
    training is deterministic and its variance is 0.
    """

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
        orders = [rng.permutation(n) for rng in streams]
        return _Orders(batch_size, n, [partial(np.asarray, order) for order in orders])


@dataclass(frozen=True)
class Online(Sampling):
    """Fresh samples from an unlimited population at every step: kappa = 1/b, Sigma that of the population.

    A data set in hand is then itself a sample: `measure` returns unbiased estimates for the population, with
    standard errors. Batches can only be drawn from a population, so `batches` and `draws` refuse.

    >>> Online().variance_factor(4, None)
    0.25
    """

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        self.check(batch_size, n)
        return 1 / batch_size

    def _draws(self, batch_size: int, n: int, streams: Streams, width: int) -> Draws:
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


class _Compiled:
    """The batches that NumPy would draw, number by number, without its price for each call and each array."""

    def __init__(self, batch_size: int, n: int, streams: Streams, width: int, replace: bool) -> None:
        self.batch_size, self.n, self.width, self.replace = batch_size, n, width, replace
        self.streams = list(streams)  # own the memory that the capsules point to
        self.capsules = [rng.bit_generator.capsule for rng in streams]

    def __call__(self, steps: int) -> Indices:
        drawn = np.empty((len(self.streams), steps, self.width), np.int64)
        _native.draw(self.capsules, self.n, self.replace, drawn)
        return drawn[:, :, : self.batch_size]


def distinct(uniform: NDArray[np.float64], n: int) -> Indices:
    """Ordered samples without repetition from uniform numbers in [0, 1): (batches, b) of either.

    The j-th of a batch is drawn from the n - j samples that are left, counted past those taken before, which are kept
    sorted: O(b^2) operations, each on many batches at once, and nothing of size n. Every ordered sample has
    the same probability up to n 2^-53.

    >>> distinct(np.array([[0.0, 0.0, 0.0], [0.99, 0.5, 0.0]]), 4).tolist()
    [[0, 1, 2], [3, 1, 0]]
    """
    batches, b = uniform.shape
    small = np.uint16 if n < 2**16 else np.uint32 if n < 2**32 else np.uint64
    drawn = np.empty((b, batches), small)
    for start in range(0, batches, TILE):
        tile = slice(start, start + TILE)
        taken = drawn[:, tile]
        np.multiply(uniform[tile].T, np.arange(n, n - b, -1)[:, None], out=taken, casting="unsafe")
        _count_past(taken)
    return drawn.T.astype(np.int64)


def _count_past(ranks: NDArray[Any]) -> None:
    """From ranks among those left to samples, in place; ranks (b, batches)."""
    before = np.empty_like(ranks)  # row i: the i-th smallest sample taken so far
    spare = np.empty_like(ranks[0])
    for j, rank in enumerate(ranks):
        for smaller in before[:j]:
            rank += rank >= smaller
        larger = rank.copy()
        for smaller in before[:j]:
            np.minimum(smaller, larger, out=spare)
            np.maximum(smaller, larger, out=larger)
            smaller[:] = spare
        before[j] = larger


class _Orders:
    """Batches cut from one order after the other of every run."""

    def __init__(self, batch_size: int, n: int, orders: Sequence[Callable[[], Indices]]) -> None:
        self.batch_size, self.per_epoch = batch_size, n // batch_size
        self.orders, self.used = orders, self.per_epoch
        self.current = np.empty((len(orders), self.per_epoch, batch_size), np.int64)

    def __call__(self, steps: int) -> Indices:
        drawn = np.empty((len(self.orders), steps, self.batch_size), np.int64)
        done = 0
        while done < steps:
            if self.used == self.per_epoch:
                self._next_epoch()
            some = min(steps - done, self.per_epoch - self.used)
            drawn[:, done : done + some] = self.current[:, self.used : self.used + some]
            done, self.used = done + some, self.used + some
        return drawn

    def _next_epoch(self) -> None:
        kept = self.per_epoch * self.batch_size
        for own, order in zip(self.current, self.orders, strict=True):
            own[:] = order()[:kept].reshape(own.shape)
        self.used = 0


def _whole_batch_size(batch_size: int) -> None:
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: a batch is a whole number of samples, at least 1")
