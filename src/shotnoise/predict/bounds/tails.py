"""Tails of sums and of quadratic forms, with constants that are derived rather than "absolute".

Noise model: X = sum_j [l_j (z_j^2 - 1) + a_j z_j], l_j >= 0, z standard normal, or z uniform on the sphere of radius
sqrt(p), whose moment generating function is smaller (Jensen over the radius). With v = |a|^2 + 2 |l|^2, c = 2 max l,

    log E exp(t X) = sum_j [-1/2 log(1 - 2 t l_j) - t l_j + t^2 a_j^2 / (2 (1 - 2 t l_j))] <= v t^2 / (2 (1 - c t))
    P[X >= s] <= exp(-(v / c^2) h(c s / v)) <= exp(-s^2 / (2 (v + c s))),   h(u) = 1 + u - sqrt(1 + 2 u)

and, v being alpha_1^2 + 2 alpha_2^2 and c = 2 alpha_3, exp(-min(s^2/alpha_1^2, s^2/alpha_2^2, s/alpha_3) / 10).

Real batches: the mean of m of the numbers Y_1 .. Y_n, drawn with or without replacement (Hoeffding 1963, theorem 4):
Bernstein's inequality, or the bound of Chernoff with the numbers themselves.
Source: Theorem 1 and appendix D of Li, Gu, Zhou, Chen, Banerjee, with the constants made explicit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
SUB_GAMMA, BERNSTEIN, CHERNOFF, PRINTED = "sub-gamma", "bernstein", "chernoff", "printed, c = 1/10"
PRINTED_CONSTANT = 0.1  # valid with prefactor 1: alpha_1^2 + 2 alpha_2^2 + 2 alpha_3 s <= 5 s^2 / min(...)
REACH = 8.0  # e-folds around the sub-gamma choice of t that are searched for Chernoff's


@dataclass(frozen=True)
class NoiseTail:
    """Upper tail of X above: eigenvalues l (r,) and linear coefficients a (r,)."""

    eigenvalues: Array
    linear: Array

    @property
    def alphas(self) -> tuple[float, float, float]:
        """alpha_1 = |a|, alpha_2 = |l|_2, alpha_3 = max l."""
        l = self.eigenvalues  # noqa: E741 - the letter of the formula
        return float(np.linalg.norm(self.linear)), float(np.linalg.norm(l)), float(l.max(initial=0.0))

    @property
    def v(self) -> float:
        first, second, _ = self.alphas
        return first**2 + 2 * second**2

    @property
    def c(self) -> float:
        return 2 * self.alphas[2]

    def log_mgf(self, t: float) -> float:
        left = 1 - 2 * t * self.eigenvalues
        if left.min(initial=1.0) <= 0:
            return np.inf
        return float((-0.5 * np.log(left) - t * self.eigenvalues + (t * self.linear) ** 2 / (2 * left)).sum())

    def log_probability(self, s: float, form: str = SUB_GAMMA) -> float:
        """An upper bound of log P[X >= s], s > 0."""
        if s <= 0 or self.v == 0:
            return 0.0 if s <= 0 else -np.inf
        v, c = self.v, self.c
        if form == SUB_GAMMA:
            u = c * s / v  # h(u) v / c^2, written so that it has no difference and no division by c
            return -(s**2 / v) / (1 + u + np.sqrt(1 + 2 * u))
        if form == BERNSTEIN:
            return -(s**2) / (2 * (v + c * s))
        if form == PRINTED:
            powers = (s**2, s**2, s)
            scaled = [q / a ** (1 + (k < 2)) for k, (q, a) in enumerate(zip(powers, self.alphas, strict=True)) if a > 0]
            return -PRINTED_CONSTANT * min(scaled)
        return min(0.0, _least(lambda t: self.log_mgf(t) - t * s, c, v / s))

    def threshold(self, probability: float, form: str = SUB_GAMMA) -> float:
        """s with P[X >= s] <= probability."""
        x, v, c = -np.log(probability), self.v, self.c
        if v == 0:
            return 0.0
        if form == SUB_GAMMA:
            return float(np.sqrt(2 * v * x) + c * x)
        if form == BERNSTEIN:
            return float(c * x + np.sqrt((c * x) ** 2 + 2 * v * x))
        if form == PRINTED:
            first, second, third = self.alphas
            y = x / PRINTED_CONSTANT
            return float(max(max(first, second) * np.sqrt(y), third * y))
        return _least(lambda t: (self.log_mgf(t) + x) / t, c, np.sqrt(v / (2 * x)))


@dataclass(frozen=True)
class BatchTail:
    """Upper tail of (mean over a batch of m) - (mean over all) for numbers Y (n,)."""

    values: Array
    batch_size: int

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def largest(self) -> float:
        """No batch exceeds the mean by more."""
        return float(self.values.max()) - self.mean

    def log_mgf(self, t: float) -> float:
        """log of the mean of exp(t (Y - mean))."""
        exponents = t * (self.values - self.mean)
        top = exponents.max()
        return float(top + np.log(np.exp(exponents - top).mean()))

    def log_probability(self, s: float, form: str = BERNSTEIN) -> float:
        variance, m = float(self.values.var()), self.batch_size
        if s <= 0 or variance == 0:
            return 0.0 if s <= 0 else -np.inf
        if form == BERNSTEIN:
            return -m * s**2 / (2 * (variance + s * self.largest / 3))
        if s > self.largest:
            return -np.inf
        return min(0.0, m * _least(lambda t: self.log_mgf(t) - t * s, 0.0, variance / s))

    def threshold(self, probability: float, form: str = BERNSTEIN) -> float:
        variance, m = float(self.values.var()), self.batch_size
        x = -np.log(probability) / m
        if variance == 0:
            return 0.0
        if form == BERNSTEIN:
            third = x * self.largest / 3
            return float(third + np.sqrt(third**2 + 2 * variance * x))
        found = _least(lambda t: (self.log_mgf(t) + x) / t, 0.0, np.sqrt(variance / (2 * x)))
        return min(found, self.largest)


def _least(function: Callable[[float], float], c: float, typical: float) -> float:
    """The least value over t = 1 / (c + w), w around `typical`; every t gives a valid bound, the search only helps."""

    def at(log_w: float) -> float:
        return function(1 / (c + np.exp(log_w)))

    centre = np.log(typical)
    return float(minimize_scalar(at, bounds=(centre - REACH, centre + REACH), method="bounded").fun)
