"""Where a polynomial with rational coefficients first falls, in exact arithmetic."""

from fractions import Fraction
from typing import Any

PRECISION = Fraction(1, 2**60)


def first_fall(coefficients: list[Fraction], low: Fraction, high: Fraction) -> Fraction | None:
    """The smallest s in [low, high) from which on the polynomial falls, right to 2^-60; None if it never does.

    Roots of the derivative are isolated on its factors of odd multiplicity alone: where it touches zero without
    changing sign, nothing falls.

    >>> first_fall([Fraction(0), Fraction(1), Fraction(-1)], Fraction(0), Fraction(1))
    Fraction(1, 2)
    """
    slope = [k * c for k, c in enumerate(coefficients)][1:]
    if all(c >= 0 for c in slope) and low >= 0:
        return None
    from sympy import QQ, Poly, Rational, Symbol, prod  # half a second, for polynomials of mixed signs only

    def rational(value: Fraction) -> Any:
        return Rational(value.numerator, value.denominator)

    x = Symbol("x")
    derivative = Poly([rational(c) for c in reversed(slope)], x, domain=QQ)
    if derivative.is_zero:
        return None
    if _sign_after(derivative, rational(low)) < 0:
        return low
    odd = prod([factor for factor, multiplicity in derivative.sqf_list()[1] if multiplicity % 2], start=Poly(1, x))
    roots = odd.intervals(inf=rational(low), sup=rational(high), eps=rational(PRECISION)) if odd.degree() > 0 else []
    for (left, right), _ in roots:
        middle = (left + right) / 2
        found = Fraction(int(middle.p), int(middle.q))
        if low < found < high:
            return found
    return None


def _sign_after(polynomial: Any, low: Any) -> int:
    """The sign just above low."""
    while not polynomial.is_zero:
        value = polynomial.eval(low)
        if value != 0:
            return 1 if value > 0 else -1
        polynomial = polynomial.diff()
    return 0
