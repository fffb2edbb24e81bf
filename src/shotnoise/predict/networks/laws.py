"""A mean as a sum over lattice points: weights that are polynomials in u = 1/b, modulo a prime.

A polynomial F of degree d in m variables is fixed by its values at the points of whole numbers >= 0 with sum <= d: by
forward differences, F = sum_{|a| <= d} Delta^a F(0) prod_k binom(S_k, a_k). The means of the binomials follow from
moments through Stirling numbers, and Delta^a F(0) from values with signs and binomials.
"""

import math

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.residues import Residues, matmul, reduced

NUMBERS = 2**27  # held at a time


def fits(variables: int, degree: int) -> bool:
    """Whether the tables of `weights_of` fit into memory."""
    return variables * math.log2(degree + 1) + math.log2(degree) <= math.log2(NUMBERS)


def weights_of(exponents: Array, moments: Residues, degree: int, q: int) -> Residues:
    """Of the points `exponents` (N, m), (N, powers of u); moments: E prod_k S_k^{a_k} by the same exponents."""
    m, side = exponents.shape[1], degree + 1
    box = np.zeros((*[side] * m, moments.shape[1]), np.uint64)
    place = tuple(exponents.T)
    box[place] = moments
    falling, signed = _tables(degree, q)
    for axis in range(m):
        box = _along(falling, box, axis, q)
    inside = np.zeros(box.shape[:-1], bool)
    inside[place] = True
    box[~inside] = 0
    for axis in range(m):
        box = _along(signed, box, axis, q)
    return box[place]


def mean_over(table: Residues, law: Residues, q: int) -> Residues:
    """The mean over one S: table (..., points, powers), law (points, own powers); powers of u multiply."""
    powers, own = table.shape[-1], law.shape[1]
    shape = table.shape[:-2]
    flat = np.moveaxis(table, -1, -2).reshape(-1, law.shape[0])
    mixed = matmul(flat, law, q).reshape(*shape, powers, own)
    out = np.zeros((*shape, powers + own - 1), np.uint64)
    for k in range(powers):
        out[..., k : k + own] += mixed[..., k, :]
    return reduced(out, q)


def _along(matrix: Residues, box: Residues, axis: int, q: int) -> Residues:
    first = np.moveaxis(box, axis, 0)
    return np.moveaxis(matmul(matrix, first.reshape(len(first), -1), q).reshape(first.shape), 0, axis)


def _tables(degree: int, q: int) -> tuple[Residues, Residues]:
    """binom(x, a) in powers of x, (a, power); and (-1)^(a - x) binom(a, x), (x, a)."""
    falling = [[1] + [0] * degree]
    for a in range(degree):
        inverse = pow(a + 1, -1, q)
        shifted = [0, *falling[-1][:-1]]
        falling.append([(s - a * c) * inverse % q for s, c in zip(shifted, falling[-1], strict=True)])
    signed = [[(-1) ** (a - x) * math.comb(a, x) % q for a in range(degree + 1)] for x in range(degree + 1)]
    return np.array(falling, np.uint64), np.array(signed, np.uint64)
