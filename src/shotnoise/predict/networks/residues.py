"""Arithmetic modulo primes below 2^31 in NumPy, and back to integers: exact results at the speed of machine numbers."""

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]


def primes() -> Iterator[int]:
    """Downwards from 2^31.

    >>> next(primes())
    2147483647
    """
    divisors = np.arange(3, 46_341, 2)
    candidate = 2**31 - 1
    while True:
        if (candidate % divisors).all():
            yield candidate
        candidate -= 2


def reduced(values: Residues, q: int) -> Residues:
    """values mod q; NumPy divides by a constant several times faster than it takes remainders."""
    quotient = values // np.uint64(q)
    quotient *= np.uint64(q)
    return values - quotient


def residues(values: Any, q: int) -> Residues:
    """Of an array of Python integers or Fractions whose denominators q does not divide."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return (values % q).astype(np.uint64)
    array = np.asarray(values, dtype=object)
    flat = [(v.numerator % q) * (pow(v.denominator, -1, q) if v.denominator != 1 else 1) % q for v in array.ravel()]
    return np.array(flat, dtype=np.uint64).reshape(array.shape)


def product(a: Residues, b: Residues, q: int) -> Residues:
    """Matrix products (i, k, ...) (k, j, ...) along trailing axes that broadcast: few rows, many matrices."""
    total = a[:, 0, None] * b[None, 0]
    for k in range(1, a.shape[1]):
        if k % 3 == 0:  # four products of residues still fit into 64 bits
            total = reduced(total, q)
        total = total + a[:, k, None] * b[None, k]
    return reduced(total, q)


def matmul(a: Residues, b: Residues, q: int) -> Residues:
    """(n, k) (k, m) for large matrices, through halves of 16 bits whose float products are exact for k < 2^20."""
    low, half = np.uint64(0xFFFF), np.uint64(16)
    a0, a1 = (a & low).astype(np.float64), (a >> half).astype(np.float64)
    b0, b1 = (b & low).astype(np.float64), (b >> half).astype(np.float64)
    high = reduced((a1 @ b1).astype(np.uint64), q)
    middle = reduced((high << half) + (a1 @ b0 + a0 @ b1).astype(np.uint64), q)
    return reduced((middle << half) + (a0 @ b0).astype(np.uint64), q)


def convolved(a: Residues, b: Residues, q: int) -> Residues:
    """The product of two polynomials along the last axis: (..., m) and (n,) give (..., m + n - 1)."""
    out = np.zeros((*a.shape[:-1], a.shape[-1] + len(b) - 1), np.uint64)
    for k, c in enumerate(b):
        own = out[..., k : k + a.shape[-1]]
        own[...] = reduced(own + a * c, q)
    return out


class Reconstruction:
    """Integers from their residues modulo one prime after another; `settled` once further primes change nothing."""

    def __init__(self) -> None:
        self.modulus = 1
        self.values: list[int] = []
        self.settled = 0

    def add(self, values: Residues, q: int) -> None:
        found = [int(v) for v in values]
        if not self.values:
            self.values = [0] * len(found)
        inverse = pow(self.modulus, -1, q)
        corrections = [(new - old) * inverse % q for old, new in zip(self.values, found, strict=True)]
        self.settled = 0 if any(corrections) else self.settled + 1
        modulus = self.modulus * q
        lifted = [old + self.modulus * c for old, c in zip(self.values, corrections, strict=True)]
        self.values = [v - modulus if 2 * v > modulus else v for v in lifted]
        self.modulus = modulus

    def fractions(self) -> list[Fraction] | None:
        """The fractions with these residues whose numerators and denominators are short; None where there are none."""
        bound = math.isqrt(self.modulus // 2)
        found = []
        for value in self.values:
            before, remainder, passed, factor = self.modulus, value % self.modulus, 0, 1
            while remainder > bound:
                whole = before // remainder
                before, remainder = remainder, before - whole * remainder
                passed, factor = factor, passed - whole * factor
            if abs(factor) > bound or not factor:
                return None
            found.append(Fraction(remainder, factor))
        return found


CONFIRMING = 2  # further primes that must agree; each would miss an error once in two thousand million times


def rational(
    modulo: Callable[[int], Residues], numbers: Iterable[Any], tell: Callable[[int, int], None], expected: int
) -> list[Fraction]:
    """Fractions from their values modulo primes, as many as they turn out to need; `tell` hears of every one done.

    numbers: those that came in, of which the primes must divide no denominator; expected: how many primes, about.
    """
    divisor = math.lcm(2, *(v.denominator for v in numbers))
    found, guess, used, confirmed, next_guess = Reconstruction(), None, 0, 0, 2
    for q in primes():
        if divisor % q == 0:
            continue
        tell(used, max(expected, used))
        values = modulo(q)
        if guess is not None and (residues(guess, q) == values).all():
            confirmed += 1
            if confirmed == CONFIRMING:
                return guess
        else:
            guess, confirmed = None, 0
        found.add(values, q)
        used += 1
        if guess is None and used >= next_guess:
            guess, next_guess = found.fractions(), 1 + int(1.2 * used)
    raise AssertionError("there are enough primes below 2^31")
