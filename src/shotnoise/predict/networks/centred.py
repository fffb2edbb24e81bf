"""Linear networks with Gaussian inputs in floats: dense polynomial algebra around S = I, with bounds on all errors.

The weights after t steps are multiplied out as polynomials in the centred sample covariances (`balls`), and the forms
of `forms` averaged term by term. What the start contributes to the full gradient cancels from its variance and is taken
off before anything is squared.
"""

import math
from functools import reduce
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks import lattice
from shotnoise.predict.networks.balls import EPS, INFLATION, Ball, Space
from shotnoise.predict.networks.forms import GRADIENT, LOSS, LOSS_VARIANCE
from shotnoise.predict.networks.model import Network

FLOPS = 1.2e10  # a second, on one core
STEP = 2e-5  # seconds for one product of two polynomials, however small
MOMENT = 1e-4  # seconds for the mean of one monomial
NUMBERS = 2**26  # of the largest table
INTEGERS = 62  # bits in which a monomial's exponents are told apart
Matrix = list[list[Ball]]


def cost(network: Network, quantity: str) -> float:
    """Seconds on one core, about: most of it goes into the squares of the entries asked for; 1e300 beyond memory."""
    m, d = network.p * (network.p + 1) // 2, [own // 2 for own in lattice.degrees(network, quantity)]
    rows, columns = math.comb(m + d[0], m), math.prod(math.comb(m + own, m) for own in d[1:])
    whole = math.comb(m + 2 * d[0], m)
    square = 2.0 * columns * whole * rows * columns
    if (
        m * math.log2(2 * d[0] + 1) > INTEGERS
        or max(columns**2, whole * rows, whole * math.prod(math.comb(m + 2 * own, m) for own in d[1:])) > NUMBERS
    ):
        return 1e300
    products = sum(a * b * c for (a, b), c in zip((W.shape for W in network.student), _widths(network), strict=True))
    entries = max(W.size for W in network.student)
    return MOMENT * whole + 2 * (entries + 1) * square / FLOPS + STEP * len(d) * 8 * products * network.depth


def polynomial(network: Network, quantity: str, layer: int) -> tuple[Array, Array]:
    """The coefficients in u, constant term first, and bounds on their errors."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        try:
            values, errors = _polynomial(network, quantity, layer)
        except OverflowError:
            values = np.full(1, math.inf)
    if not (np.isfinite(values).all() and np.isfinite(errors).all()):
        raise InputError("the coefficients leave the range of floats: give ints, Fractions or strings for exact ones")
    return values, errors


def _polynomial(network: Network, quantity: str, layer: int) -> tuple[Array, Array]:
    space = Space(network.p, _scales(network))
    weights = [_constants(space, W) for W in network.student]
    target = _constants(space, network.target)
    for s, a in enumerate(network.rates):
        weights = _moved(weights, target, space.covariance(s), a)
    error, after, before = _chains(weights, target)
    if quantity == LOSS:
        values, errors = _norm(error).mean()
        return values / 2, errors / 2
    if quantity == LOSS_VARIANCE:
        loss = _norm(error).times(0.5, 0.0).without_start()
        mean = loss.mean()
        return _without_constant(_plus(loss.squared().mean(), _negative(_convolved(mean, mean))))
    L, R = after[layer], before[layer]
    pulled = error if L is None else _times(_transposed(L), error)
    inner = pulled if R is None else _times(pulled, _transposed(R))
    moved = [[entry.without_start() for entry in row] for row in inner]
    spread = _norm(moved)
    means = [entry.mean() for row in moved for entry in row]
    total = spread.mean()
    for values, errors in means:
        total = _plus(total, _negative(_convolved((values, errors), (values, errors))))
    if quantity == GRADIENT:
        starts = [entry.start() for row in inner for entry in row]
        plain = reduce(
            lambda total, own: total + own[0].times(2 * own[1], 0.0) + space.constant(own[1] ** 2, EPS * own[1] ** 2),
            zip((entry for row in moved for entry in row), starts, strict=True),
            spread,
        )
        if R is None or network.p == 1:
            scaled = plain.times(float(network.p + 1 if R is None else 2), 0.0)
        else:
            scaled = plain + _norm(pulled) * _norm(R)
        values, errors = scaled.mean()
        total = _plus(total, (np.concatenate([[0.0], values]), np.concatenate([[0.0], errors])))
    return _without_constant(total)


def _without_constant(total: tuple[Array, Array]) -> tuple[Array, Array]:
    """It is exactly 0: nothing is random in the limit of large batches."""
    total[0][0] = total[1][0] = 0.0
    return total


def _scales(network: Network) -> tuple[float, ...]:
    """About 1 / (a x the largest curvature): coefficients of high powers then stay within the range of floats."""
    weights = [W.astype(float) for W in network.student]
    norms = [float(np.linalg.norm(W)) for W in weights]
    curvature = max(math.prod(norms[:k] + norms[k + 1 :]) ** 2 for k in range(len(norms))) or 1.0
    gains = [abs(float(a)) * curvature for a in network.rates]
    return tuple(2.0 ** -round(math.log2(gain)) if 1e-30 < gain < 1e30 else 1.0 for gain in gains)


def _widths(network: Network) -> list[int]:
    return [*(W.shape[0] for W in network.student[1:]), network.p]


def _constants(space: Space, W: Array) -> Matrix:
    """Numbers that floats hold are exact."""
    return [[space.constant(float(v), 0.0 if float(v) == v else EPS * abs(float(v))) for v in row] for row in W]


def _moved(weights: list[Matrix], target: Matrix, S: Matrix, a: Any) -> list[Matrix]:
    error, after, before = _chains(weights, target)
    rate, blur = -float(a), 0.0 if float(a) == a else EPS * abs(float(a))
    found = []
    for W, L, R in zip(weights, after, before, strict=True):
        step = _times(error if L is None else _times(_transposed(L), error), S)
        step = step if R is None else _times(step, _transposed(R))
        found.append(
            [[w + g.times(rate, blur) for w, g in zip(*rows, strict=True)] for rows in zip(W, step, strict=True)]
        )
    return found


def _chains(weights: list[Matrix], target: Matrix) -> tuple[Matrix, list[Matrix | None], list[Matrix | None]]:
    """e; for each layer L, the product of the layers after it, and R, of those before it (None: the identity)."""
    before: list[Matrix | None] = [None]
    for W in weights:
        last = before[-1]
        before.append(W if last is None else _times(W, last))
    after: list[Matrix | None] = [None]
    for W in weights[:0:-1]:
        last = after[-1]
        after.append(W if last is None else _times(last, W))
    output = before[-1]
    assert output is not None
    error = [[f - y for f, y in zip(*rows, strict=True)] for rows in zip(output, target, strict=True)]
    return error, after[::-1], before[:-1]


def _times(a: Matrix, b: Matrix) -> Matrix:
    return [[reduce(Ball.__add__, map(Ball.__mul__, row, column)) for column in zip(*b, strict=True)] for row in a]


def _transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def _norm(a: Matrix) -> Ball:
    """||a||^2."""
    return reduce(Ball.__add__, (entry.squared() for row in a for entry in row))


def _convolved(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, r), (y, s) = a, b
    terms = (min(len(x), len(y)) + 1) * EPS
    errors = np.convolve(np.abs(x), np.abs(y) * terms + s) + np.convolve(r, np.abs(y) + s)
    return np.convolve(x, y), errors * INFLATION


def _negative(a: tuple[Array, Array]) -> tuple[Array, Array]:
    return -a[0], a[1]


def _plus(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    size = max(len(a[0]), len(b[0]))
    (x, r), (y, s) = ([np.pad(own, (0, size - len(own))) for own in pair] for pair in (a, b))
    return x + y, (r + s + EPS * np.abs(x + y)) * INFLATION
