"""Linear networks with Gaussian inputs, exactly: SGD run on a lattice of sample covariances, and their law on it.

A batch enters only through S_s = (1/b) sum x x^T, s < t, and what is asked at step t is a polynomial of degree d_s in
its entries. Such a polynomial is fixed by its values where the entries are whole numbers that sum to at most d_s, so

    E F(S_0, ..., S_{t-1}) = sum over lattice points of F, each with a weight that is a polynomial in u = 1/b:

the exact counterpart of a quadrature, at points where F is got by plainly training. All of it is done modulo primes,
with as many of them as the answer turns out to need. No polynomial is ever multiplied out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.forms import (
    FULL_GRADIENT,
    GRADIENT,
    LOSS,
    LOSS_VARIANCE,
    batch_degrees,
    weight_degree,
)
from shotnoise.predict.networks.laws import fits, mean_over, weights_of
from shotnoise.predict.networks.model import Network, trimmed
from shotnoise.predict.networks.residues import (
    CONFIRMING,
    Reconstruction,
    Residues,
    convolved,
    primes,
    product,
    reduced,
    residues,
)
from shotnoise.predict.networks.wishart import entries, monomials, wishart_moments

CHUNK = 2**15  # points trained side by side: what fits into the cache
OPERATIONS_PER_SECOND = 4e8  # multiplications modulo a prime, measured; OVERHEAD is that of a step for each prime
OVERHEAD = 2e-3


def degrees(network: Network, quantity: str) -> list[int]:
    """d_s, s = 0 .. t-1: of the quantity in the entries of S_s."""
    return batch_degrees(quantity, network.weight_degree, len(network.rates))


def cost(network: Network, quantity: str) -> float:
    """Seconds on one core, about: points x multiplications at each x primes; 1e300 where memory would not do."""
    m, d, p = network.p * (network.p + 1) // 2, degrees(network, quantity), network.p
    if not all(fits(m, own) for own in d):
        return 1e300
    points = math.prod(math.comb(m + own, m) for own in d)
    each = 40 + 6 * sum(rows * columns * (p + rows) for rows, columns in (W.shape for W in network.student))
    tables = sum((own + 1.0) ** (m + 1) * own * m for own in d)
    return (OVERHEAD * len(d) + (points * each + tables) / OPERATIONS_PER_SECOND) * (
        _bits(network, quantity) / 31 + CONFIRMING
    )


def polynomial(
    network: Network, quantity: str, layer: int, tell: Callable[[int, int], None] = lambda done, of: None
) -> list[Fraction]:
    """The coefficients in u, constant term first; `tell` hears of every prime that is done, of about how many."""
    scale = _denominator(network, quantity)
    found, expected = Reconstruction(), int(_bits(network, quantity) / 31) + CONFIRMING
    for done, q in enumerate(_suitable(scale)):
        tell(done, max(expected, done))
        values = _modulo(network, quantity, layer, q)
        found.add(reduced(values * np.uint64(scale % q), q), q)
        if found.settled >= CONFIRMING:
            break
    return trimmed([Fraction(value, scale) for value in found.values])


def _suitable(scale: int) -> Iterator[int]:
    return (q for q in primes() if scale % q)


def _modulo(network: Network, quantity: str, layer: int, q: int) -> Residues:
    """The same modulo a prime: E plain + u E scaled, less the squared means of the entries of inner."""
    problem = _Residual(
        [residues(W, q)[..., None] for W in network.student],
        residues(network.target, q)[..., None],
        [int(residues(a, q)) for a in network.rates],
        network.p,
        q,
    )
    own = degrees(network, quantity)
    if quantity == LOSS:
        return problem.means(own, lambda weights: half_squared_error(weights, problem))[0]
    half = [d // 2 for d in own]
    if quantity == LOSS_VARIANCE:
        squares = problem.means(own, lambda weights: squared_loss(weights, problem))
        inner = problem.means(half, lambda weights: half_squared_error(weights, problem))
    else:
        squares = problem.means(own, lambda weights: squared_forms(weights, problem, quantity, layer))
        inner = problem.means(half, lambda weights: full_gradient(weights, problem, layer))
    total = np.zeros(squares.shape[1] + 1, np.uint64)
    total[:-1] = squares[0]
    if quantity == GRADIENT:
        scaled = squares[1] if len(squares) > 1 else reduced(squares[0] * np.uint64(network.p + 1), q)
        total[1:] += scaled
    for entry in inner:
        square = convolved(entry, entry, q)
        total[: len(square)] = reduced(total[: len(square)] + np.uint64(q) - square, q)
    return reduced(total, q)


@dataclass(frozen=True)
class _Residual:
    """A network modulo q: weights and W* as matrices (rows, columns, 1), one for each point to come."""

    weights: list[Residues]
    target: Residues
    rates: list[int]
    p: int
    q: int

    def means(self, degrees: list[int], forms: Callable[[list[Residues]], Residues]) -> Residues:
        """E of forms, which take weights at n points to (forms, n), as coefficients (forms, powers of u)."""
        if not degrees:
            return forms(self.weights)
        (points, law), *others = [_law(self.p, d, self.q) for d in degrees]
        size = max(1, CHUNK // math.prod(own.shape[0] for _, own in others))
        tables = []
        for start in range(0, points.shape[-1], size):
            weights = _moved(self.weights, self.target, self.rates[0], points[..., start : start + size], self.q)
            for (further, _), a in zip(others, self.rates[1:], strict=True):
                weights = _moved(weights, self.target, a, further, self.q)
            table = forms(weights)[..., None]
            for _, own in reversed(others):
                table = mean_over(table.reshape(len(table), -1, own.shape[0], table.shape[-1]), own, self.q)
            tables.append(table)
        return mean_over(np.concatenate(tables, axis=1), law, self.q)


def half_squared_error(weights: list[Residues], problem: _Residual) -> Residues:
    """1/2 ||e||^2, (1, n)."""
    error, _, _ = _chains(weights, problem.target, problem.q)
    return reduced(_norm(error, problem.q) * np.uint64(pow(2, -1, problem.q)), problem.q)[None]


def squared_loss(weights: list[Residues], problem: _Residual) -> Residues:
    loss = half_squared_error(weights, problem)
    return reduced(loss * loss, problem.q)


def full_gradient(weights: list[Residues], problem: _Residual, layer: int) -> Residues:
    """The entries of L^T e R^T, (entries, n)."""
    _, inner, _ = _gradient(weights, problem, layer)
    return inner.reshape(-1, inner.shape[-1])


def squared_forms(weights: list[Residues], problem: _Residual, quantity: str, layer: int) -> Residues:
    """plain, and scaled where it is no fixed multiple of plain, (1 or 2, n)."""
    pulled, inner, R = _gradient(weights, problem, layer)
    plain = _norm(inner, problem.q)
    if quantity == FULL_GRADIENT or R is None or problem.p == 1:  # ||L^T e||^2 ||R||^2 is p or 1 times plain
        return plain[None]
    spread = reduced(_norm(pulled, problem.q) * _norm(R, problem.q), problem.q)
    return np.stack([plain, plain + spread])


def _gradient(weights: list[Residues], problem: _Residual, layer: int) -> tuple[Residues, Residues, Residues | None]:
    """L^T e, L^T e R^T and R."""
    error, after, before = _chains(weights, problem.target, problem.q)
    L, R = after[layer], before[layer]
    pulled = error if L is None else product(L.swapaxes(0, 1), error, problem.q)
    return pulled, pulled if R is None else product(pulled, R.swapaxes(0, 1), problem.q), R


def _moved(weights: list[Residues], target: Residues, rate: int, points: Residues, q: int) -> list[Residues]:
    """One update from each of n points in weight space (rows, columns, n) with each of N matrices S (p, p, N)."""
    error, after, before = _chains(weights, target, q)
    S = points[:, :, None, :]
    found = []
    for k, W in enumerate(weights):
        pulled = error if after[k] is None else product(after[k].swapaxes(0, 1), error, q)
        pulled = reduced(pulled * np.uint64(q - rate), q)[..., None]
        step = product(pulled, S, q)
        if before[k] is not None:
            step = product(step, before[k].swapaxes(0, 1)[..., None], q)
        moved = reduced(W[..., None] + step, q)
        found.append(moved.reshape(*W.shape[:2], -1))
    return found


def _chains(weights: list[Residues], target: Residues, q: int) -> tuple[Residues, list[Any], list[Any]]:
    """e; for each layer L, the product of the layers after it, and R, of those before it (None: the identity)."""
    before: list[Any] = [None]
    for W in weights:
        before.append(W if before[-1] is None else product(W, before[-1], q))
    after: list[Any] = [None]
    for W in weights[:0:-1]:
        after.append(W if after[-1] is None else product(after[-1], W, q))
    return reduced(before[-1] + np.uint64(q) - target, q), after[::-1], before[:-1]


def _norm(matrix: Residues, q: int) -> Residues:
    return reduced(reduced(matrix * matrix, q).sum((0, 1)), q)


@lru_cache(maxsize=8)
def _lattice(p: int, degree: int) -> tuple[Array, Array]:
    """The points as exponents (N, m), and the moments E prod S_k^{a_k} as integers (N, powers of u)."""
    moments = wishart_moments(p, degree)
    exponents = monomials(len(entries(p)), degree)
    table = np.zeros((len(exponents), max(degree, 1)), dtype=object)
    for row, own in enumerate(exponents):
        table[row, : len(moments[own])] = moments[own]
    return np.array(exponents), table


def _law(p: int, degree: int, q: int) -> tuple[Residues, Residues]:
    """The points S (p, p, N) and their weights (N, powers of u)."""
    exponents, moments = _lattice(p, degree)
    points = np.zeros((p, p, len(exponents)), np.uint64)
    for k, (i, j) in enumerate(entries(p)):
        points[i, j] = points[j, i] = exponents[:, k]
    return points, weights_of(exponents, (moments % q).astype(np.uint64), degree, q)


def _denominator(network: Network, quantity: str) -> int:
    """What makes every coefficient whole: each S_s comes with a_s, and each factor of weights with their divisor."""
    q, t = network.weight_degree, len(network.rates)
    common = math.lcm(*(v.denominator for W in (*network.student, network.target) for v in W.ravel()))
    scale = common ** (weight_degree(quantity, q) * (2 * q - 1) ** t)
    scale *= {LOSS: 2, LOSS_VARIANCE: 4}.get(quantity, 1)
    for a, d in zip(network.rates, degrees(network, quantity), strict=True):
        scale *= a.denominator**d
    return scale


def _bits(network: Network, quantity: str) -> float:
    """How long the coefficients will be, about."""
    d, q, t = degrees(network, quantity), network.weight_degree, len(network.rates)
    moments = sum(own * math.log2(own + 1) for own in d)
    rates = sum(own * math.log2(a.denominator) for own, a in zip(d, network.rates, strict=True))
    longest = max(v.denominator for W in (*network.student, *network.teacher) for v in W.ravel())
    return moments + rates + 2 * (2 * q - 1) ** (t + 1) * math.log2(longest) + 32
