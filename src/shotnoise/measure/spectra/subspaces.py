"""How two subspaces, and the eigenvectors of two symmetric matrices, lie to each other.

    principal angles    cos gamma_i = sigma_i(U^T V), sin gamma_i = sigma_(q+1-i)(V - U U^T V)
    overlap             ||U^T V||_F^2 / q, by chance a/p for random spaces of a and q of p dimensions

Cosines lose all digits of small angles and sines those of right ones, so that the angle is taken from the sine where
cos^2 >= 1/2 and from the cosine elsewhere (Bjorck and Golub 1973). With P, Q symmetric, Delta = Q - P, eigenvalues
descending, lambda of P and lambda~ of Q, the bounds are

    Davis-Kahan         sin(v_r, v~_r) <= ||Delta v_r|| / delta_r,   delta_r = min_(s != r) |lambda~_s - lambda_r|
    Yu-Wang-Samworth    ||sin Theta||_F <= 2 min(sqrt(d) ||Delta||_2, ||Delta||_F) / (lambda_d - lambda_(d+1))
    residual            ||sin Theta||_F <= ||P V~ - V~ (V~^T P V~)||_F / (lambda_min(V~^T P V~) - lambda_(d+1))

for the leading d eigenvectors. The first has the gap of mixed eigenvalues (with those of P alone it is false), the
second holds with the gap of either matrix, the third where its denominator is positive. A bound on the sines of d
angles says nothing from sqrt(d) on. Eigenvectors ignore scale: c Q with c = <Q, P> / ||Q||_F^2 > 0 may stand for Q.
Sources: Davis and Kahan 1970; Yu, Wang and Samworth 2015; Li, Gu, Zhou, Chen, Banerjee, eqs. 13, 56, 57.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError

Array = NDArray[np.float64]
ORTHONORMAL = 1e-3  # how far U^T U may be from the identity; single precision is far below


@dataclass(frozen=True)
class PrincipalAngles:
    """angles (q,) in radians, ascending, with their cosines and sines, each to full relative precision."""

    angles: Array
    cosines: Array
    sines: Array

    @property
    def overlap(self) -> float:
        """||U^T V||_F^2 / q: one for a space within the other, zero for spaces at right angles."""
        return float((self.cosines**2).mean())

    @property
    def distance(self) -> float:
        """||sin Theta||_F"""
        return float(np.linalg.norm(self.sines))


def principal_angles(first: Array, second: Array) -> PrincipalAngles:
    """The principal angles between the spaces of orthonormal columns (p, a) and (p, q).

    As many as the smaller space has dimensions; accurate for tiny angles and for right ones. Raises InputError for
    columns that are not orthonormal or of different length.

    >>> x = np.eye(3)[:, :1]
    >>> y = np.array([[1.0], [1e-12], [0.0]])
    >>> principal_angles(x, y).angles
    array([1.e-12])
    """
    U, V = _orthonormal(first), _orthonormal(second)
    if len(U) != len(V):
        raise InputError(f"vectors of {len(U)} and of {len(V)} numbers span no subspaces of one space")
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    inner = U.T @ V
    cosines = np.linalg.svd(inner, compute_uv=False)
    cosines = np.clip(cosines, 0, 1)
    outside = V - U @ inner
    outside -= U @ (U.T @ outside)  # what rounding has left inside
    sines = np.clip(np.linalg.svd(outside, compute_uv=False)[::-1], 0, 1)
    small = cosines**2 >= 0.5
    angles = np.where(small, np.arcsin(sines), np.arccos(cosines))
    return PrincipalAngles(angles, np.where(small, np.cos(angles), cosines), np.where(small, sines, np.sin(angles)))


def chance_overlap(dimensions: int, p: int) -> float:
    """The expected overlap of a random space with one of so many dimensions out of p."""
    return dimensions / p


def chance_cosine(a: int, q: int, p: int) -> float:
    """The largest cosine between random spaces of a and q of p dimensions, in the limit of many (Wachter 1980)."""
    if a + q >= p:
        return 1.0
    return float(np.sqrt(a / p * (1 - q / p)) + np.sqrt(q / p * (1 - a / p)))


def vector_angles(first: Array, second: Array) -> Array:
    """sin of the angle between column r of one and of the other, whatever their signs: (q,)."""
    U, V = _orthonormal(first, pairwise=False), _orthonormal(second, pairwise=False)
    inner = (U * V).sum(0)
    sines = np.linalg.norm(V - U * inner, axis=0)
    found: Array = np.where(inner**2 >= 0.5, sines, np.sqrt(np.clip(1 - inner**2, 0, 1)))
    return found


def mixed_gaps(values: Array, others: Array, *, rest: tuple[float, float] | None = None) -> Array:
    """delta_r = min_(s != r) |lambda~_s - lambda_r| for the leading lambda (k,) and the lambda~ (q,), q >= k.

    rest: an interval that holds all lambda~ that are not among `others`; None if there are none. With it the gap is at
    least what is returned.
    """
    values, others = np.asarray(values, float), np.asarray(others, float)
    apart = np.abs(others[None, :] - values[:, None])
    apart[np.arange(len(values)), np.arange(len(values))] = np.inf
    gaps: Array = apart.min(1)
    if rest is not None:
        low, high = rest
        gaps = np.minimum(gaps, np.maximum(0, np.maximum(low - values, values - high)))
    return gaps


def davis_kahan(moved: Array, gaps: Array) -> Array:
    """||Delta v_r|| / delta_r, bounds on the sines (k,); infinite without a gap. moved: ||Delta v_r||."""
    return _ratio(np.asarray(moved, float), np.asarray(gaps, float))


def yu_wang_samworth(gaps: Array, norm: float, frobenius: float) -> Array:
    """2 min(sqrt(d) ||Delta||_2, ||Delta||_F) / gap_d for d = 1 .. k, bounds on ||sin Theta||_F; inf without gap.

    gaps: lambda_d - lambda_(d+1) (k,) of one of the matrices.
    """
    gaps = np.asarray(gaps, float)
    d = np.arange(1, len(gaps) + 1)
    return _ratio(2 * np.minimum(np.sqrt(d) * norm, frobenius), gaps)


def residual_bounds(space: Array, image: Array, values: Array) -> Array:
    """The residual bound for the first d columns of an orthonormal `space` (p, k), d = 1 .. k; NaN where it has no gap.

    image: P times the space. values: the leading eigenvalues of P, at least k + 1 of them unless there are no more.
    """
    V, PV, values = _orthonormal(space), np.asarray(image, float), np.asarray(values, float)
    found = np.full(V.shape[1], np.nan)
    for d in range(1, V.shape[1] + 1):
        inner = V[:, :d].T @ PV[:, :d]
        rest = np.linalg.norm(PV[:, :d] - V[:, :d] @ inner)
        below = values[d] if d < len(values) else -np.inf
        gap = np.linalg.eigvalsh((inner + inner.T) / 2)[0] - below
        if gap > 0:
            found[d - 1] = rest / gap
    return found


def best_scale(inner: float, norm_square: float) -> float:
    """c = <Q, P> / ||Q||_F^2, by which Q comes nearest to P; NaN unless it is positive."""
    return inner / norm_square if norm_square > 0 and inner > 0 else float("nan")


def gradient_share(vectors: Array, gradient: Array) -> Array:
    """||V_d^T g||^2 / ||g||^2 for the first d = 1 .. k orthonormal columns; NaN for a gradient that vanishes.

    The gradient is normalised first: late in training its square underflows.
    """
    V, g = np.asarray(vectors, float), np.asarray(gradient, float)
    largest = np.abs(g).max(initial=0.0)
    if not 0 < largest < np.inf:
        return np.full(V.shape[1], np.nan)
    g = g / largest
    found: Array = np.cumsum((V.T @ (g / np.linalg.norm(g))) ** 2)
    return found


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(below > 0, above / np.where(below > 0, below, 1), np.inf)
    return found


def _orthonormal(columns: Array, pairwise: bool = True) -> Array:
    array = np.asarray(columns, dtype=np.float64)
    if array.ndim != 2 or not 1 <= array.shape[1] <= len(array):
        raise InputError(f"a subspace is given by orthonormal columns (p, q) with 1 <= q <= p, not {array.shape}")
    inner = array.T @ array if pairwise else np.diag((array**2).sum(0))
    error = np.abs(inner - np.eye(array.shape[1])).max()
    if not error <= ORTHONORMAL:
        raise InputError(
            f"the columns are not orthonormal: their products differ from 0 and 1 by {error:.1g}; "
            "take the Q of numpy.linalg.qr"
        )
    if not pairwise:
        return array / np.linalg.norm(array, axis=0)
    return array if error < 1e-14 else np.linalg.qr(array)[0]
