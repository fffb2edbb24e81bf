"""Finite volumes for Fokker-Planck in one and two dimensions that keep mass exactly and never go negative.

    dp/dt = -div J,   J = b p - D grad p  read as  -D grad p,  -div (D p),  ..   with D = eps Sigma / 2

Cells exchange mass along edges x -> x + e, e one of few whole-number offsets. At every cell D is written as sum_k l_k
h^2 e_k e_k^T with l_k >= 0 (Selling's reduction: in two dimensions three offsets suffice, however skew D is, where the
usual five- and nine-point schemes lose positivity), and the edge carries Scharfetter and Gummel's flux

    F = w B(-s) m(x) - w' B(s) m(x + e),   B(s) = s / (exp(s) - 1),   s = e h . D^-1 b

of the masses m, D^-1 b the mean of both ends. All rates are positive and what leaves one cell enters another.
Conventions lie in the weights: Ito's w, w' are l(x) and l(x + e), which is -div (D p) with no derivative of D taken;
Haenggi and Klimontovich's both their mean, which is -D grad p. Where D^-1 b is a gradient the stationary law of Ito in
one dimension and of HK is exp of sums of s: right but for the trapezoidal rule. Edges that leave the grid are dropped:
no flux through its boundary. Source: Scharfetter and Gummel (1969); Selling (1874), after Fehrenbach and Mirebeau
(2014).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shotnoise.errors import InputError
from shotnoise.predict.diffusion.settings import Array

REACH = 12  # cells: the longest offset that still counts as local
ROUNDS = 100


@dataclass(frozen=True)
class Edges:
    """By edge: from which cell, to which (-1: out of the grid), offset in space, and the rates there and back."""

    tail: NDArray[np.int64]
    head: NDArray[np.int64]
    offset: Array  # (E, dimension)
    forth: Array
    back: Array
    cells: int

    @property
    def inside(self) -> NDArray[np.bool_]:
        return self.head >= 0

    def generator(self) -> sparse.csc_matrix:
        """A with dm/dt = A m; columns sum to zero."""
        kept = self.inside
        i, j, a, b = self.tail[kept], self.head[kept], self.forth[kept], self.back[kept]
        rows, columns = np.concatenate([j, i, i, j]), np.concatenate([i, j, i, j])
        return sparse.csc_matrix((np.concatenate([a, b, -a, -b]), (rows, columns)), (self.cells, self.cells))

    def fluxes(self, masses: Array) -> Array:
        """Mass per unit time along each edge inside, (E,)."""
        kept = self.inside
        found = np.zeros(len(kept))
        found[kept] = self.forth[kept] * masses[self.tail[kept]] - self.back[kept] * masses[self.head[kept]]
        return found


def edges(shape: tuple[int, ...], widths: Array, diffusion: Array, drift: Array, mean_weights: bool) -> Edges:
    """For cells (prod shape) in row-major order: diffusion D (cells, d, d) and drift b (cells, d) at their centres."""
    d, cells = len(shape), int(np.prod(shape))
    scaled = diffusion / widths[:, None] / widths  # in units of cells
    offsets, weights = _decomposed(scaled)
    slope = np.linalg.solve(diffusion, drift[..., None])[..., 0]  # D^-1 b
    every = np.unique(offsets.reshape(-1, d), axis=0)
    every = every[np.abs(every).any(1)]
    place = np.indices(shape).reshape(d, -1).T
    parts = []
    for e in every:
        own = (weights * (offsets == e).all(2)).sum(1)  # l_e at each cell, (cells,)
        target = place + e
        there = ((target >= 0) & (target < shape)).all(1)
        head = np.where(there, np.ravel_multi_index(tuple(np.where(there[:, None], target, 0).T), shape), -1)
        other = np.where(there, own[head], own)
        needed = (own > 0) | (other > 0)
        first, second = ((own + other) / 2,) * 2 if mean_weights else (own, other)
        s = ((slope + np.where(there[:, None], slope[head], slope)) / 2) @ (e * widths)
        keep = np.flatnonzero(needed)
        parts.append((keep, head[keep], np.tile(e * widths, (len(keep), 1)), first[keep] * bernoulli(-s[keep]),
                      second[keep] * bernoulli(s[keep])))  # fmt: skip
        # Offsets come in one of two signs: those that leave the grid backwards are edges of their own.
        source = place - e
        out = np.flatnonzero(~((source >= 0) & (source < shape)).all(1) & (own > 0))
        s = -slope[out] @ (e * widths)
        parts.append((out, np.full(len(out), -1), np.tile(-e * widths, (len(out), 1)), own[out] * bernoulli(-s),
                      own[out] * bernoulli(s)))  # fmt: skip
    tail, head, offset, forth, back = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Edges(tail, head, offset, forth, back, cells)


def bernoulli(s: Array) -> Array:
    """s / (exp(s) - 1)."""
    small = np.abs(s) < 1e-5
    safe = np.where(small, 1.0, s)
    with np.errstate(over="ignore"):
        found: Array = np.where(small, 1 - s / 2 + s**2 / 12, safe / np.expm1(safe))
    return found


def _decomposed(D: Array) -> tuple[NDArray[np.int64], Array]:
    """Offsets (cells, K, d) and weights (cells, K) >= 0 with D = sum_k l_k e_k e_k^T; offsets of one sign."""
    if D.shape[1] == 1:
        return np.ones((len(D), 1, 1), np.int64), D[:, 0]
    u, v = np.tile([[1, 0]], (len(D), 1)), np.tile([[0, 1]], (len(D), 1))
    for _ in range(ROUNDS):  # u, v, -u - v: shortened until all pairs meet at an obtuse angle in the metric of D
        w = -u - v
        a, b, c = (np.einsum("ni,nij,nj->n", x, D, y) for x, y in ((u, v), (u, w), (v, w)))
        worst = np.argmax([a, b, c], 0)
        acute = np.max([a, b, c], 0) > 1e-14 * np.trace(D, axis1=1, axis2=2)
        if not acute.any():
            break
        first = np.choose(worst[:, None], (u, u, v))
        second = np.choose(worst[:, None], (v, w, w))
        u, v = np.where(acute[:, None], -first, u), np.where(acute[:, None], second, v)  # the third is first - second
    w = -u - v
    pairs = [-np.einsum("ni,nij,nj->n", x, D, y) for x, y in ((v, w), (u, w), (u, v))]
    offsets = _one_sign(np.stack([u, v, w], 1) @ np.array([[0, 1], [-1, 0]]))  # e_k stands upright on u, v, w
    if np.abs(offsets).max() > REACH:
        cell = int(np.abs(offsets).max((1, 2)).argmax())
        raise InputError(
            f"the covariance is nearly singular, or far from the shape of a cell, at cell {cell}: positivity would "
            f"need exchange over {int(np.abs(offsets).max())} cells. Use cells whose sides are as the root of the "
            "variances, or simulate: a law on a line has no density in the plane"
        )
    return offsets, np.maximum(np.stack(pairs, 1), 0.0)


def _one_sign(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    first, second = offsets[..., 0], offsets[..., 1]
    negative = (first < 0) | ((first == 0) & (second < 0))
    return np.where(negative[..., None], -offsets, offsets)
