"""Batches of many runs drawn together: each run's own, whatever is drawn beside it, and all equally likely.

Every chi-square test rejects a right sampler with probability ALARM = 1e-5, at fixed seeds; there are about 25 of them,
and each is shown to reject a sampler that is broken on purpose.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, islice, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shotnoise import sampling
from shotnoise.errors import InputError
from shotnoise.sampling import (
    CyclicEpochs,
    ReshuffledEpochs,
    Sampling,
    WithoutReplacement,
    WithReplacement,
    distinct,
)

ALARM = 1e-5
FRESH = [WithReplacement(), WithoutReplacement()]
EPOCHS = [ReshuffledEpochs(), CyclicEpochs()]
SCHEMES = FRESH + EPOCHS
LARGE = sampling.SORTED_INSERTION + 1  # a batch that is drawn by rng.choice
SIZES = [(10, 3), (7, 7), (1, 1), (200, LARGE)]  # n, b
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
by_size = pytest.mark.parametrize(("n", "b"), SIZES)


def streams(seeds: Iterable[int]) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, 99]) for seed in seeds]


def drawn(
    scheme: Sampling, b: int, n: int, seeds: Sequence[int], parts: Iterable[int], width: int | None = None
) -> np.ndarray:
    """Batches (runs, steps, b), so many steps at a time."""
    take = scheme.draws(b, n, streams(seeds), width)
    return np.concatenate([take(steps) for steps in parts], axis=1)


# A run's batches are its own.


def keeps_to_itself(scheme: Sampling, b: int, n: int, seeds: Sequence[int], parts: Sequence[int]) -> bool:
    """Are a run's batches the same alone, in a crowd, in other company, and however many steps are drawn together?"""
    crowd = drawn(scheme, b, n, seeds, parts)
    others = drawn(scheme, b, n, seeds[::-1], [1] * sum(parts))[::-1]
    alone = np.concatenate([drawn(scheme, b, n, [seed], [sum(parts)]) for seed in seeds])
    one_by_one = [list(islice(scheme.batches(b, n, rng), sum(parts))) for rng in streams(seeds)]
    return all(np.array_equal(crowd, found) for found in (others, alone, np.array(one_by_one)))


@by_scheme
@by_size
@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(sum), st.permutations([0, 1, 2, 3]))
def test_a_run_draws_alike_in_any_crowd_and_any_blocks(scheme, n, b, parts, seeds):
    assert keeps_to_itself(scheme, b, n, seeds, parts)


@by_scheme
@pytest.mark.parametrize("b", [2, LARGE])
def test_a_run_draws_alike_beyond_what_is_drawn_ahead(scheme, b):
    """`batches` draws 64 at a time, and `distinct` works on 8192 at a time."""
    steps = 2 * sampling.AHEAD + 7
    assert keeps_to_itself(scheme, b, 2 * LARGE, [5, 6], [1, sampling.AHEAD, steps - sampling.AHEAD - 1])
    if b == 2:
        runs = range(-(-sampling.TILE // steps) + 2)
        crowd = drawn(scheme, b, 9, runs, [steps])
        assert all(np.array_equal(crowd[r], drawn(scheme, b, 9, [r], [steps])[0]) for r in (0, runs[-2], runs[-1]))


class FirstStream(WithReplacement):
    """Broken on purpose: all runs draw from the stream of the first one."""

    def _draws(self, batch_size, n, streams, width):
        return lambda steps: streams[0].integers(n, size=(len(streams), steps, batch_size))


class StepsLast(WithReplacement):
    """Broken on purpose: what a step gets depends on how many are drawn together."""

    def _draws(self, batch_size, n, streams, width):
        return lambda steps: np.stack([rng.integers(n, size=(batch_size, steps)).T for rng in streams])


class FreshOrders(CyclicEpochs):
    """Broken on purpose: every call begins a new epoch."""

    def _draws(self, batch_size, n, streams, width):
        return lambda steps: ReshuffledEpochs()._draws(batch_size, n, streams, width)(steps)


@pytest.mark.parametrize("broken", [FirstStream(), StepsLast(), FreshOrders()])
def test_the_comparison_rejects_draws_that_depend_on_others(broken):
    assert not keeps_to_itself(broken, 3, 10, [0, 1, 2, 3], [2, 5])


@by_scheme
@by_size
def test_batches_of_all_runs_are_indices(scheme, n, b):
    found = drawn(scheme, b, n, range(5), [0, 30])
    assert found.shape == (5, 30, b) and found.dtype == np.int64
    assert found.min() >= 0 and found.max() < n
    if scheme != WithReplacement():
        assert (np.diff(np.sort(found, -1), axis=-1) > 0).all()


# Several batch sizes share their samples.


@pytest.mark.parametrize("scheme", FRESH, ids=str)
@pytest.mark.parametrize(
    ("n", "b", "width"), [(10, 1, 10), (10, 3, 7), (200, 50, 60), (200, 2, LARGE), (150, 120, 130)]
)
@settings(max_examples=20)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_a_smaller_batch_is_the_beginning_of_a_larger_one(scheme, n, b, width, parts):
    small, large = (drawn(scheme, size, n, range(3), parts, width) for size in (b, width))
    assert np.array_equal(small, large[:, :, :b])
    assert np.array_equal(large, drawn(scheme, width, n, range(3), [sum(parts)]))


@pytest.mark.parametrize("scheme", EPOCHS, ids=str)
@pytest.mark.parametrize(("b", "width"), [(1, 4), (2, 3), (3, 5), (5, 10)])
def test_epochs_of_several_batch_sizes_follow_the_same_orders(scheme, b, width):
    """Each batch size goes through the order at its own pace."""
    n, epochs = 10, 3
    small, large = (
        drawn(scheme, size, n, range(4), [epochs * (n // size)], width).reshape(4, epochs, -1) for size in (b, width)
    )
    common = min(small.shape[2], large.shape[2])
    assert np.array_equal(small[..., :common], large[..., :common])


@by_scheme
def test_a_width_must_hold_the_batch_and_be_drawable(scheme):
    with pytest.raises(InputError, match="width=2 samples per step are too few for batch_size=3"):
        scheme.draws(3, 10, streams([0]), width=2)
    if scheme == WithReplacement():
        assert drawn(scheme, 3, 10, [0], [2], width=11).shape == (1, 2, 3)
    else:
        with pytest.raises(InputError, match="batch_size=11 but only n=10"):
            scheme.draws(3, 10, streams([0]), width=11)


# All batches are equally likely, and independent of those before.


def p_value(keys: Iterable, cells: Iterable) -> float:
    """Of: all `cells` are equally likely, and there are no other keys."""
    found, cells = Counter(keys), list(cells)
    counts = [found.pop(cell, 0) for cell in cells]
    assert sum(counts) / len(cells) >= 20, "too few draws for the approximation by chi-square"
    return 0.0 if found else float(stats.chisquare(counts).pvalue)


def rows(array: np.ndarray) -> Iterable[tuple]:
    return map(tuple, array.reshape(-1, array.shape[-1]).tolist())


def pairs_of(cells: Iterable[tuple]) -> list[tuple]:
    return [first + second for first, second in product(list(cells), repeat=2)]


def batches_of(scheme: Sampling, n: int, b: int) -> Iterable[tuple]:
    return product(range(n), repeat=b) if isinstance(scheme, WithReplacement) else permutations(range(n), b)


def ordered_p(scheme: Sampling, n: int, b: int, width: int | None = None) -> float:
    """Are all ordered samples equally likely? First steps of many runs and later steps together."""
    found = drawn(scheme, b, n, range(200), [40], width)
    return p_value(rows(found), batches_of(scheme, n, b))


def subset_p(scheme: Sampling, n: int, b: int) -> float:
    found = drawn(scheme, b, n, range(100), [40])
    return p_value(rows(np.sort(found, -1)), combinations(range(n), b))


BRANCHES = {"sorted insertion": sampling.SORTED_INSERTION, "rng.choice": 0}


@pytest.fixture(params=BRANCHES.values(), ids=BRANCHES)
def branch(request, monkeypatch):
    """Small batches drawn by each of the two ways in turn."""
    monkeypatch.setattr(sampling, "SORTED_INSERTION", request.param)


@pytest.mark.parametrize(("n", "b"), [(5, 1), (5, 2), (6, 3), (6, 5)])
def test_all_subsets_are_equally_likely(branch, n, b):
    assert subset_p(WithoutReplacement(), n, b) > ALARM


@pytest.mark.parametrize(("n", "b", "width"), [(5, 3, 3), (4, 4, 4), (6, 2, 5), (6, 3, 6)])
def test_all_ordered_samples_are_equally_likely(branch, n, b, width):
    """The order counts: with a `width` the first of the samples are used alone."""
    assert ordered_p(WithoutReplacement(), n, b, width) > ALARM


def test_all_tuples_are_equally_likely_with_replacement():
    assert ordered_p(WithReplacement(), 4, 3) > ALARM
    assert ordered_p(WithReplacement(), 4, 2, width=5) > ALARM


def test_large_batches_leave_out_and_begin_with_any_sample():
    """Batches too large to count their orders: n = 102, b = 101, by the sample left out, the first and the last."""
    n = LARGE + 1
    found = drawn(WithoutReplacement(), LARGE, n, range(50), [100])
    left_out = n * (n - 1) // 2 - found.sum(-1)
    for samples in (left_out, found[..., 0], found[..., -1]):
        assert p_value(samples.ravel().tolist(), range(n)) > ALARM


def samples_of_ranks(uniform: np.ndarray, n: int, place: Callable[[int, list[int]], int]) -> np.ndarray:
    found = []
    for row in uniform:
        taken: list[int] = []
        for j, u in enumerate(row):
            taken.append(place(int(u * (n - j)), taken))
        found.append(taken)
    return np.array(found)


class Slow(WithoutReplacement):
    """Ranks turned into samples by a slow function, to break it on purpose."""

    def place(self, rank, taken, n):
        return [i for i in range(n) if i not in taken][rank]

    def _draws(self, batch_size, n, streams, width):
        def take(steps):
            uniform = np.stack([rng.random((steps, width)) for rng in streams])
            found = samples_of_ranks(uniform.reshape(-1, width), n, lambda rank, taken: self.place(rank, taken, n))
            return found.reshape(uniform.shape)[..., :batch_size]

        return take


class Shifted(Slow):
    """Broken on purpose: does not count past those taken; one that is taken already moves to the next free one."""

    def place(self, rank, taken, n):
        while rank in taken:
            rank = (rank + 1) % n
        return rank


class Unsorted(Slow):
    """Broken on purpose: counts past those taken as they were drawn, not from the smallest to the largest."""

    def place(self, rank, taken, n):
        for other in taken:
            rank += rank >= other
        return rank


class Floyd(WithoutReplacement):
    """Floyd's subset, left in the order in which it was found: the subsets are uniform, their beginnings are not."""

    def _draws(self, batch_size, n, streams, width):
        def one(rng):
            return rng.choice(n, size=width, replace=False, shuffle=False)[:batch_size]

        return lambda steps: np.array([[one(rng) for _ in range(steps)] for rng in streams])


def test_the_chi_square_tests_reject_broken_samplers():
    assert subset_p(Slow(), 6, 3) > ALARM and ordered_p(Slow(), 5, 3) > ALARM
    assert subset_p(Shifted(), 6, 3) < ALARM and ordered_p(Shifted(), 5, 3) < ALARM
    assert ordered_p(Unsorted(), 5, 3) < ALARM
    assert subset_p(Floyd(), 6, 3) > ALARM
    assert ordered_p(Floyd(), 6, 3) < ALARM and ordered_p(Floyd(), 6, 2, width=5) < ALARM


def joint_p(scheme: Sampling, n: int, b: int) -> float:
    """Are all pairs of successive batches (of all runs) equally likely?"""
    found = drawn(scheme, b, n, range(150), [40])
    return p_value(rows(found.reshape(150, 20, 2 * b)), pairs_of(batches_of(scheme, n, b)))


class Sticky(WithoutReplacement):
    """Broken on purpose: one batch in ten is the one before once more."""

    def _draws(self, batch_size, n, streams, width):
        fresh = super()._draws(batch_size, n, streams, width)

        def take(steps):
            found = fresh(steps)
            for own, rng in zip(found, streams, strict=True):
                for t in range(1, steps):
                    if rng.random() < 0.1:
                        own[t] = own[t - 1]
            return found

        return take


def test_successive_batches_are_independent(branch):
    assert joint_p(WithoutReplacement(), 3, 2) > ALARM
    assert joint_p(WithoutReplacement(), 4, 1) > ALARM
    assert joint_p(WithReplacement(), 3, 2) > ALARM


def test_the_joint_test_rejects_batches_that_are_repeated():
    assert joint_p(Sticky(), 3, 2) < ALARM
    assert ordered_p(Sticky(), 3, 2) > ALARM, "each alone is as it should be"


def test_batches_of_different_runs_are_independent(branch):
    """The same step of neighbouring runs, pairs of runs as the sample."""
    for scheme in FRESH:
        found = drawn(scheme, 2, 3, range(300), [20])
        pairs = np.concatenate([found[0::2], found[1::2]], -1)
        assert p_value(rows(pairs), pairs_of(batches_of(scheme, 3, 2))) > ALARM


# Epochs.


def orders(scheme: Sampling, n: int, runs: int, epochs: int) -> np.ndarray:
    """(runs, epochs, n), by batches of one sample."""
    return drawn(scheme, 1, n, range(runs), [epochs * n]).reshape(runs, epochs, n)


@by_scheme
def test_an_epoch_is_a_permutation(scheme):
    found = np.sort(orders(scheme, 6, 20, 4), -1)
    assert (found == np.arange(6)).all() == (scheme in EPOCHS)


def test_all_orders_are_equally_likely_and_epochs_independent():
    found = orders(ReshuffledEpochs(), 4, 60, 20)
    assert p_value(rows(found), permutations(range(4))) > ALARM
    assert p_value(rows(orders(CyclicEpochs(), 4, 1000, 1)), permutations(range(4))) > ALARM
    two = orders(ReshuffledEpochs(), 3, 100, 40).reshape(100, 20, 6)
    assert p_value(rows(two), pairs_of(permutations(range(3)))) > ALARM


class SwappedWithAny(ReshuffledEpochs):
    """Broken on purpose: every sample changes places with any other; n^n ways for n! orders."""

    def _draws(self, batch_size, n, streams, width):
        def order(rng):
            found = np.arange(n)
            for i, j in enumerate(rng.integers(n, size=n)):
                found[[i, j]] = found[[j, i]]
            return found

        return sampling._Orders(batch_size, n, [lambda rng=rng: order(rng) for rng in streams])


class ThereAndBack(ReshuffledEpochs):
    """Broken on purpose: every second epoch is the one before, backwards."""

    def _draws(self, batch_size, n, streams, width):
        def both(rng):
            while True:
                order = rng.permutation(n)
                yield from (order, order[::-1])

        return sampling._Orders(batch_size, n, [both(rng).__next__ for rng in streams])


def test_the_tests_of_epochs_reject_broken_orders():
    assert p_value(rows(orders(SwappedWithAny(), 4, 60, 20)), permutations(range(4))) < ALARM
    back = orders(ThereAndBack(), 3, 100, 40)
    assert p_value(rows(back[:, ::2]), permutations(range(3))) > ALARM
    assert p_value(rows(back.reshape(100, 20, 6)), pairs_of(permutations(range(3)))) < ALARM


def test_what_an_epoch_leaves_over_is_any_sample():
    """n = 5 in batches of 2: one sample is left out of every epoch, and batches do not reach into the next one."""
    found = drawn(ReshuffledEpochs(), 2, 5, range(50), [80]).reshape(50, 40, 4)
    assert (np.diff(np.sort(found, -1), axis=-1) > 0).all()
    assert p_value((10 - found.sum(-1)).ravel().tolist(), range(5)) > ALARM


@pytest.mark.parametrize(("n", "b"), [(6, 2), (7, 3), (5, 5), (3, 1)])
def test_cyclic_epochs_repeat_the_first_and_reshuffled_ones_do_not(n, b):
    per_epoch = n // b
    for scheme in EPOCHS:
        found = drawn(scheme, b, n, range(20), [1, 4 * per_epoch - 1]).reshape(20, 4, per_epoch * b)
        assert (found == found[:, :1]).all() == (scheme == CyclicEpochs())
        assert len({tuple(order) for order in found[:, 0].tolist()}) > 1


# From uniform numbers to samples.


def from_a_list(uniform: np.ndarray, n: int) -> list[list[int]]:
    """The j-th sample is taken out of a list of those that are left."""
    found = []
    for row in uniform.tolist():
        left = list(range(n))
        found.append([left.pop(int(u * len(left))) for u in row])
    return found


def counted_past(uniform: np.ndarray, n: int) -> list[list[int]]:
    """The same in whole numbers of any size, without a list of all samples."""

    def place(rank, taken):
        for other in sorted(taken):
            rank += rank >= other
        return rank

    return samples_of_ranks(uniform, n, place).tolist()


NEARLY_ONE = 1 - 2.0**-53
UNIFORM = st.one_of(st.sampled_from([0.0, NEARLY_ONE, 0.5]), st.floats(0, NEARLY_ONE))


@given(st.data(), st.integers(1, 30))
def test_samples_are_those_taken_out_of_a_list(data, n):
    b = data.draw(st.integers(1, n))
    uniform = np.array(data.draw(st.lists(st.lists(UNIFORM, min_size=b, max_size=b), min_size=1, max_size=4)))
    found = distinct(uniform, n)
    assert found.dtype == np.int64 and found.tolist() == from_a_list(uniform, n) == counted_past(uniform, n)
    assert b != n or (np.sort(found, 1) == np.arange(n)).all()


@pytest.mark.parametrize("n", [2**16 - 2, 2**16 - 1, 2**16, 2**16 + 1, 70_000, 2**32 - 1, 2**32, 2**32 + 1, 2**40])
def test_small_whole_numbers_are_wide_enough(n):
    """Where the samples change from 16 to 32 to 64 bits, at both ends of the range and in between."""
    uniform = np.random.default_rng(n).random((30, 6))
    ends = np.array(list(product([0.0, NEARLY_ONE], repeat=6)))
    near = np.clip(1 - np.arange(1, 7) / n + np.random.default_rng(0).choice([-1, 0, 1], (200, 6)) / n, 0, NEARLY_ONE)
    for numbers in (uniform, ends, near):
        found = distinct(numbers, n)
        assert found.tolist() == counted_past(numbers, n)
        assert found.min() >= 0 and found.max() < n and (np.diff(np.sort(found, 1), axis=1) > 0).all()
    assert distinct(np.full((1, 3), NEARLY_ONE), n).tolist() == [[n - 1, n - 2, n - 3]]
    if n < 10**5:
        assert distinct(uniform[:5], n).tolist() == from_a_list(uniform[:5], n)


def test_a_batch_does_not_depend_on_those_beside_it():
    uniform = np.random.default_rng(0).random((sampling.TILE + 3, 4))
    found = distinct(uniform, 1000)
    for i in (0, sampling.TILE - 1, sampling.TILE, sampling.TILE + 2):
        assert np.array_equal(found[i], distinct(uniform[i : i + 1], 1000)[0])
    assert distinct(np.empty((0, 4)), 10).shape == (0, 4)
    assert distinct(np.full((2, 1), NEARLY_ONE), 2**20).tolist() == [[2**20 - 1]] * 2


def test_the_comparison_rejects_the_broken_ways():
    uniform = np.random.default_rng(1).random((200, 3))
    for broken in (Shifted(), Unsorted()):
        found = samples_of_ranks(uniform, 5, lambda rank, taken, broken=broken: broken.place(rank, taken, 5))
        assert found.tolist() != from_a_list(uniform, 5)


native = sampling._native
compiled = pytest.mark.skipif(native is None, reason="the package was installed without its compiled engine")
SETS = ["" if native is None else name for name in ([""] if native is None else native.instruction_sets())]


def generators(kind=np.random.PCG64):
    return [np.random.Generator(kind(seed)) for seed in range(5)]


@compiled
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox])
@pytest.mark.parametrize("rule", [WithReplacement(), WithoutReplacement()])
@pytest.mark.parametrize(
    ("n", "b"), [(1, 1), (2, 1), (7, 7), (100, 5), (100, 33), (300, 100), (2**16 + 1, 6), (2**31 - 1, 3)]
)
def test_compiled_batches_are_those_of_numpy(rule, n, b, kind, monkeypatch):
    """Also after an odd number of draws, which leaves half a word in the generator; and the generators end alike."""
    mine, theirs = generators(kind), generators(kind)
    take = rule.draws(b, n, mine)
    assert isinstance(take, sampling._Compiled)
    with monkeypatch.context() as without:
        without.setattr(sampling, "_native", None)
        slowly = rule.draws(b, n, theirs)
    assert not isinstance(slowly, sampling._Compiled)
    for steps in (7, 1, 64, 0, 3):
        assert np.array_equal(take(steps), slowly(steps))
    assert [rng.integers(2**60) for rng in mine] == [rng.integers(2**60) for rng in theirs]


@compiled
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("replace", [True, False])
def test_every_instruction_set_draws_alike(name, replace):
    rule = WithReplacement() if replace else WithoutReplacement()
    drawn = np.empty((5, 37, 11), np.int64)
    native.draw([rng.bit_generator.capsule for rng in generators()], 50, replace, drawn, name)
    assert np.array_equal(drawn, rule.draws(11, 50, generators())(37))


@compiled
def test_numbers_that_would_favour_some_samples_are_drawn_again():
    """Of 2^32 words 2^32 mod n are too many. The broken twin, which takes them all, draws other batches."""
    n = 3 * 2**29
    (rng,), (words,) = generators()[:1], generators()[:1]
    drawn = WithReplacement().draws(1, n, [rng])(1000).ravel()
    taken = words.integers(2**32, size=1000).astype(object) * n // 2**32
    assert not np.array_equal(drawn, taken) and drawn[0] == taken[0]


@compiled
@pytest.mark.parametrize(
    ("runs", "shape", "n", "replace", "message"),
    [
        (2, (3, 4, 5), 9, True, "as many streams as runs"),
        (3, (3, 4, 5), 4, False, "batches of 5 out of 4 samples are not for this"),
        (3, (3, 1, 200), 900, False, "batches of 200 out of 900 samples are not for this"),
        (3, (3, 1, 2), 2**31, True, "not for this"),
        (3, (3, 1, 2), 0, True, "not for this"),
    ],
)
def test_what_the_compiled_draws_refuse(runs, shape, n, replace, message):
    with pytest.raises(ValueError, match=message):
        native.draw([rng.bit_generator.capsule for rng in generators()[:runs]], n, replace, np.zeros(shape, np.int64))


@compiled
def test_only_a_generator_of_numpy_is_taken():
    with pytest.raises((ValueError, TypeError, SystemError)):
        native.draw([object()], 5, True, np.zeros((1, 1, 1), np.int64))
