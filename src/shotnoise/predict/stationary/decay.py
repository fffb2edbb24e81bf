"""The weight decay of least test loss, negative where theory says so, with the interval in which SGD is stable.

For Gamma = gamma I and a scalar rate everything commutes: in the eigenbasis of A, b_i(gamma) = slope_i / lambda + E_i -
a_i^2 / S, second moments exist if and only if diag(b) - a a^T / S is positive definite. It is a concave function of
gamma, so the stable gammas are an interval. In one dimension, without momentum,

    gamma = (1 - a lambda -+ sqrt(1 - (2/S) a^2 lambda^2)) / lambda,    the ends of the interval,

and without label noise the best gamma is negative if and only if S > 2 and 2 S / (S + 2) < a lambda < sqrt(S / 2), and
0 wherever 0 is stable; with label noise it has the sign of 1 - a lambda. Source: Corollaries 1 and 4 of Ziyin et al.
(2022), corrected (S > 2, not S != 2).
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import Array, Rates, covariance, variance, vector, whole_batches
from shotnoise.predict.stationary.modes import NULL

GRID = 400  # of gammas from which the minimum is refined


def optimal_weight_decay(
    feature_covariance: ArrayLike,
    target: ArrayLike,
    learning_rate: float,
    batch_size: int,
    *,
    label_variance: float = 0.0,
    momentum: float = 0.0,
) -> xr.Dataset:
    """The weight decay gamma (penalty gamma/2 ||w||^2) with the least stationary test loss, and the stable interval.

    Arguments as in `gaussian`, one learning rate and one batch size. Returns `optimal_l2`, `test_loss` there,
    `test_loss_undecayed` at gamma = 0 (NaN where that diverges), and `lowest_l2` and `highest_l2`, the ends of the open
    interval of gammas at which second moments exist (all NaN where there is none: `status` "diverges").

    >>> r = optimal_weight_decay([2.0], [1.0], learning_rate=1.0, batch_size=16)
    >>> [round(float(r[name]), 6) for name in ("lowest_l2", "optimal_l2", "highest_l2")]
    [-1.707107, -0.40693, -0.292893]
    """
    A = covariance("feature_covariance", feature_covariance)
    p = len(A)
    u, sigma2 = vector("target", target, p), variance("label_variance", label_variance)
    check_momentum(momentum)
    rates, (sizes, one) = Rates.of(learning_rate, p), whole_batches(batch_size)
    if rates.kind != "number" or not one:
        raise InputError("learning_rate and batch_size: one number each; call again for others")
    values, vectors = np.linalg.eigh(A)
    if not values[0] > NULL * values[-1]:
        raise InputError(
            "feature_covariance is singular: leave out the directions without features, where any decay is as good"
        )
    problem = _Decayed(
        np.asarray(values, np.float64),
        (vectors.T @ u) ** 2,
        sigma2,
        float(rates.multiples[0]),
        1 / int(sizes[0]),
        momentum,
    )
    low, high = problem.interval()
    best = problem.best(low, high)
    found = {
        "optimal_l2": best,
        "test_loss": problem.test_loss(best),
        "test_loss_undecayed": problem.test_loss(0.0) if low < 0 < high else np.nan,
        "lowest_l2": low,
        "highest_l2": high,
        "status": "diverges" if np.isnan(low) else "stationary",
    }
    attributes = {
        "theory": "exact second moments of SGD on a linear model, fresh samples at every step",
        "parameters": p,
        "momentum": float(momentum),
    }
    coordinates = {"learning_rate": rates.multiples[0], "batch_size": sizes[0]}
    return results.dataset({name: ((), value) for name, value in found.items()}, coordinates, attributes)


@dataclass(frozen=True)
class _Decayed:
    """The problem in the eigenbasis of A, as a function of gamma alone."""

    features: Array  # a (p,)
    signal: Array  # u^2 (p,)
    label_variance: float
    rate: float
    s: float  # 1 / S
    momentum: float

    def room(self, gamma: float) -> Array:
        """b (p,)."""
        k, mu = self.features + gamma, self.momentum
        return 2 * (1 - mu) * k / self.rate - (1 - mu) / (1 + mu) * k**2 - self.s * self.features**2

    def margin(self, gamma: float) -> float:
        """Positive where second moments exist; concave."""
        coupling = self.s * np.outer(self.features, self.features)
        return float(np.linalg.eigvalsh(np.diag(self.room(gamma)) - coupling)[0])

    def interval(self) -> tuple[float, float]:
        """The open interval of stable gammas; NaN if there is none."""
        low = -float(self.features[0])
        high = 2 * (1 + self.momentum) / self.rate - float(self.features[-1])
        if low < high:
            found = minimize_scalar(
                lambda g: -self.margin(g), bounds=(low, high), options={"xatol": 1e-12 * (high - low)}
            )
            inside = float(found.x)
            if self.margin(inside) > 0:
                return (
                    float(brentq(self.margin, low, inside, xtol=1e-14)),
                    float(brentq(self.margin, inside, high, xtol=1e-14)),
                )
        return float("nan"), float("nan")

    def test_loss(self, gamma: float) -> float:
        """From the diagonal of Sigma; NaN for gamma NaN."""
        a, b = self.features, self.room(gamma)
        bias = a * self.signal * (gamma / (a + gamma)) ** 2
        noise = a**2 * (self.label_variance + bias.sum()) + a**2 * bias  # a_i (e2 a_i + q_i^2)
        trace = self.s * (noise / b).sum() / (1 - self.s * (a**2 / b).sum())
        return float(0.5 * (trace + bias.sum()))

    def best(self, low: float, high: float) -> float:
        if np.isnan(low):
            return low
        grid = low + (high - low) * (np.arange(GRID) + 0.5) / GRID
        near = grid[int(np.argmin([self.test_loss(float(g)) for g in grid]))]
        step = (high - low) / GRID
        bounds = (max(low, near - step), min(high, near + step))
        return float(minimize_scalar(self.test_loss, bounds=bounds, options={"xatol": 1e-12 * step}).x)
