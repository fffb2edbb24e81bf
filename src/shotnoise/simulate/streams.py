"""Random numbers by run: what run r draws depends on (seed, r) and its own settings, on nothing else.

    SeedSequence(seed, spawn_key=(purpose, r, *cell))       cell: batch size and position of the update rule

so that run 17 sees the same batches alone, in a crowd, on any worker, after a stop. With common random numbers the
cell is left out: run r then draws alike for every batch size and every rule.
"""

import numpy as np

BATCHES, INITIAL_WEIGHTS, REDRAWS = 0, 1, 2  # what the numbers are for


def run_stream(seed: int, run: int, purpose: int, cell: tuple[int, ...] = ()) -> np.random.Generator:
    """The generator of one run for one purpose.

    >>> bool(run_stream(0, 17, BATCHES).integers(100) == run_stream(0, 17, BATCHES).integers(100))
    True
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, run, *cell)))
