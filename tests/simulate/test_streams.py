"""Streams made for many runs at once are those that NumPy makes one by one, bit for bit."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shotnoise.simulate.streams import _mixed, _states, run_streams

KEYS = st.lists(st.integers(0, 2**70), max_size=3).map(tuple)


def sequence(seed, run, purpose, cell):
    return np.random.SeedSequence(seed, spawn_key=(purpose, run, *cell))


@given(st.integers(0, 2**200), st.integers(0, 2**32 - 5), st.integers(0, 2**40), KEYS)
def test_words_are_those_of_the_seed_sequence(seed, first, purpose, cell):
    runs = range(first, first + 4)
    found = np.stack(list(_states(seed, runs, purpose, cell)), 1)
    true = [sequence(seed, r, purpose, cell).generate_state(4, np.uint64) for r in runs]
    assert np.array_equal(found, true)


def test_without_the_zeros_after_a_short_seed_the_words_are_others():
    """The broken twin: as NumPy did before spawn keys could collide with seeds."""
    words = [7, 1, np.arange(3, dtype=np.uint32), 5]
    padded = [7, 0, 0, 0, *words[1:]]
    assert np.array_equal(_mixed(padded, 3)[0], [sequence(7, r, 1, (5,)).pool[0] for r in range(3)])
    assert not np.isin(_mixed(words, 3)[0], _mixed(padded, 3)[0]).any()


@pytest.mark.parametrize("cell", [(), (5, 2)])
def test_generators_draw_alike_and_can_spawn_and_travel(cell):
    for run, rng in enumerate(run_streams(3, range(4), 1, cell)):
        known = np.random.default_rng(sequence(3, run, 1, cell))
        assert np.array_equal(rng.standard_normal(5), known.standard_normal(5))
        assert np.array_equal(pickle.loads(pickle.dumps(rng)).random(5), pickle.loads(pickle.dumps(known)).random(5))
        for mine, theirs in zip(rng.spawn(2) + rng.spawn(1), known.spawn(2) + known.spawn(1), strict=True):
            assert np.array_equal(mine.integers(2**60, size=4), theirs.integers(2**60, size=4))


def test_other_runs_purposes_and_cells_draw_otherwise():
    streams = [*run_streams(3, range(4), 1), *run_streams(3, range(4), 2), *run_streams(3, range(4), 1, (0,))]
    assert len({int(rng.integers(2**62)) for rng in streams}) == 12
