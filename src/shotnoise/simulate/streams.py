"""Random numbers by run: what run r draws depends on (seed, r) and its own settings, on nothing else.

    SeedSequence(seed, spawn_key=(purpose, r, *cell))       cell: batch size and position of the update rule

so that run 17 sees the same batches alone, in a crowd, on any worker, after a stop. With common random numbers the
cell is left out: run r then draws alike for every batch size and every rule.

NumPy takes longer to start one such generator than the kernel takes for a hundred steps of a small network. Here its
hash of seed and key (M. E. O'Neill's seed_seq_fe; NumPy's, with zeros between a short seed and the key) is computed for
all runs at once, and the generators are handed the words that they would have asked for.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

BATCHES, INITIAL_WEIGHTS, REDRAWS = 0, 1, 2  # what the numbers are for

POOL = 4  # words in which the hash gathers what it is given
Words = NDArray[np.uint32]


def run_streams(seed: int, runs: range, purpose: int, cell: tuple[int, ...] = ()) -> list[np.random.Generator]:
    """The generators of some runs for one purpose.

    >>> one, same = run_streams(0, range(17, 18), BATCHES)[0], run_streams(0, range(20), BATCHES)[17]
    >>> bool(one.integers(100) == same.integers(100))
    True
    """
    found = np.empty((len(runs), 4), np.uint64)
    for k, state in enumerate(_states(seed, runs, purpose, cell)):
        found[:, k] = state
    # Anything with ISeedSequence is taken, which the annotations of NumPy do not say.
    sequences: Any = (_Known(words, seed, (purpose, r, *cell)) for r, words in zip(runs, found, strict=True))
    return [np.random.Generator(np.random.PCG64(sequence)) for sequence in sequences]


class _Known(ISpawnableSeedSequence):
    """A seed sequence whose first four words are known; NumPy's own answers what else it may be asked."""

    def __init__(self, words: NDArray[np.uint64], seed: int, key: tuple[int, ...]) -> None:
        self.words, self.seed, self.key = words, seed, key

    @cached_property
    def itself(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=self.key)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        known = n_words == len(self.words) and dtype is np.uint64
        return self.words if known else self.itself.generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> Any:
        return self.itself.spawn(n_children)


def _states(seed: int, runs: range, purpose: int, cell: tuple[int, ...]) -> Iterator[NDArray[np.uint64]]:
    """Word by word what SeedSequence(seed, spawn_key=(purpose, r, *cell)).generate_state(4, np.uint64) gives run r."""
    own = _words(seed)
    fixed = [_words(k) for k in cell]
    entropy = own + [0] * (POOL - len(own)) + _words(purpose)
    numbers = np.arange(runs.start, runs.stop, dtype=np.uint64).astype(np.uint32)
    mixed = _mixed([*entropy, numbers, *(word for words in fixed for word in words)], len(runs))
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    halves = [hashed(mixed[k % POOL]).astype(np.uint64) for k in range(8)]
    for low, high in zip(halves[::2], halves[1::2], strict=True):
        yield low | high << np.uint64(32)


def _mixed(entropy: list[int | Words], runs: int) -> list[Words]:
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    words = [np.full(runs, word, np.uint32) if isinstance(word, int) else word for word in entropy]
    pool = [hashed(word) for word in words[:POOL]]
    for source in range(POOL):
        for to in range(POOL):
            if source != to:
                pool[to] = _mix(pool[to], hashed(pool[source]))
    for word in words[POOL:]:
        pool = [_mix(old, hashed(word)) for old in pool]
    return pool


class _Hash:
    """A multiplicative hash whose factor changes with every use."""

    def __init__(self, start: int, factor: int) -> None:
        self.constant, self.factor = start, factor

    def __call__(self, words: Words) -> Words:
        found = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor % 2**32
        found = found * np.uint32(self.constant)
        return found ^ found >> np.uint32(16)


def _mix(x: Words, y: Words) -> Words:
    found = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
    return found ^ found >> np.uint32(16)


def _words(number: int) -> list[int]:
    """In words of 32 bits, the lowest first."""
    words = [number % 2**32]
    while number := number >> 32:
        words.append(number % 2**32)
    return words
