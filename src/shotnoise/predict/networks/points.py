"""Networks of any depth with polynomial activations, inputs that take finitely many values: exact polynomials in 1/b.

A batch enters only through the shares pi_k of the points in it, the batch gradient being sum_k pi_k g_k(w). What is
asked at step t is a polynomial of degree d_s in the shares of batch s; their moments are polynomials in u = 1/b,

    with replacement     E prod_k (b pi_k)_{j_k} = (b)_{|j|} prod_k p_k^{j_k}
    without, n points    E prod_k (b pi_k)_{j_k} = (b)_{|j|} / (n)_{|j|} if no j_k exceeds 1, else 0

((b)_j: falling factorials), and means are sums over lattice points as in `lattice`. The result without replacement
has a constant term and vanishes at u = 1/n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, fractions
from shotnoise.predict.networks.forms import GRADIENT, LOSS
from shotnoise.predict.networks.laws import NUMBERS, fits, mean_over, weights_of
from shotnoise.predict.networks.model import Network, trimmed
from shotnoise.predict.networks.residues import Reconstruction, Residues, convolved, primes, product, reduced, residues
from shotnoise.predict.networks.wishart import monomials

CONFIRMING = 2
OPERATIONS_PER_SECOND = 4e8  # as in `lattice`
OVERHEAD = 2e-3


@dataclass(frozen=True)
class Points:
    """Inputs that take the values points[k] with probabilities[k] (equal ones if none are given).

    replacement=False: batches are drawn without replacement from these points, all equally probable.

    >>> Points([[0], [2]]).probabilities
    (Fraction(1, 2), Fraction(1, 2))
    """

    points: Any
    probabilities: Any = None
    replacement: bool = True

    def __post_init__(self) -> None:
        points = fractions(self.points)
        if points.ndim != 2 or not points.size:
            raise InputError(f"points: a matrix (values, inputs) is needed, not an array {points.shape}")
        n = len(points)
        shares = [Fraction(1, n)] * n if self.probabilities is None else fractions(self.probabilities).tolist()
        if len(shares) != n or min(shares) < 0 or abs(sum(shares) - 1) > Fraction(1, 10**12):
            raise InputError(f"probabilities: {n} numbers >= 0 with sum 1 are needed; got {self.probabilities!r}")
        if not self.replacement and len(set(shares)) > 1:
            raise InputError("replacement=False draws every point with the same probability: leave probabilities out")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "probabilities", tuple(share / sum(shares) for share in shares))

    @property
    def n(self) -> int:
        return len(self.probabilities)

    def shares(self, q: int) -> Residues:
        return residues(list(self.probabilities), q)

    def law(self, degree: int, q: int) -> tuple[Residues, Residues]:
        """Shares (K, N) on a lattice, the last point's being what is left of 1, and the weights of the lattice."""
        if self.n == 1:  # nothing is random
            return np.ones((1, 1), np.uint64), np.ones((1, 1), np.uint64)
        exponents = np.array(monomials(self.n - 1, degree))
        moments = _share_moments(exponents, degree, self.shares(q), self.replacement, q)
        last = (1 - exponents.sum(1)) % q
        shares = np.concatenate([exponents, last[:, None]], axis=1).T.astype(np.uint64)
        return shares, weights_of(exponents, moments, degree, q)


class Inputs(Protocol):
    """What the engine asks of a distribution of inputs: points (n, p), weights of means over it, and batches."""

    @property
    def points(self) -> Any: ...
    @property
    def n(self) -> int: ...
    def shares(self, q: int) -> Residues: ...
    def law(self, degree: int, q: int) -> tuple[Residues, Residues]: ...


def degrees(network: Network, quantity: str) -> list[int]:
    """d_s, s = 0 .. t-1: of the quantity in the shares of batch s."""
    q, t = network.weight_degree, len(network.rates)
    own = 2 * q if quantity == LOSS else 2 * (2 * q - 1)
    return [own * (2 * q - 1) ** (t - 1 - s) for s in range(t)]


def lattice_cost(network: Network, quantity: str, n: int, m: int) -> float:
    """Seconds on one core, about, for n points and m means that batches enter through.

    Paths x multiplications at each x primes; 1e300 where memory would not do.
    """
    d = degrees(network, quantity)
    if not all(fits(m, own) for own in d):
        return 1e300
    paths = math.prod(math.comb(m + own, m) for own in d)
    if paths * n * max(W.size for W in network.student) > NUMBERS:
        return 1e300
    activation = 2 if network.activation is None else 2 * len(network.activation)
    each = n * 3 * sum(W.size + W.shape[0] * activation for W in network.student)
    tables = sum((own + 1.0) ** (m + 1) * own * m for own in d)
    numbers = [*network.rates, *(v for W in network.student for v in W.ravel())]
    length = sum(math.log2(v.denominator) for v in numbers) / len(numbers) + 4
    return (OVERHEAD * len(d) + (paths * each + tables) / OPERATIONS_PER_SECOND) * (length * (sum(d) + 4) / 15 + 4)


def polynomial(
    network: Network,
    inputs: Inputs,
    quantity: str,
    layer: int,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Fraction]:
    """The coefficients in u, constant term first; `tell` hears of every prime that is done, of about how many."""
    outputs = answers(network, inputs)
    numbers = [*network.rates, *inputs.points.ravel(), *outputs.ravel()]
    numbers += inputs.probabilities if isinstance(inputs, Points) else []
    numbers += [v for W in network.student for v in W.ravel()]
    numbers += [] if network.activation is None else network.activation.tolist()
    divisor = math.lcm(*(v.denominator for v in numbers), 2, *range(1, inputs.n + 1))
    found, guess, used, confirmed, next_guess = Reconstruction(), None, 0, 0, 2
    for q in primes():
        if divisor % q == 0:
            continue
        values = _modulo(network, inputs, outputs, quantity, layer, q)
        if guess is not None and (residues(guess, q) == values).all():
            confirmed += 1
            if confirmed == CONFIRMING:
                return trimmed(guess)
        else:
            guess, confirmed = None, 0
        found.add(values, q)
        used += 1
        if guess is None and used >= next_guess:
            guess, next_guess = found.fractions(), 1 + int(1.2 * used)
    raise AssertionError("there are enough primes below 2^31")


def answers(network: Network, inputs: Inputs) -> Array:
    """The teacher's outputs at every point, (outputs, points)."""
    z = inputs.points.T
    for k, V in enumerate(network.teacher):
        z = V @ z
        if network.activation is not None and k + 1 < len(network.teacher):
            z = sum(c * z**power for power, c in enumerate(network.activation))
    return z


def _modulo(network: Network, inputs: Inputs, outputs: Array, quantity: str, layer: int, q: int) -> Residues:
    problem = _Sampled(
        [residues(W, q)[..., None] for W in network.student],
        residues(inputs.points.T, q)[..., None],
        residues(outputs, q)[..., None],
        inputs,
        inputs.shares(q),
        None if network.activation is None else [int(c) for c in residues(network.activation, q)],
        [int(residues(a, q)) for a in network.rates],
        q,
    )
    own = degrees(network, quantity)
    if quantity == LOSS:
        return problem.means(own, problem.loss)[0]
    plain, single = problem.means(own, lambda weights: problem.squares(weights, layer))
    inner = problem.means([d // 2 for d in own], lambda weights: problem.full_gradient(weights, layer))
    total = np.zeros(len(plain) + 1, np.uint64)
    total[:-1] = plain
    if quantity == GRADIENT:  # kappa (E ||g||^2 of one sample - E ||grad L||^2)
        spread = reduced(single + np.uint64(q) - plain, q)
        n = inputs.n
        if not isinstance(inputs, Points) or inputs.replacement:
            total[1:] += spread
        elif n > 1:
            share = pow(n - 1, -1, q)
            total[1:] += reduced(spread * np.uint64(n * share % q), q)
            total[:-1] += reduced(spread * np.uint64(q - share), q)
    for entry in inner:
        square = convolved(entry, entry, q)
        total[: len(square)] = reduced(total[: len(square)] + np.uint64(q) - square, q)
    return reduced(total, q)


@dataclass(frozen=True)
class _Sampled:
    """The network and the points modulo q: arrays (rows, columns, runs); x (p, K, 1) and y (outputs, K, 1)."""

    weights: list[Residues]
    x: Residues
    y: Residues
    inputs: Inputs
    shares: Residues
    activation: list[int] | None
    rates: list[int]
    q: int

    def means(self, degrees: list[int], forms: Callable[[list[Residues]], Residues]) -> Residues:
        """E of forms, which take weights of n runs to (forms, n), as coefficients (forms, powers of u)."""
        weights, laws = self.weights, [self.inputs.law(d, self.q) for d in degrees]
        for (shares, _), a in zip(laws, self.rates, strict=True):
            gradients = self.gradients(weights)
            weights = [
                self._moved(W, own, reduced(shares * np.uint64(self.q - a), self.q))
                for W, own in zip(weights, gradients, strict=True)
            ]
        table = forms(weights)[..., None]
        for _, law in reversed(laws):
            table = mean_over(table.reshape(len(table), -1, law.shape[0], table.shape[-1]), law, self.q)
        return table.reshape(len(table), -1)

    def _moved(self, W: Residues, gradients: Residues, shares: Residues) -> Residues:
        """W (rows, columns, n), gradients (rows, columns, K, n), shares of the N batches times -a, (K, N)."""
        total = W[..., None] + np.zeros(shares.shape[1], np.uint64)
        for k, own in enumerate(shares):
            total = total + reduced(gradients[:, :, k, :, None] * own, self.q)
        return reduced(total, self.q).reshape(*W.shape[:2], -1)

    def forward(self, weights: list[Residues]) -> tuple[list[Residues], list[Residues], Residues]:
        """Inputs of every layer (columns, K, n), slopes of the hidden ones, and the error (outputs, K, n)."""
        z, layers, slopes = self.x, [], []
        for k, W in enumerate(weights):
            layers.append(z)
            h = product(W, z, self.q)
            if k + 1 < len(weights):
                z, slope = self._activated(h)
                slopes.append(slope)
        return layers, slopes, reduced(h + np.uint64(self.q) - self.y, self.q)

    def _activated(self, h: Residues) -> tuple[Residues, Residues]:
        if self.activation is None:
            return h, np.ones_like(h)
        value, slope = np.zeros_like(h), np.zeros_like(h)
        for c in reversed(self.activation):  # Horner's scheme, with its derivative
            slope = reduced(slope * h + value, self.q)
            value = reduced(value * h + np.uint64(c), self.q)
        return value, slope

    def gradients(self, weights: list[Residues]) -> list[Residues]:
        """Per sample, (rows, columns, K, n) for each layer."""
        layers, slopes, delta = self.forward(weights)
        found = []
        for k in range(len(weights) - 1, -1, -1):
            found.append(reduced(delta[:, None] * layers[k][None], self.q))
            if k:
                back = product(weights[k].swapaxes(0, 1), delta, self.q)
                delta = reduced(back * slopes[k - 1], self.q)
        return found[::-1]

    def full_gradient(self, weights: list[Residues], layer: int) -> Residues:
        """The entries of grad L, (entries, n)."""
        own = self.gradients(weights)[layer]
        full = reduced(reduced(own * self.shares[:, None], self.q).sum(2), self.q)
        return full.reshape(-1, full.shape[-1])

    def squares(self, weights: list[Residues], layer: int) -> Residues:
        """||grad L||^2 and E ||g||^2 of one sample, (2, n)."""
        own = self.gradients(weights)[layer]
        single = reduced(reduced(own * own, self.q).sum((0, 1)), self.q)
        full = self.full_gradient(weights, layer)
        return np.stack(
            [
                reduced(reduced(full * full, self.q).sum(0), self.q),
                reduced(reduced(single * self.shares[:, None], self.q).sum(0), self.q),
            ]
        )

    def loss(self, weights: list[Residues]) -> Residues:
        """1/2 E ||f - y||^2, (1, n)."""
        _, _, error = self.forward(weights)
        single = reduced(reduced(error * error, self.q).sum(0), self.q)
        half = reduced(self.shares * np.uint64(pow(2, -1, self.q)), self.q)
        return reduced(reduced(single * half[:, None], self.q).sum(0), self.q)[None]


def _share_moments(exponents: Array, degree: int, shares: Residues, replacement: bool, q: int) -> Residues:
    """E prod_k pi_k^{a_k} over all points but the last, (N, powers of u)."""
    n, size = len(shares), max(degree, 1)
    stirling = _stirling(degree, q)
    falling = [np.array([1] + [0] * (size - 1), dtype=object)]  # prod_{i < j} (1 - i u)
    for i in range(degree):
        falling.append((falling[-1] - i * np.concatenate([[0], falling[-1][:-1]])) % q)
    chance = [int(share) for share in shares]
    rows = []
    for a in exponents.tolist():
        total = {0: 1}  # |j| to the sum over j <= a of that size
        for k, power in enumerate(a):
            terms = {
                j: stirling[power][j] * (pow(chance[k], j, q) if replacement else 1)
                for j in range(power + 1 if replacement else min(power, 1) + 1)
                if stirling[power][j]
            }
            grown: dict[int, int] = {}
            for size_before, value in total.items():
                for j, own in terms.items():
                    grown[size_before + j] = (grown.get(size_before + j, 0) + value * own) % q
            total = grown
        row = np.zeros(size, dtype=object)
        for j, value in total.items():
            shift = sum(a) - j
            if not replacement:
                value = value * pow(math.perm(n, j), -1, q) if j <= n else 0
            row[shift:] = (row[shift:] + value * falling[j][: size - shift]) % q
        rows.append(row)
    return np.array(rows, dtype=object).astype(np.uint64)


def _stirling(degree: int, q: int) -> list[list[int]]:
    """Of the second kind: x^a = sum_j S(a, j) (x)_j."""
    table = [[1] + [0] * degree]
    for _ in range(degree):
        last = table[-1]
        table.append([(j * last[j] + (last[j - 1] if j else 0)) % q for j in range(degree + 1)])
    return table
