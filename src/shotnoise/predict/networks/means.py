"""Means of b independent draws, modulo a prime: their joint moments as polynomials in u = 1/b, from those of one draw.

The joint cumulants of a mean are u^(|a| - 1) times those of one draw, and moments and cumulants give each other by

    m_{a + e_i} = sum_{c <= a} binom(a, c) kappa_{c + e_i} m_{a - c}

With everything divided by a! the binomials go. A moment of order |a| is kept by the number j of cumulants in each of
its terms, the power of u being |a| - j: then no term of the sum moves powers on its own account.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shotnoise.predict.networks.laws import NUMBERS
from shotnoise.predict.networks.residues import Residues, matmul, reduced
from shotnoise.predict.networks.wishart import monomials

Indices = NDArray[np.intp]
SMALL = 2**13


def terms(variables: int, degree: int) -> int:
    """How many there are in all these sums."""
    return math.comb(degree + 2 * variables, 2 * variables)


def fits(variables: int, degree: int) -> bool:
    return terms(variables, degree) <= NUMBERS // 8


def moments_of_means(singles: Residues, variables: int, degree: int, q: int) -> Residues:
    """From E v^a of one draw in the order of `monomials`, those of the mean, (monomials, powers of u)."""
    size = max(degree, 1)
    inverse = np.array([pow(math.factorial(k), -1, q) for k in range(degree + 1)], dtype=np.uint64)
    exponents = np.array(monomials(variables, degree)).reshape(-1, variables)
    factorials, divisors = np.ones(len(exponents), np.uint64), np.ones(len(exponents), np.uint64)
    whole = np.array([math.factorial(k) % q for k in range(degree + 1)], dtype=np.uint64)
    for own in exponents.T:
        divisors, factorials = reduced(divisors * inverse[own], q), reduced(factorials * whole[own], q)
    single = reduced(singles * divisors, q)
    cumulants = np.zeros_like(single)
    counted = np.zeros((len(exponents), degree + 1), np.uint64)  # by the number of cumulants
    counted[0, 0] = 1
    one = [pow(k, -1, q) if k else 0 for k in range(degree + 1)]
    for row, (order, multiple, left, right, weights) in enumerate(_sums(variables, degree), start=1):
        # the last term, c = a - e_i, holds the new cumulant itself, times m_0 = 1
        known = reduced(cumulants[left[:-1]] * weights[:-1], q)
        past = int(_dot(known, single[right[:-1], None], q)[0])
        cumulants[row] = (int(single[row]) - past * one[multiple]) % q
        known = reduced(cumulants[left] * weights, q)
        grown = _dot(known, counted[right, :order], q)
        counted[row, 1 : order + 1] = reduced(grown * np.uint64(one[multiple]), q)
    out = np.zeros((len(exponents), size), np.uint64)
    orders = exponents.sum(1)
    for order in range(degree + 1):
        rows = np.flatnonzero(orders == order)
        for j in range(1 if order else 0, order + 1):
            out[rows, order - j] = counted[rows, j]
    return reduced(out * factorials[:, None], q)


def _dot(a: Residues, B: Residues, q: int) -> Residues:
    """a B, (k,) (k, m); for small ones without the detour through floats."""
    if B.size > SMALL:
        return matmul(a[None], np.ascontiguousarray(B), q)[0]
    return reduced(reduced(a[:, None] * B, q).sum(0), q)


@lru_cache(maxsize=8)
def _sums(variables: int, degree: int) -> list[tuple[int, int, Indices, Indices, Residues]]:
    """For every a but 0: |a|, a_i, and the places of c + e_i and a - e_i - c for all c, with weights c_i + 1."""
    exponents = np.array(monomials(variables, degree)).reshape(-1, variables)
    radix = (degree + 1) ** np.arange(variables)
    place = np.zeros((degree + 1) ** variables, np.intp)
    place[exponents @ radix] = np.arange(len(exponents))
    found = []
    for a in exponents[1:]:
        i = int(np.flatnonzero(a)[0])
        before = a.copy()
        before[i] -= 1
        c = np.stack([grid.ravel() for grid in np.indices(tuple(before + 1))], axis=1)
        step = c @ radix
        left, right = place[step + radix[i]], place[int(before @ radix) - step]
        found.append((int(a.sum()), int(a[i]), left, right, (c[:, i] + 1).astype(np.uint64)))
    return found


def moments(values: Residues, shares: Residues, degree: int, q: int) -> Residues:
    """E v^a in the order of `monomials`: values (variables, points), shares (points,)."""
    exponents = monomials(len(values), degree)
    index = {a: row for row, a in enumerate(exponents)}
    out = np.empty((len(exponents), len(shares)), np.uint64)
    out[0] = shares
    for row, a in enumerate(exponents[1:], start=1):
        i = next(k for k, own in enumerate(a) if own)
        lower = index[(*a[:i], a[i] - 1, *a[i + 1 :])]
        out[row] = reduced(out[lower] * values[i], q)
    return reduced(out.sum(1), q)


def echelon(rows: Residues, q: int) -> tuple[Indices, Residues]:
    """Independent columns of a matrix (their places), and V with rows = rows[:, places] V."""
    left, places = rows.copy(), []
    basis: list[Residues] = []
    for _ in range(min(rows.shape)):
        nonzero = np.argwhere(left)
        if not len(nonzero):
            break
        k, column = (int(own) for own in nonzero[0])
        pivot = reduced(left[k] * np.uint64(pow(int(left[k, column]), -1, q)), q)
        left = reduced(left + reduced(left[:, column, None] * (np.uint64(q) - pivot), q), q)
        basis = [reduced(own + reduced(pivot * np.uint64(q - int(own[column])), q), q) for own in basis]
        basis.append(pivot)
        places.append(column)
    return np.array(places, dtype=np.intp), np.array(basis, dtype=np.uint64).reshape(len(places), rows.shape[1])
