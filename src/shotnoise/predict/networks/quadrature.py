"""The gradient's variance at one batch size, by Gauss quadrature over sample covariances: floats, one or two inputs.

S = T T^T / b with Bartlett's factor T: T_11^2 ~ chi^2_b, T_22^2 ~ chi^2_{b-1}, T_21 ~ N(0, 1), all independent. What is
asked is a polynomial in them, so enough nodes are exact up to rounding; all terms are positive, so nothing cancels. It
shares no code with the polynomials and checks them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.model import layer_index, network
from shotnoise.schedules import whole

RUNS = 2**22


def gradient_variance_at(
    student: Sequence[Any], teacher: Any, learning_rate: Any, step: int, layer: int = 0, *, batch_size: int
) -> float:
    """var(g_t) of a linear network with x ~ N(0, I_p), p <= 2, at one batch size; arguments as for the polynomial.

    Right to 9 to 13 digits. Raises InputError for more inputs or too many nodes.

    >>> round(gradient_variance_at([[[1]], [[1]]], [[4]], 1 / 24, step=1, batch_size=2), 5)
    9.17015
    """
    own = network(student, teacher, learning_rate, step)
    layer, b = layer_index(own, layer), whole("batch_size", batch_size, low=1)
    if own.p > 2:
        raise InputError(f"quadrature is there for at most two inputs; the student takes {own.p}")
    weights, target = [W.astype(float)[None] for W in own.student], own.target.astype(float)
    degrees = [2 * (2 * own.depth - 1) ** (step - s) for s in range(step)]
    runs = math.prod(d // 2 + 1 if own.p == 1 else (d // 2 + 1) ** 2 * (d + 1) for d in degrees)
    if runs > RUNS:
        raise InputError(f"{runs:.2g} nodes are needed, the limit is {RUNS:.2g}: ask for an earlier step, or simulate")
    nodes = [_nodes(own.p, b, d) for d in degrees]
    chance = np.ones(1)
    for (S, share), rate in zip(nodes, own.rates, strict=True):
        error, after, before = _chains(weights, target)
        weights = [
            (
                W[:, None] - float(rate) * (L.swapaxes(1, 2) @ error)[:, None] @ S[None] @ R.swapaxes(1, 2)[:, None]
            ).reshape(-1, *W.shape[1:])
            for W, L, R in zip(weights, after, before, strict=True)
        ]
        chance = np.outer(chance, share).ravel()
    error, after, before = _chains(weights, target)
    pulled, R = after[layer].swapaxes(1, 2) @ error, before[layer]
    full = pulled @ R.swapaxes(1, 2)
    single = (full**2).sum((1, 2)) + (pulled**2).sum((1, 2)) * (R**2).sum((1, 2))
    centred = full - np.einsum("n,nij->ij", chance, full)
    return float(chance @ (single / b + (centred**2).sum((1, 2))))


def _chains(weights: list[Array], target: Array) -> tuple[Array, list[Array], list[Array]]:
    """The error, and the products of the layers after and before each: arrays (n, rows, columns)."""
    before = [np.eye(weights[0].shape[2])[None]]
    for W in weights:
        before.append(W @ before[-1])
    after = [np.eye(len(target))[None]]
    for W in weights[:0:-1]:
        after.append(after[-1] @ W)
    return before[-1] - target, after[::-1], before[:-1]


def _nodes(p: int, b: int, degree: int) -> tuple[Array, Array]:
    """Matrices S (N, p, p) and their weights, exact for polynomials of the degree in the entries."""
    first, chance = _chi_squared(b, degree)
    if p == 1:
        return first[:, None, None] / b, chance
    last, other = _chi_squared(b - 1, degree)
    normal, share = special.roots_hermitenorm(degree + 1)
    a, c, d = (grid.ravel() for grid in np.meshgrid(first, normal, last, indexing="ij"))
    S = np.stack([a, np.sqrt(a) * c, np.sqrt(a) * c, c**2 + d], axis=-1).reshape(-1, 2, 2) / b
    return S, np.einsum("i,j,k->ijk", chance, share / share.sum(), other).ravel()


def _chi_squared(freedom: int, degree: int) -> tuple[Array, Array]:
    if freedom == 0:
        return np.zeros(1), np.ones(1)
    nodes, shares = special.roots_genlaguerre(degree // 2 + 1, freedom / 2 - 1)
    return 2 * nodes, shares / shares.sum()
