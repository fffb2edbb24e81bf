"""Polynomial activations with Gaussian inputs, exactly: batches enter through the means of a few monomials of x.

A per-sample gradient is a polynomial of some degree r in x ~ N(0, I_p), hence sum_i l_i(x) g(w; x_i) over lattice
points x_i and their Lagrange polynomials l_i: a batch acts like the points of `points`, with means of the l_i in place
of shares. What is known of those are the joint cumulants kappa_a of the monomials of one sample: the cumulants of the
mean are u^(|a| - 1) kappa_a, and moments and cumulants give each other by

    m_{a + e_i} = sum_{c <= a} binom(a, c) kappa_{c + e_i} m_{a - c}.
"""

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks import points
from shotnoise.predict.networks.laws import weights_of
from shotnoise.predict.networks.model import Network
from shotnoise.predict.networks.residues import Residues, matmul, reduced
from shotnoise.predict.networks.wishart import Exponents, monomials


@dataclass(frozen=True)
class GaussianInputs:
    """x ~ N(0, I_p) for per-sample gradients of degree r in x; n lattice points for the mean of their squares."""

    p: int
    degree: int

    @classmethod
    def of(cls, network: Network) -> "GaussianInputs":
        activated = 1 if network.activation is None else len(network.activation) - 1
        own, other = activated ** (network.depth - 1), activated ** (len(network.teacher) - 1)
        return cls(network.p, own + max(own, other))

    @property
    def points(self) -> Array:
        return np.array(monomials(self.p, 2 * self.degree), dtype=object) * Fraction(1)

    @property
    def n(self) -> int:
        return math.comb(self.p + 2 * self.degree, self.p)

    @property
    def features(self) -> int:
        """How many means a batch enters through."""
        return math.comb(self.p + self.degree, self.p) - 1

    def shares(self, q: int) -> Residues:
        """The weights of the points in the mean of a polynomial of degree 2 r."""
        exponents = np.array(monomials(self.p, 2 * self.degree))
        moments = np.array([[normal_moment(own) % q] for own in exponents.tolist()], dtype=object).astype(np.uint64)
        return weights_of(exponents, moments, 2 * self.degree, q)[:, 0]

    def law(self, degree: int, q: int) -> tuple[Residues, Residues]:
        """The coefficients of points (the first of them, N) on a lattice of means, and the weights of that lattice."""
        own = np.array(monomials(self.p, self.degree))
        lagrange = weights_of(own, np.eye(len(own), dtype=np.uint64), self.degree, q)  # (points, monomials)
        exponents, moments = _means(self.p, self.degree, degree)
        means = np.concatenate([np.ones((len(exponents), 1), int), exponents], axis=1).astype(np.uint64)
        weights = weights_of(exponents, reduced((moments % q).astype(np.uint64), q), degree, q)
        return matmul(lagrange, np.ascontiguousarray(means.T), q), weights


def cost(network: Network, quantity: str) -> float:
    """Seconds on one core, about."""
    own = GaussianInputs.of(network)
    return points.lattice_cost(network, quantity, own.n, own.features)


def normal_moment(exponents: Exponents) -> int:
    """E prod x_i^{a_i} for independent standard normal x_i.

    >>> normal_moment((4, 2)), normal_moment((1, 2))
    (3, 0)
    """
    if any(a % 2 for a in exponents):
        return 0
    return math.prod(math.prod(range(a - 1, 0, -2)) for a in exponents)


@lru_cache(maxsize=8)
def _means(p: int, degree: int, total: int) -> tuple[Array, Array]:
    """Exponents a (N, features) with |a| <= total, and the moments of the means as integers (N, powers of u)."""
    features = np.array(monomials(p, degree))[1:]
    exponents = monomials(len(features), total)
    cumulants: dict[Exponents, int] = {}
    moments: dict[Exponents, int] = {}
    averages: dict[Exponents, Array] = {}
    size = max(total, 1)
    for a in exponents:
        moments[a] = normal_moment(tuple((np.array(a) @ features).tolist()))
        if not any(a):
            averages[a] = np.array([1] + [0] * (size - 1), dtype=object)
            continue
        i = next(k for k, own in enumerate(a) if own)
        before = (*a[:i], a[i] - 1, *a[i + 1 :])
        cumulants[a], average = moments[a], np.zeros(size, dtype=object)
        for c in itertools.product(*(range(own + 1) for own in before)):
            raised = (*c[:i], c[i] + 1, *c[i + 1 :])
            left = tuple(x - y for x, y in zip(before, c, strict=True))
            ways = math.prod(math.comb(x, y) for x, y in zip(before, c, strict=True))
            if raised != a:
                cumulants[a] -= ways * cumulants[raised] * moments[left]
            power = sum(c)
            average[power:] += ways * cumulants[raised] * averages[left][: size - power]
        averages[a] = average
    return np.array(exponents), np.array([averages[a] for a in exponents])
