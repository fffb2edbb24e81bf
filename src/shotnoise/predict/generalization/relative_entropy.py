"""Relative entropies: binary, its inverse, of Gaussians with diagonal covariance; and the constant of the PAC-Bayes
bound.

    kl(p || q) = p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)),     kl^-1(p, B) = sup {q >= p : kl(p || q) <= B}

    2 KL(Q || P) = sum_j (1/(s_j^2 nu_j) - 1) + sum_j (w_j - w0_j)^2 / s_j^2 + sum_j ln(s_j^2 nu_j)
    P = N(w0, diag s_j^2),   Q = N(w, diag 1/nu_j)

    xi(n) = sum_k C(n, k) (k/n)^k (1 - k/n)^(n - k),     sqrt(n) <= xi(n) <= 2 sqrt(n)   (n >= 8; Maurer 2004)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp, xlog1py, xlogy

from shotnoise.errors import InputError

Array = NDArray[np.float64]
CONSTANTS = ("n + 1", "2 sqrt(n)", "exact")


def binary_kl(p: float, q: float) -> float:
    """kl(p || q) in nats, for p and q in [0, 1].

    >>> round(binary_kl(0.1, 0.2), 6)
    0.03669
    """
    _require_probability("p", p)
    _require_probability("q", q)
    if (q == 0 and p > 0) or (q == 1 and p < 1):
        return np.inf
    cross = xlogy(p, q) + xlog1py(1 - p, -q)
    return float(max(0.0, xlogy(p, p) + xlog1py(1 - p, -p) - cross))


def kl_inverse(p: float, budget: float) -> float:
    """The largest q with kl(p || q) <= budget, by Brent's method in ln(1 - q), so that q near 1 keeps its digits.

    >>> round(kl_inverse(0.1, 0.0367560), 7), kl_inverse(0.0, 0.0)
    (0.2001055, 0.0)
    """
    _require_probability("p", p)
    if not budget >= 0:
        raise InputError(f"budget={budget}: a number of nats, not negative")
    if p == 1 or budget == 0:
        return float(p)
    if np.isinf(budget):
        return 1.0
    if p == 0:
        return float(-np.expm1(-budget))
    own = float(xlogy(p, p) + xlog1py(1 - p, -p))

    def excess(u: float) -> float:
        return own - p * np.log(-np.expm1(u)) - (1 - p) * u - budget

    near = np.log1p(-p)
    if excess(near) >= 0:  # a budget of rounding
        return float(p)
    far = (own - budget) / (1 - p)  # there (1 - p)(-u) alone is enough
    return float(-np.expm1(brentq(excess, far - 1e-12 * abs(far), near, xtol=1e-15, rtol=1e-15)))


def log_constant(n: int, name: str = "exact") -> float:
    """ln of C_n of the bound: "n + 1" as printed, "2 sqrt(n)" of Maurer, or xi(n), the sum itself ("exact").

    >>> [round(float(np.exp(log_constant(n))), 10) for n in (1, 2)]
    [2.0, 2.5]
    """
    if n < 1:
        raise InputError(f"n={n}: at least one sample")
    if name == "n + 1":
        return float(np.log(n + 1))
    if name == "2 sqrt(n)":
        return float(np.log(2 * np.sqrt(n)))
    k = np.arange(n + 1)
    log_binomial = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return float(logsumexp(log_binomial + xlogy(k, k / n) + xlogy(n - k, (n - k) / n)))


@dataclass(frozen=True)
class GaussianKL:
    """The parts of 2 KL above, and what the paper's bound of it drops."""

    shrinkage: float  # sum_j (1/(s_j^2 nu_j) - 1), not positive
    weighted_frobenius: float
    effective_curvature: float
    curved_directions: int

    @property
    def value(self) -> float:
        return 0.5 * (self.shrinkage + self.weighted_frobenius + self.effective_curvature)

    @property
    def upper(self) -> float:
        """(106): the first sum dropped."""
        return 0.5 * (self.weighted_frobenius + self.effective_curvature)


def gaussian_kl(distance: Array, prior_variance: Array, precision: Array) -> GaussianKL:
    """distance: w - w0 (p,); prior_variance: s_j^2; precision: nu_j >= 1/s_j^2 of the posterior."""
    ratio = prior_variance * precision
    curved = ratio > 1
    return GaussianKL(
        float((1 / ratio[curved] - 1).sum()),
        float((distance**2 / prior_variance).sum()),
        float(np.log(ratio[curved]).sum()),
        int(curved.sum()),
    )


def _require_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name}={value}: a probability between 0 and 1 is needed")
