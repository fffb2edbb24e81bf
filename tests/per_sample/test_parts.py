"""The three structured forms and their sums against gradients written out with einsum, on random shapes."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from shotnoise.per_sample import structure
from shotnoise.per_sample.structure import Dense, Lookup, Outer, PerSample
from slow_twin import agrees

lengths = st.integers(1, 5)
seeds = st.integers(0, 10**6)
budgets = st.sampled_from([8, 200, 2**20])  # bytes: a row and a sample at a time, some, all


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer(seed, m, groups, rows, columns, positions):
    """A part and its gradients (m, groups * rows, columns)."""
    a, d = normal(seed, m, groups, columns, positions), normal(seed + 1, m, groups, rows, positions)
    return Outer(a, d), torch.einsum("mgot,mgit->mgoi", d, a).flatten(1, 2)


def lookup(seed, m, rows, columns, positions):
    index = torch.randint(0, rows, (m, positions), generator=torch.Generator().manual_seed(seed))
    d = normal(seed + 1, m, positions, columns)
    one_hot = torch.nn.functional.one_hot(index, rows).double()
    return Lookup(index, d, rows), torch.einsum("mtk,mtc->mkc", one_hot, d)


def dense(seed, m, rows, columns):
    g = normal(seed, m, rows, columns)
    return Dense(g), g


def require_answers(made, budget):
    """Every question that a PerSample answers, for a sum of parts with gradients (m, rows, columns)."""
    g = sum(gradients for _, gradients in made)
    fast = PerSample([part for part, _ in made], g.shape[1:])
    m, flat, scale = len(g), g.flatten(1), sum(float(gradients.abs().max()) for _, gradients in made)
    v, weights = normal(7, *g.shape[1:]), normal(8, m, 3)
    with mock.patch.multiple(structure, BLOCK_BYTES=budget, CACHE_BYTES=budget):
        assert agrees(fast.explicit(), g, scale)
        assert agrees(fast.squared_norms(), flat.square().sum(1), scale**2 * v.numel())
        assert agrees(fast.gram(), flat @ flat.T, scale**2 * v.numel())
        assert agrees(fast.sum_of_squares(), g.square().sum(0), scale**2)
        assert agrees(fast.dot(v), flat @ v.flatten(), scale * v.numel())
        assert agrees(fast.total(), g.sum(0), scale * m)
        assert agrees(fast.weighted_sum(weights), torch.einsum("mk,mrc->krc", weights, g), scale * m)


@given(seeds, lengths, lengths, lengths, lengths, st.integers(1, 9), budgets)
def test_outer(seed, m, groups, rows, columns, positions, budget):
    require_answers([outer(seed, m, groups, rows, columns, positions)], budget)


@given(seeds, lengths, lengths, lengths, lengths, budgets)
def test_lookup(seed, m, rows, columns, positions, budget):
    require_answers([lookup(seed, m, rows, columns, positions)], budget)


@given(seeds, lengths, lengths, lengths, budgets)
def test_dense(seed, m, rows, columns, budget):
    require_answers([dense(seed, m, rows, columns)], budget)


@given(seeds, lengths, st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]), st.sampled_from([(1, 6), (2, 3), (3, 2)]),
       lengths, lengths, lengths, budgets)  # fmt: skip
def test_sum_of_uses(seed, m, first, second, columns, positions, more_positions, budget):
    """A weight in two convolutions, whose groups may differ, with the cross terms of both."""
    one = outer(seed, m, *first, columns, positions)
    other = outer(seed + 2, m, *second, columns, more_positions)
    require_answers([one, other], budget)


@given(seeds, lengths, lengths, lengths, lengths, lengths, budgets)
def test_sum_of_kinds(seed, m, rows, columns, positions, words, budget):
    """A weight that is looked up, multiplied with, and has a part without structure: a tied head, and more."""
    kinds = [outer(seed, m, 1, rows, columns, positions), lookup(seed + 2, m, rows, columns, words)]
    require_answers(kinds, budget)
    require_answers([*kinds[::-1], dense(seed + 4, m, rows, columns), kinds[0], kinds[1]], budget)


@given(seeds, lengths, lengths, lengths, lengths, lengths, lengths, budgets)
def test_gram_between_chunks(seed, m, more, rows, columns, positions, words, budget):
    made = [[outer(seed, k, 1, rows, columns, positions), lookup(seed + 2, k, rows, columns, words)] for k in (m, more)]
    for uses in ([0], [1], [0, 1]):
        (x, g), (y, h) = (
            (PerSample([chunk[use][0] for use in uses], torch.Size((rows, columns))), sum(chunk[u][1] for u in uses))
            for chunk in made
        )
        with mock.patch.multiple(structure, BLOCK_BYTES=budget, CACHE_BYTES=budget):
            expected = g.flatten(1) @ h.flatten(1).T
            assert agrees(x.gram(y), expected, float(g.norm() * h.norm()))
            assert agrees(y.gram(x), expected.T, float(g.norm() * h.norm()))


def test_checksum_shows_what_is_not_finite():
    for made in (outer(0, 3, 2, 2, 2, 2), lookup(0, 3, 4, 2, 2), dense(0, 3, 2, 2)):
        part, g = made
        fast = PerSample([part], g.shape[1:])
        assert fast.checksum.isfinite()
        (part.g if isinstance(part, Dense) else part.d)[1] = float("inf")
        assert not fast.checksum.isfinite()
