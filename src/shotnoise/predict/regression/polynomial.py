"""The same answers as explicit polynomials in kappa, the variance factor of the sampling: coefficients per step.

    P_t = sum_j kappa^j P_t^(j),    P_{t+1}^(j) = J P_t^(j) J + a^2 N_t^(j-1),    J = I - a H,

with N_t^(j) that of `recursion` for P_t^(j), the mean's share in N_t^(0) alone. Every coefficient matrix is positive
semidefinite and every coefficient non-negative, so nothing cancels. kappa = c_b = (n - b) / (b (n - 1)) without
replacement, 1/b with. With Fractions in, Fractions out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.regression.least_squares import Array, LeastSquares


@dataclass(frozen=True)
class Polynomials:
    """Coefficients by step: lists of arrays (degree + 1,), constant term first, as functions of kappa."""

    gradient_variance: list[Array]
    full_gradient_variance: list[Array]
    loss: list[Array]
    gradient_norm_sq: list[Array]


def polynomials(problem: LeastSquares, w0: Array, rates: Sequence[Any]) -> Polynomials:
    """For steps 0 .. len(rates); w0 (k, p). Costs O(steps^2 (n p^2 + p^3)) and memory O(steps p^2)."""
    x, s, n, hessian, moment = problem.x, problem.s, problem.n, problem.hessian, problem.moment
    identity = _identity_like(x, problem.p)
    mean, covariances = w0, [0 * hessian]
    found = Polynomials([], [], [], [])
    for t in range(len(rates) + 1):
        gradient = problem.gradient(mean)
        u = mean @ moment - problem.cross
        own = (problem.residuals(mean) ** 2).sum(0)  # summed over outputs, which share their batches
        noises = []
        for j, covariance in enumerate(covariances):
            spread = ((x @ covariance) * x).sum(1) + (own if j == 0 else 0)
            second = moment @ covariance @ moment + (u.T @ u if j == 0 else 0)
            noises.append((s**2 * spread * x.T) @ x / n - second)
        full = np.array([np.trace(hessian @ c @ hessian) for c in covariances])
        noise = np.array([np.trace(matrix) for matrix in noises])
        found.full_gradient_variance.append(full)
        found.gradient_variance.append(np.append(full, 0 * full[:1]) + np.append(0 * noise[:1], noise))
        spread_loss = np.array([np.trace(hessian @ c) for c in covariances]) / 2
        found.loss.append(_plus_constant(spread_loss, problem.loss(mean)))
        found.gradient_norm_sq.append(_plus_constant(full, (gradient**2).sum()))
        if t == len(rates):
            return found
        a = rates[t]
        contraction = identity - a * hessian
        moved = [contraction @ c @ contraction for c in covariances] + [0 * hessian]
        covariances = [moved[0]] + [m + a**2 * noise for m, noise in zip(moved[1:], noises, strict=True)]
        mean = mean - a * gradient
    raise AssertionError  # pragma: no cover


def in_inverse_batch(coefficients: Array, n: int | None) -> Array:
    """From a polynomial in kappa to one in u = 1/b: kappa = (n u - 1) / (n - 1) without replacement, u with.

    n: the number of samples drawn from without replacement, None for draws with replacement.
    """
    if n is None or len(coefficients) == 1:
        return coefficients
    if n == 1:
        return coefficients[:1]
    exact = coefficients.dtype == object
    slope = Fraction(n, n - 1) if exact else n / (n - 1)
    shift = Fraction(-1, n - 1) if exact else -1 / (n - 1)
    result = 0 * coefficients
    for c in coefficients[::-1]:  # Horner's scheme in kappa = slope u + shift
        result = shift * result + slope * np.concatenate([0 * result[:1], result[:-1]])
        result[0] = result[0] + c
    return result


def fractions(values: Any) -> Array:
    """An object array of Fractions from ints, Fractions, strings such as "1/3" or floats, which are taken exactly."""
    array = np.asarray(values, dtype=object)
    try:
        return np.vectorize(Fraction, otypes=[object])(array)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"exact arithmetic needs rational numbers: {error}") from error


def _plus_constant(coefficients: Array, constant: Any) -> Array:
    whole = coefficients.copy()
    whole[0] = whole[0] + constant
    return whole


def _identity_like(x: Array, p: int) -> Array:
    return fractions(np.eye(p, dtype=int)) if x.dtype == object else np.eye(p)
