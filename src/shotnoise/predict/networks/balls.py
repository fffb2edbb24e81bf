"""Polynomials in the centred entries of sample covariances, in floats, every coefficient with a bound on its error.

Variables: the entries of (S_s - I) / scale_s, scale_s a power of two, s = 0 .. t-1. Coefficients are kept by blocks,
those of S_0 along the rows and all others along the columns, each block by total degree as in `monomials`. Around S = I
the coefficients are derivatives along the path of plain gradient descent, so that little cancels.

Bounds hold for every rounding: |fl(sum of n products) - sum| <= n eps sum of |products| (and what may underflow), and
errors that come in are multiplied along, |x y - a b| <= |a| r_b + r_a (|b| + r_b). They are themselves computed in
floats, which INFLATION makes up for.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.wishart import centred_moments, entries, monomials

Indices = NDArray[np.intp]
EPS = 2.0**-53
TINY = 2.0**-1000  # far above what underflow can take off
INFLATION = 1 + 2.0**-20  # far above n eps


@dataclass(frozen=True)
class Space:
    """The variables: p (p + 1) / 2 entries of each (S_s - I) / scales[s]."""

    p: int
    scales: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.scales)

    @property
    def variables(self) -> int:
        return len(entries(self.p))

    def size(self, degrees: tuple[int, ...]) -> int:
        """How many monomials there are of these degrees in all S_s named."""
        return math.prod(math.comb(self.variables + d, d) for d in degrees)

    def constant(self, value: float, error: float = 0.0) -> "Ball":
        return Ball(self, (0,) * self.steps, np.full((1, 1), value), np.full((1, 1), error))

    def covariance(self, s: int) -> list[list["Ball"]]:
        """S_s, a matrix of polynomials of degree one."""
        degrees = tuple(int(k == s) for k in range(self.steps))
        found: list[list[Ball]] = [[None] * self.p for _ in range(self.p)]  # type: ignore[list-item]
        for k, (i, j) in enumerate(entries(self.p)):
            own = np.zeros(1 + self.variables)
            own[0], own[k + 1] = float(i == j), self.scales[s]
            values = own.reshape((-1, 1) if s == 0 else (1, -1))
            found[i][j] = found[j][i] = Ball(self, degrees, values, np.zeros_like(values))
        return found


@dataclass(frozen=True)
class Ball:
    """values and radii (monomials of S_0, monomials of all others), of degree degrees[s] in the entries of S_s."""

    space: Space
    degrees: tuple[int, ...]
    values: Array
    radii: Array

    def __add__(self, other: "Ball") -> "Ball":
        degrees = tuple(map(max, zip(self.degrees, other.degrees, strict=True)))
        (a, r), (b, s) = self._widened(degrees), other._widened(degrees)
        values = a + b
        return Ball(self.space, degrees, values, (r + s + EPS * np.abs(values)) * INFLATION)

    def __neg__(self) -> "Ball":
        return Ball(self.space, self.degrees, -self.values, self.radii)

    def __sub__(self, other: "Ball") -> "Ball":
        return self + (-other)

    def __mul__(self, other: "Ball") -> "Ball":
        left, right = (self, other) if self.values.shape[1] <= other.values.shape[1] else (other, self)
        a, b, r, s = left.values, right.values, left.radii, right.radii
        terms = min(a.size, b.size) + 1
        own = np.abs(b) * (terms * EPS) + s
        values = _product(self.space, left.degrees, a, right.degrees, b)
        radii = _product(self.space, left.degrees, np.abs(a), right.degrees, own)
        if r.any():
            radii += _product(self.space, left.degrees, r, right.degrees, np.abs(b) + s)
        degrees = tuple(x + y for x, y in zip(self.degrees, other.degrees, strict=True))
        return Ball(self.space, degrees, values, radii * INFLATION + TINY)

    def squared(self) -> "Ball":
        """One product fewer than by `*`: |a| (n eps |a| + 2 r) + r^2 <= (|a| + r) (n eps |a| + 2 r)."""
        a, r = np.abs(self.values), self.radii
        values = _product(self.space, self.degrees, self.values, self.degrees, self.values)
        radii = _product(self.space, self.degrees, a + r, self.degrees, a * ((a.size + 1) * EPS) + 2 * r)
        return Ball(self.space, tuple(2 * d for d in self.degrees), values, radii * INFLATION + TINY)

    def times(self, number: float, error: float) -> "Ball":
        """By a number known up to an error."""
        values = number * self.values
        radii = EPS * np.abs(values) + error * np.abs(self.values) + (abs(number) + error) * self.radii
        return Ball(self.space, self.degrees, values, radii * INFLATION + TINY)

    def start(self) -> float:
        """The value where every S_s is I."""
        return float(self.values[0, 0])

    def without_start(self) -> "Ball":
        """Less that very float: exact."""
        values = self.values.copy()
        values[0, 0] = 0.0
        return Ball(self.space, self.degrees, values, self.radii)

    def mean(self) -> tuple[Array, Array]:
        """The coefficients in u = 1/b of the mean over all S_s, and bounds on their errors."""
        sizes = [self.space.size((d,)) for d in self.degrees]
        values, radii = (own.reshape(*sizes, 1) for own in (self.values, self.radii))
        for s in reversed(range(self.space.steps)):
            law = _moments(self.space.p, self.degrees[s], self.space.scales[s])
            powers, own = values.shape[-1], law.shape[1]
            grown = np.zeros((*values.shape[:-2], powers + own - 1))
            error = np.zeros_like(grown)
            blurred = radii + (sizes[s] + min(powers, own) + 3) * EPS * np.abs(values)
            for k in range(powers):
                grown[..., k : k + own] += values[..., k] @ law
                error[..., k : k + own] += blurred[..., k] @ law + TINY * np.abs(values[..., k]).sum(-1)[..., None]
            values, radii = grown, error * INFLATION + TINY
        return values, radii

    def _widened(self, degrees: tuple[int, ...]) -> tuple[Array, Array]:
        """values and radii among the monomials of higher degrees; the lower ones come first in every block."""
        if degrees == self.degrees:
            return self.values, self.radii
        old = [self.space.size((d,)) for d in self.degrees]
        new = [self.space.size((d,)) for d in degrees]
        inside = tuple(slice(0, n) for n in old)
        found = []
        for own in (self.values, self.radii):
            wide = np.zeros(new)
            wide[inside] = own.reshape(old)
            found.append(wide.reshape(new[0], -1))
        return found[0], found[1]


def _product(space: Space, left: tuple[int, ...], a: Array, right: tuple[int, ...], b: Array) -> Array:
    """By columns of a, each of which multiplies all of b as a matrix that acts on the monomials of S_0."""
    rows = _places(space.variables, left[0], right[0])
    columns = _columns(space.variables, left[1:], right[1:])
    size = space.size((left[0] + right[0],))
    total = np.zeros((size, space.size(tuple(x + y for x, y in zip(left[1:], right[1:], strict=True)))))
    if a.shape[0] == 1:
        for k in range(a.shape[1]):
            total[:, columns[k]] += a[0, k] * b
        return total
    acting, place = np.zeros((size, b.shape[0])), np.arange(b.shape[0])
    for k in range(a.shape[1]):
        acting[rows, place] = a[:, k, None]
        total[:, columns[k]] += acting @ b
    return total


@lru_cache(maxsize=64)
def _places(variables: int, left: int, right: int) -> Indices:
    """Where the products of monomials lie: (monomials up to the degree `left`, up to `right`)."""
    first, second = (np.array(monomials(variables, d)).reshape(-1, variables) for d in (left, right))
    wide = left + right + 1
    radix = wide ** np.arange(variables)
    every = np.array(monomials(variables, left + right)).reshape(-1, variables) @ radix
    rising = np.argsort(every)
    return rising[np.searchsorted(every[rising], (first @ radix)[:, None] + second @ radix)]


@lru_cache(maxsize=64)
def _columns(variables: int, left: tuple[int, ...], right: tuple[int, ...]) -> Indices:
    """The same over several blocks."""
    found = np.zeros((1, 1), np.intp)
    for x, y in zip(left, right, strict=True):
        own = _places(variables, x, y)
        size = math.comb(variables + x + y, variables)
        found = found[:, None, :, None] * size + own[None, :, None, :]
        found = found.reshape(found.shape[0] * found.shape[1], -1)
    return found


@lru_cache(maxsize=32)
def _moments(p: int, degree: int, scale: float) -> Array:
    """E of every monomial in (S - I) / scale, (monomials, powers of u), correctly rounded."""
    exact = centred_moments(p, degree)
    table = np.zeros((len(exact), max(degree, 1)))
    numerator, denominator = scale.as_integer_ratio()
    for row, own in zip(table, exact.items(), strict=True):
        exponents, moments = own
        d = sum(exponents)
        for power, c in enumerate(moments):
            row[power] = c * denominator**d / numerator**d
    return table
