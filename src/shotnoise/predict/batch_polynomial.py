"""A variance as an explicit polynomial in 1/b, or in the variance factor kappa of the sampling, and where it falls."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError
from shotnoise.predict.sign_changes import first_fall

Array = NDArray[Any]  # float64, or object holding Fractions
KAPPA, INVERSE = "kappa", "1/b"


@dataclass(frozen=True)
class BatchPolynomial:
    """coefficients (degree + 1,), constant term first, of `variable`: "kappa" or "1/b"; Fractions or floats.

    n: the number of samples that batches are drawn from without replacement, kappa = (n - b) / (b (n - 1)); None for
    draws with replacement or fresh samples, kappa = 1/b.

    >>> p = BatchPolynomial(np.array([0.0, 2.0, 1.0]), "kappa", n=3)
    >>> p(1), p(3), p.degree, p.decreasing_beyond
    (3.0, 0.0, 2, 1.0)
    """

    coefficients: Array
    variable: str = INVERSE
    n: int | None = None

    def __post_init__(self) -> None:
        if self.variable not in (KAPPA, INVERSE):
            raise InputError(f"variable={self.variable!r}: {KAPPA!r} or {INVERSE!r}")

    def __call__(self, batch_size: Any) -> Any:
        """The value at a batch size (a Fraction if the coefficients are), or at an array of them."""
        if np.ndim(batch_size):
            return np.array([self(b) for b in np.asarray(batch_size).tolist()])
        if not 1 <= batch_size <= (math.inf if self.n is None else self.n):
            raise InputError(f"batch_size={batch_size}: from 1 to {'any size' if self.n is None else self.n}")
        at = self._place(batch_size)
        total = 0 * self.coefficients[0]
        for c in self.coefficients[::-1]:
            total = at * total + c
        return total if self.exact else float(total)

    @property
    def exact(self) -> bool:
        return self.coefficients.dtype == object

    @property
    def degree(self) -> int:
        """That of the last coefficient that is not zero."""
        nonzero = np.flatnonzero(self.coefficients != 0)
        return int(nonzero[-1]) if len(nonzero) else 0

    @property
    def decreasing_beyond(self) -> float:
        """b_0: the value never rises with the batch size from b_0 on; 1 if it never does at all.

        From the first sign change of the derivative, isolated in exact arithmetic (float coefficients are taken as
        they are, so their own errors carry over). math.inf where the value rises towards the largest batches.
        """
        lowest = Fraction(1, self.n) if self.variable == INVERSE and self.n else Fraction(0)
        fall = first_fall([Fraction(c) for c in self.coefficients.tolist()], lowest, Fraction(1))
        if fall is None:
            return 1.0
        if fall == lowest:
            return math.inf
        if self.variable == INVERSE:
            return float(1 / fall)
        return float(self.n / (fall * (self.n - 1) + 1)) if self.n is not None else float(1 / fall)

    def in_inverse_batch(self) -> "BatchPolynomial":
        """The same as a polynomial in u = 1/b: kappa = (n u - 1) / (n - 1) without replacement, u with."""
        c = self.coefficients
        if self.variable == INVERSE or self.n is None or len(c) == 1:
            return BatchPolynomial(c, INVERSE, self.n)
        if self.n == 1:
            return BatchPolynomial(c[:1], INVERSE, 1)
        slope, shift = Fraction(self.n, self.n - 1), Fraction(-1, self.n - 1)
        one, zero = (slope, shift) if self.exact else (float(slope), float(shift))
        result = 0 * c
        for term in c[::-1]:  # Horner's scheme in kappa = slope u + shift
            result = zero * result + one * np.concatenate([0 * result[:1], result[:-1]])
            result[0] = result[0] + term
        return BatchPolynomial(result, INVERSE, self.n)

    def _place(self, b: Any) -> Any:
        number = Fraction(b) if self.exact else float(b)
        if self.variable == INVERSE or self.n is None:
            return 1 / number
        return (self.n - number) / (number * (self.n - 1)) if self.n > 1 else 0 * number
