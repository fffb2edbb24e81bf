"""Two linear layers after at most one step, at any width: the quantities as traces of words in one sample covariance.

With x ~ N(0, I_p), e = W_2 W_1 - W*, and S that of the first batch,

    W_1' = W_1 - a W_2^T e S,    W_2' = W_2 - a e S W_1^T,    e' = W_2' W_1' - W*

are sums of words X_0 S X_1 ... S X_d; so are L^T e' R^T (L = W_2', R = I for the first layer; L = I, R = W_1' for the
second), and the squared lengths are traces, d <= 6. The length of a mean is the trace over two independent S.
"""

from itertools import product, zip_longest
from typing import Any

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.forms import GRADIENT, LOSS
from shotnoise.predict.networks.words import Word, Words

Sum = list[tuple[Any, tuple[Array, ...]]]  # terms: a number times X_0 S X_1 ... S X_d
MATRICES = 12_000  # formed on the way, about
FACTORS, ADDITIONS = 24, 5_000  # matrices in a word, and sums and single numbers that follow, at most
FRACTION, FLOAT = 1.5e-6, 1e-10  # seconds for one multiplication in a matrix product


def cost(p: int, *, exact: bool) -> float:
    """Seconds on one core, about."""
    return MATRICES * (2e-4 + p**3 * (FRACTION if exact else FLOAT))


def polynomial(student: list[Array], target: Array, rate: Any, quantity: str, layer: int) -> list[Any]:
    """The coefficients in u after one update of two linear layers; Fractions or floats, as the arrays."""
    W1, W2 = student
    identity = np.eye(W1.shape[1], dtype=int).astype(W1.dtype)
    return _combined(W1, W2, W2 @ W1 - target, identity, rate, quantity, layer, Words(), -1)


def error_bounds(student: list[Array], target: Array, rate: float, quantity: str, layer: int) -> Array:
    """Of `polynomial` in floats: its own rounding, bounded by norms.

    In spectral norms, ||fl(A B) - A B|| <= n eps ||A||_F ||B||_F <= n r eps ||A|| ||B|| (n the inner dimension, r the
    ranks' geometric mean) and |tr A| <= p ||A||; everything else adds and multiplies numbers. So the bound is N eps
    times the same calculus with norms in place of matrices and plus signs throughout, N the roundings in a row.
    """
    W1, W2 = student
    first, second = (np.array([[np.linalg.norm(own, 2)]]) for own in (W1, W2))
    error, p = second @ first + np.linalg.norm(target, 2), W1.shape[1]
    magnitude = _combined(first, second, error, np.eye(1), -abs(rate), quantity, layer, Words(p), 1)
    roundings = FACTORS * (max(*W1.shape, *W2.shape) + 1) * min(max(W1.shape), max(W2.shape)) + ADDITIONS
    return roundings * 2.0**-52 * np.array(magnitude, dtype=np.float64)


def _combined(
    W1: Array, W2: Array, error: Array, identity: Array, rate: Any, quantity: str, layer: int, words: Words, sign: int
) -> list[Any]:
    first: Sum = [(1, (W1,)), (-rate, (W2.T @ error, identity))]
    second: Sum = [(1, (W2,)), (-rate, (error, W1.T))]
    moved = _times(second, first)  # W_2 W_1, two words with one S, one with two
    residual: Sum = [(1, (error,)), *moved[1:]]
    if quantity == LOSS:
        return [c / 2 for c in _length(residual, words)]
    inner = _times(_transposed(second), residual) if layer == 0 else _times(residual, _transposed(first))
    square, mean = _length(inner, words), _length(inner, words, independent=True)
    total = _sum(square, [sign * c for c in mean])
    if quantity == GRADIENT:
        own = [words.trace_of(identity) * c for c in square] if layer == 0 else _product(residual, first, words)
        total = _sum(total, [0, *_sum(square, own)])
    return total


def _times(left: Sum, right: Sum) -> Sum:
    return [(a * b, (*x[:-1], x[-1] @ y[0], *y[1:])) for (a, x), (b, y) in product(left, right)]


def _transposed(words: Sum) -> Sum:
    return [(c, tuple(X.T for X in reversed(word))) for c, word in words]


def _traces(terms: Sum, words: Words, label: int = 0, other: int = 0) -> list[tuple[Any, tuple[Word, ...]]]:
    """||sum||^2 = tr(sum^T sum) as numbers times words."""
    found: list[tuple[Any, tuple[Word, ...]]] = []
    numbered = [(c, x[0], x[-1], [words.number(X) for X in x[1:-1]], len(x) - 1) for c, x in terms]
    for (a, first, last, inside, d), (b, second, end, within, e) in product(numbered, numbered):
        around, middle = end @ last.T, first.T @ second
        if d and e:
            reverse = [words.transpose(X) for X in reversed(inside)]
            matrices = [*reverse, words.number(middle), *within, words.number(around)]
        elif d:
            matrices = [*[words.transpose(X) for X in reversed(inside)], words.number(first.T @ second @ last.T)]
        elif e:
            matrices = [*within, words.number(end @ first.T @ second)]
        else:
            found.append((a * b * words.trace_of(first.T @ second), ()))
            continue
        found.append((a * b, (tuple(zip([other] * d + [label] * e, matrices, strict=True)),)))
    return found


def _length(terms: Sum, words: Words, *, independent: bool = False) -> list[Any]:
    """E ||sum||^2, or ||E sum||^2 as that over two independent S."""
    total: list[Any] = [0]
    for number, word in _traces(terms, words, 0, 1 if independent else 0):
        total = _sum(total, [number * c for c in words.mean(word)])
    return total


def _product(left: Sum, right: Sum, words: Words) -> list[Any]:
    """E ||left||^2 ||right||^2."""
    total: list[Any] = [0]
    for (a, word), (b, other) in product(_traces(left, words), _traces(right, words)):
        total = _sum(total, [a * b * c for c in words.mean((*word, *other))])
    return total


def _sum(a: list[Any], b: list[Any]) -> list[Any]:
    return [x + y for x, y in zip_longest(a, b, fillvalue=0)]
