import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import combinations, islice, permutations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shotnoise.errors import InputError
from shotnoise.sampling import (
    CyclicEpochs,
    Online,
    ReshuffledEpochs,
    Sampling,
    WithoutReplacement,
    WithReplacement,
)

SUBSETS = [WithoutReplacement(), ReshuffledEpochs(), CyclicEpochs()]
FROM_DATA = [WithReplacement(), *SUBSETS]
ALL = [*FROM_DATA, Online()]
VALUES = [Fraction(v) for v in (3, -1, Fraction(7, 2), 0, 5)]


def kappa_by_enumeration(values: list[Fraction], batches: Iterable[tuple[int, ...]]) -> Fraction:
    """Variance of the batch mean over all equally likely batches, in units of the variance (divisor n)."""

    def variance(x: list[Fraction]) -> Fraction:
        mean = sum(x) / len(x)
        return sum((v - mean) ** 2 for v in x) / len(x)

    means = [sum(values[i] for i in batch) / len(batch) for batch in batches]
    return variance(means) / variance(values)


def kappa(scheme: Sampling, b: int, n: int) -> Fraction:
    """The factor as a fraction: the double nearest to it has only this one with so small a denominator."""
    return Fraction(scheme.variance_factor(b, n)).limit_denominator(1000)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_factor_is_the_variance_over_all_batches(n):
    values = VALUES[:n]
    for b in range(1, n + 1):
        tuples = kappa_by_enumeration(values, product(range(n), repeat=b))
        subsets = kappa_by_enumeration(values, combinations(range(n), b))
        assert kappa(WithReplacement(), b, n) == tuples == Fraction(1, b)
        assert kappa(WithoutReplacement(), b, n) == subsets
        assert b == 1 or subsets != tuples, "the two schemes must not pass for each other"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_third_moments_over_all_batches(n):
    values = VALUES[:n]
    mean = sum(values) / n
    single = sum((v - mean) ** 3 for v in values) / n
    for b in range(1, n + 1):
        for scheme, batches in (
            (WithReplacement(), list(product(values, repeat=b))),
            (WithoutReplacement(), list(combinations(values, b))),
        ):
            third = sum((sum(batch) / Fraction(b) - mean) ** 3 for batch in batches) / len(batches)
            factor = Fraction(scheme.third_moment_factor(b, n)).limit_denominator(1000)
            assert factor * single == third
    assert Online().third_moment_factor(3, None) == WithoutReplacement().third_moment_factor(3, None) == 1 / 9


@pytest.mark.parametrize("scheme", [ReshuffledEpochs(), CyclicEpochs()], ids=str)
@pytest.mark.parametrize(("n", "b"), [(4, 1), (4, 2), (5, 2), (5, 3), (4, 4)])
def test_every_position_of_an_epoch_has_the_factor_of_a_subset(scheme, n, b):
    orders = list(permutations(range(n)))
    for start in range(0, n - b + 1, b):
        batches = [order[start : start + b] for order in orders]
        assert kappa(scheme, b, n) == kappa_by_enumeration(VALUES[:n], batches)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_factor_properties(n, b):
    replaced = WithReplacement().variance_factor(b, n)
    assert replaced == Online().variance_factor(b, n) == Online().variance_factor(b, None) == 1 / b
    if b > n:
        return
    for scheme in SUBSETS:
        factor = scheme.variance_factor(b, n)
        assert 0 <= factor <= replaced
        assert factor == pytest.approx(1.0 if b == 1 and n > 1 else (n - b) / max(1, n - 1) / b)
        assert (factor == 0) == (b == n)
        assert scheme.variance_factor(b, None) == 1 / b
        if b < n:
            assert scheme.variance_factor(b + 1, n) < factor
            assert WithReplacement().variance_factor(b + 1, n) < replaced


def test_one_sample_has_no_noise_without_replacement():
    assert [scheme.variance_factor(1, 1) for scheme in SUBSETS] == [0, 0, 0]
    assert WithReplacement().variance_factor(1, 1) == 1  # times a covariance of zero


def chi_square_p(scheme: Sampling, n: int, b: int, draws: int, key: Callable, cells: int) -> float:
    """p-value of: every kind of batch (by `key`) is equally likely. Looks at one batch per epoch and per order."""
    rng = np.random.default_rng(0)
    if isinstance(scheme, CyclicEpochs):
        batches = (next(scheme.batches(b, n, rng)) for _ in range(draws))
    else:
        step = n // b if isinstance(scheme, ReshuffledEpochs) else 1
        batches = islice(scheme.batches(b, n, rng), 0, draws * step, step)
    found = Counter(map(key, batches))
    return float(stats.chisquare([*found.values(), *[0] * (cells - len(found))]).pvalue)


def as_set(batch):
    return tuple(sorted(batch.tolist()))


ALARM = 1e-4


@pytest.mark.parametrize("scheme", SUBSETS, ids=str)
@pytest.mark.parametrize(("n", "b"), [(5, 1), (5, 2), (6, 3), (6, 5)])
def test_all_subsets_are_equally_likely(scheme, n, b):
    assert chi_square_p(scheme, n, b, 2000, as_set, comb(n, b)) > ALARM


def test_all_tuples_are_equally_likely_with_replacement():
    assert chi_square_p(WithReplacement(), 4, 3, 6000, lambda batch: tuple(batch.tolist()), 4**3) > ALARM


class Lopsided(WithoutReplacement):
    """Broken on purpose: begins at a random place and takes neighbours, so that not all subsets occur."""

    def batches(self, batch_size, n, rng):
        while True:
            yield (rng.integers(n) + np.arange(batch_size)) % n


class Favourite(WithoutReplacement):
    """Broken on purpose: one time in ten the first samples."""

    def batches(self, batch_size, n, rng):
        for batch in super().batches(batch_size, n, rng):
            yield np.arange(batch_size) if rng.random() < 0.1 else batch


@pytest.mark.parametrize("broken", [Lopsided(), Favourite()])
def test_the_chi_square_test_rejects_a_lopsided_draw(broken):
    assert chi_square_p(broken, 6, 3, 2000, as_set, comb(6, 3)) < ALARM


@pytest.mark.parametrize("scheme", FROM_DATA, ids=str)
@pytest.mark.parametrize(("n", "b"), [(10, 3), (10, 10), (1, 1)])
def test_batches_are_indices(scheme, n, b):
    for batch in islice(scheme.batches(b, n, np.random.default_rng(0)), 20):
        assert batch.shape == (b,) and batch.dtype == np.int64
        assert batch.min() >= 0 and batch.max() < n
        if not isinstance(scheme, WithReplacement):
            assert len(set(batch.tolist())) == b


@pytest.mark.parametrize("scheme", FROM_DATA, ids=str)
def test_the_generator_decides_alone(scheme):
    def drawn(seed):
        return np.concatenate(list(islice(scheme.batches(3, 50, np.random.default_rng(seed)), 10)))

    assert (drawn(1) == drawn(1)).all() and (drawn(1) != drawn(2)).any()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_an_epoch_partitions_the_data(n, b, seed):
    if b > n:
        return
    per_epoch = n // b
    for scheme in (ReshuffledEpochs(), CyclicEpochs()):
        stream = scheme.batches(b, n, np.random.default_rng(seed))
        first, second = (np.concatenate(list(islice(stream, per_epoch))) for _ in range(2))
        for epoch in (first, second):
            assert len(set(epoch.tolist())) == len(epoch) == per_epoch * b
        if isinstance(scheme, CyclicEpochs):
            assert (first == second).all()


def test_reshuffled_epochs_differ_and_fresh_subsets_do_not_partition():
    stream = ReshuffledEpochs().batches(10, 100, np.random.default_rng(0))
    first, second = (np.concatenate(list(islice(stream, 10))) for _ in range(2))
    assert (first != second).any() and set(first.tolist()) == set(second.tolist()) == set(range(100))
    fresh = np.concatenate(list(islice(WithoutReplacement().batches(10, 100, np.random.default_rng(0)), 10)))
    assert len(set(fresh.tolist())) < 100


def test_online_has_no_data_to_draw_from():
    with pytest.raises(InputError, match=r"fresh samples from a population, not from the n=7 samples.*WithReplacement"):
        Online().batches(2, 7, np.random.default_rng(0))


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("b", [0, -1, 2.5, 2.0, True, "4", None, float("nan"), np.float64(3), np.bool_(True)])
def test_a_batch_is_a_whole_positive_number(scheme, b):
    with pytest.raises(InputError, match=r"batch_size=.*whole number of samples, at least 1"):
        scheme.variance_factor(b, 10)
    with pytest.raises(InputError, match="batch_size=|Online"):
        next(scheme.batches(b, 10, np.random.default_rng(0)))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_numpy_integers_are_whole_and_enormous_batches_are_no_error(scheme):
    assert scheme.variance_factor(np.int64(2), 10) == scheme.variance_factor(2, 10)
    assert scheme.variance_factor(10**400, None) == 0
    with pytest.raises(InputError, match="n=0 samples: there is nothing to draw from"):
        scheme.check(1, 0)


@pytest.mark.parametrize("scheme", SUBSETS, ids=str)
def test_a_subset_is_no_larger_than_the_data(scheme):
    message = r"batch_size=11 but only n=10 samples; (Without|Reshuffled|Cyclic)\w+\(\) needs batch_size <= n.*WithReplacement\(\)"
    with pytest.raises(InputError, match=message):
        scheme.check(11, 10)
    with pytest.raises(InputError, match=type(scheme).__name__):
        next(scheme.batches(11, 10, np.random.default_rng(0)))
    WithReplacement().check(11, 10)


def test_schemes_say_what_they_are():
    assert [str(scheme) for scheme in ALL] == [
        "WithReplacement()",
        "WithoutReplacement()",
        "ReshuffledEpochs()",
        "CyclicEpochs()",
        "Online()",
    ]
    assert WithReplacement() == WithReplacement() != Online()
    assert all("kappa" in inspect.getdoc(type(scheme)) for scheme in ALL)
