"""The law of a quadratic form in Gaussian noise, by one integral along a contour, to about 12 digits.

    X = c_0 + sum_j [l_j z_j^2 + a_j z_j],   z standard normal, l of any sign
    K(s) = log E exp(s X) = c_0 s + sum_j [-1/2 log(1 - 2 s l_j) + s^2 a_j^2 / (2 (1 - 2 s l_j))]
    P(X > x) = (1/pi) int_0^inf Re[exp(K(z) - z x) / z  dz/(i dt)] dt      (+ 1 where the contour starts left of 0)

The contour starts at the saddle point K'(s) = x and bends towards the side on which exp(-z x) decays: along a straight
line forms of one or two eigenvalues decay like a power only. Trapezoid rule, with an estimate of its error. After Imhof
(1961) and Davies (1980); the saddle-point approximation is that of Lugannani and Rice (1980).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

Array = NDArray[np.float64]
FURTHEST = 1e12  # in standard deviations, where the saddle point is looked for
STEP, END = 1 / 64, 24.0  # of the trapezoid rule in t, where the distance from the saddle grows like sinh t
BEND = 0.35  # real over imaginary part of the contour far out
NEAR = 0.5  # closer to the pole at 0 than this, in units of 1 / sqrt(K''), the contour starts aside
SMALL = 1e-3  # of the largest eigenvalue: smaller ones matter only where nothing is left of the integrand
ENOUGH = 1e-12  # error, relative to the smaller tail, that ends the search for a contour
BLOCK, NOTHING = 64, 1e-20  # points of the contour at a time, and what ends it, relative to its start


@dataclass(frozen=True)
class QuadraticForm:
    """X above: offset c_0, linear a (r,), eigenvalues l (r,).

    >>> square = QuadraticForm(0.0, np.zeros(1), np.ones(1))     # chi square with one degree of freedom
    >>> float(round(square.sf(3.841458820694124), 12))
    0.05
    """

    offset: float
    linear: Array
    eigenvalues: Array

    @property
    def mean(self) -> float:
        return float(self.offset + self.eigenvalues.sum())

    @property
    def variance(self) -> float:
        return float((self.linear**2).sum() + 2 * (self.eigenvalues**2).sum())

    @cached_property
    def support(self) -> tuple[float, float]:
        """The smallest and largest value; infinite on a side where the form is unbounded."""
        l, a = self.eigenvalues, self.linear  # noqa: E741
        linear = bool((a[l == 0] != 0).any())
        curved = l != 0
        vertex = float(self.offset - (a[curved] ** 2 / (4 * l[curved])).sum())
        low = -np.inf if linear or (l < 0).any() else vertex
        high = np.inf if linear or (l > 0).any() else vertex
        return low, high

    def cumulants(self, s: float) -> tuple[float, float, float]:
        """K, K' and K'' at a real s inside the strip where K is finite."""
        l, a = self.eigenvalues, self.linear  # noqa: E741
        left = 1 - 2 * s * l
        zero = self.offset * s + (-0.5 * np.log(left) + (s * a) ** 2 / (2 * left)).sum()
        first = self.offset + (l / left + s * a**2 * (1 - s * l) / left**2).sum()
        second = (2 * l**2 / left**2 + a**2 / left**3).sum()
        return float(zero), float(first), float(second)

    def saddle(self, x: float) -> float:
        """The s with K'(s) = x; infinite where x is beyond what floating point can tell from the end of the support."""
        low, high = self._strip
        scale = 1 / np.sqrt(self.variance)

        def place(u: float) -> float:
            """From the real line into the strip, the identity (times scale) near 0."""
            t = u * scale
            if u > 0:
                return t if np.isinf(high) else t / (1 + t / high)
            return t if np.isinf(low) else t / (1 + t / low)

        def gap(u: float) -> float:
            return self.cumulants(place(u))[1] - x

        reach = back = 1.0
        while gap(reach) < 0:
            reach *= 8
            if reach > FURTHEST:
                return np.inf
        while gap(-back) > 0:
            back *= 8
            if back > FURTHEST:
                return -np.inf
        return float(place(brentq(gap, -back, reach, xtol=1e-13)))

    def sf(self, x: float) -> float:
        """P(X > x)."""
        return self.sf_with_error(x)[0]

    def sf_with_error(self, x: float) -> tuple[float, float]:
        """P(X > x) and an estimate of the error of the integration."""
        low, high = self.support
        if self.variance == 0:
            return float(x < self.offset), 0.0
        if x <= low or x >= high:
            return float(x <= low), 0.0
        start, second = self._start(x)
        if np.isinf(start):
            return float(start < 0), 0.0
        first = BEND * self._side(x)
        best = 0.0, np.inf
        for bend in (first, 0.0, -first):  # all are the same integral; where one cancels or diverges, another does not
            found = self._along(start, second, bend, x)
            best = min(best, found, key=lambda each: each[1])
            if best[1] < ENOUGH * min(1.0, abs(best[0])):
                break
        value, error = best
        return float(np.clip(value + (start < 0), 0, 1)), error

    def _along(self, start: float, second: float, bend: float, x: float) -> tuple[float, float]:
        """The integral along one contour, and an estimate of its error: twice the step, rounding, what is cut off."""
        t, blocks = np.arange(0, END + STEP / 2, STEP), list[Array]()
        for k in range(0, len(t), BLOCK):
            blocks.append(self._integrand(t[k : k + BLOCK], start, second, bend, x))
            if not np.abs(blocks[-1]).max() > NOTHING * abs(blocks[0][0]):
                break
        terms = np.concatenate(blocks)
        if not np.isfinite(terms).all():
            return 0.0, np.inf
        terms[0] /= 2
        fine, coarse = STEP * terms.sum(), 2 * STEP * terms[::2].sum()
        size = np.abs(terms)
        error = abs(fine - coarse) + np.finfo(float).eps * STEP * size.sum() + size[-1]
        return float(fine / np.pi), float(error / np.pi)

    def saddlepoint_sf(self, x: float) -> float:
        """P(X > x) by Lugannani and Rice: errors of a few per cent in the tails; NaN at the mean, where it is 0/0."""
        s = self.saddle(x)
        if np.isinf(s):
            return float(s < 0)
        K, _, second = self.cumulants(s)
        w = np.sign(s) * np.sqrt(max(0.0, 2 * (s * x - K)))
        u = s * np.sqrt(second)
        if abs(w) < 1e-4:
            return float("nan")
        density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi)
        return float(ndtr(-w) + density * (1 / u - 1 / w))

    def isf(self, probability: float) -> float:
        """x with P(X > x) = probability."""
        scale, centre = np.sqrt(self.variance), self.mean
        low, high = centre - scale, centre + scale
        while self.sf(high) > probability:
            high += 2 * (high - centre)
        while self.sf(low) < probability:
            low -= 2 * (centre - low)
        return float(brentq(lambda x: self.sf(x) - probability, low, high, xtol=1e-10 * scale, rtol=1e-14))

    @property
    def _strip(self) -> tuple[float, float]:
        top, bottom = self.eigenvalues.max(initial=0.0), self.eigenvalues.min(initial=0.0)
        return (1 / (2 * bottom) if bottom < 0 else -np.inf), (1 / (2 * top) if top > 0 else np.inf)

    def _start(self, x: float) -> tuple[float, float]:
        """Where the contour leaves the real axis, and K'' there."""
        s = self.saddle(x)
        if np.isinf(s):
            return s, np.nan
        second = self.cumulants(s)[2]
        if abs(s) * np.sqrt(second) < NEAR:
            low, high = self._strip
            aside = NEAR / np.sqrt(self.variance)
            s = min(aside, high / 2) if s >= 0 else max(-aside, low / 2)
            second = self.cumulants(s)[2]
        return s, second

    def _integrand(self, t: Array, start: float, second: float, bend: float, x: float) -> Array:
        l, a = self.eigenvalues, self.linear  # noqa: E741
        scale = 1 / np.sqrt(second)
        z = start + scale * (bend * (np.cosh(t) - 1) + 1j * np.sinh(t))
        slope = scale * (bend * np.sinh(t) + 1j * np.cosh(t))
        left: Any = 1 - 2 * z[:, None] * l
        K = self.offset * z + (-0.5 * np.log(left) + (z[:, None] * a) ** 2 / (2 * left)).sum(1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray((np.exp(K - z * x) / z * slope / 1j).real)

    def _side(self, x: float) -> float:
        """+1 if exp(K(z) - z x) decays to the right far out, -1 to the left, the smallest eigenvalues set aside."""
        l, a = self.eigenvalues, self.linear  # noqa: E741
        curved = np.abs(l) > SMALL * np.abs(l).max(initial=0.0)
        return 1.0 if x > self.offset - (a[curved] ** 2 / (4 * l[curved])).sum() else -1.0
