"""What is known of the inputs: finitely many points, or the joint moments of a distribution; Gaussian ones for a start.

Polynomials of degree d in x are fixed by their values at the whole-number points with coordinates >= 0 and sum <= d.
Moments therefore act like weights at those points, exact for means of such polynomials, though some are negative.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, fractions
from shotnoise.predict.networks.laws import weights_of
from shotnoise.predict.networks.means import moments_of_means
from shotnoise.predict.networks.residues import Residues, matmul, residues
from shotnoise.predict.networks.wishart import Exponents, monomials

MOMENTS = 100_000  # that a question may need


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

    def moment(self, exponents: Exponents) -> Fraction:
        """E prod x_i^{a_i}."""
        powers = ((x ** np.array(exponents)).prod() for x in self.points)
        return sum((share * own for share, own in zip(self.probabilities, powers, strict=True)), Fraction(0))


@dataclass(frozen=True)
class Moments:
    """Inputs of which the joint moments are known: E prod_i x_i^{a_i} by the exponents (a_1, ..., a_p).

    moments: a table {exponents: value} or a function of the exponents; ints, Fractions, strings such as "1/3", or
    floats, which are taken exactly. How far they must go depends on what is asked; a missing one is named then.
    Moments that no distribution has are not found out in general; those with a negative variance are.

    >>> uniform = Moments(lambda a: Fraction(1, a[0] + 1) if a[0] % 2 == 0 else 0)  # on [-1, 1]
    >>> uniform.moment((4,))
    Fraction(1, 5)
    """

    moments: Mapping[Exponents, Any] | Callable[[Exponents], Any]

    def __post_init__(self) -> None:
        if not callable(self.moments) and not isinstance(self.moments, Mapping):
            raise InputError(f"moments: a table {{exponents: value}} or a function of them; got {self.moments!r}")

    def moment(self, exponents: Exponents) -> Fraction:
        """Raises InputError, naming it, where it is missing or not a finite number."""
        name = " ".join(f"x_{i + 1}^{a}" for i, a in enumerate(exponents) if a) or "1"
        try:
            value = self.moments(exponents) if callable(self.moments) else self.moments[exponents]
        except KeyError:
            if not any(exponents):
                return Fraction(1)
            raise InputError(f"moments: E {name}, exponents {exponents}, is missing") from None
        try:
            found: Fraction = fractions([value])[0]
        except InputError as error:
            raise InputError(f"moments: E {name}, exponents {exponents}, is {value!r}, not a finite number") from error
        if not any(exponents) and found != 1:
            raise InputError(f"moments: E 1, exponents {exponents}, is {value!r}; it must be 1")
        return found

    def checked(self, p: int, degree: int) -> "Moments":
        """A table of all up to a degree; raises InputError for those missing, and for variances below 0."""
        if (count := math.comb(p + degree, p)) > MOMENTS:
            raise InputError(
                f"moments: {count} of them would be needed, all of p = {p} inputs up to degree {degree}; the limit is "
                f"{MOMENTS}. Ask for an earlier step, give fewer inputs or Points, or simulate"
            )
        try:
            table = {a: self.moment(a) for a in monomials(p, degree)}
        except InputError as error:
            raise InputError(f"{error}; this question needs all of p = {p} inputs up to degree {degree}") from error
        for i in range(p if degree > 1 else 0):
            one = tuple(int(k == i) for k in range(p))
            two = tuple(2 * k for k in one)
            if table[two] < table[one] ** 2:
                raise InputError(f"moments: x_{i + 1} would have the variance {float(table[two] - table[one] ** 2):g}")
        return Moments(table)


def normal_moment(exponents: Exponents) -> int:
    """E prod x_i^{a_i} for independent standard normal x_i.

    >>> normal_moment((4, 2)), normal_moment((1, 2))
    (3, 0)
    """
    if any(a % 2 for a in exponents):
        return 0
    return math.prod(math.prod(range(a - 1, 0, -2)) for a in exponents)


@dataclass(frozen=True)
class ByMoments:
    """Draws of which moments are known: a batch enters through the means of `features`, exponents of monomials."""

    p: int
    known: Moments | Points
    features: tuple[Exponents, ...]
    _tables: dict[bytes, list[Any]] = field(default_factory=dict, compare=False, repr=False)

    def _moments(self, exponents: Array, q: int) -> Residues:
        """Of monomials (n, p); kept, as every prime needs them again."""
        key = exponents.tobytes()
        if key not in self._tables:
            self._tables[key] = [self.known.moment(a) for a in map(tuple, exponents.tolist())]
        return residues(self._tables[key], q)

    @property
    def lattice(self) -> int:
        """The degree of the features, and of the points that tell their coefficients."""
        return max((sum(a) for a in self.features), default=0)

    @property
    def variables(self) -> int:
        return len(self.features)

    def points_of(self, degree: int) -> int:
        """How many there are in `sample`."""
        return math.comb(self.p + degree, self.p)

    def lattice_points(self, q: int) -> tuple[Array, Residues]:
        """Those that the coefficients of `law` speak of."""
        return self.sample(self.lattice, q)

    def sample(self, degree: int, q: int) -> tuple[Array, Residues]:
        """Points (n, p), those of lower degree first, and their weights in the mean of a polynomial."""
        exponents = np.array(monomials(self.p, degree)).reshape(-1, self.p)
        return exponents, weights_of(exponents, self._moments(exponents, q)[:, None], degree, q)[:, 0]

    def law(self, degree: int, q: int) -> tuple[Residues, Residues]:
        """The coefficients of `lattice_points` on a lattice of means, (points, N), and the weights of that lattice."""
        own = np.array(monomials(self.p, self.lattice)).reshape(-1, self.p)
        lagrange = weights_of(own, np.eye(len(own), dtype=np.uint64), self.lattice, q)  # (points, monomials)
        exponents = np.array(monomials(self.variables, degree)).reshape(-1, self.variables)
        products = exponents @ np.array(self.features).reshape(self.variables, self.p)
        singles = self._moments(products, q)
        weights = weights_of(exponents, moments_of_means(singles, self.variables, degree, q), degree, q)
        means = np.zeros((len(own), len(exponents)), np.uint64)
        means[0] = 1
        index = {a: row for row, a in enumerate(map(tuple, own.tolist()))}
        for row, column in zip(self.features, exponents.T, strict=True):
            means[index[row]] = column
        return matmul(lagrange, means, q), weights


@dataclass(frozen=True)
class ByShares:
    """Draws from finitely many points: a batch enters through the shares pi_k of the points in it.

    With replacement those are means of what tells one draw to be the point k. Without, from n points, for distinct
    points k_1, ..., k_j prod_i (b pi_{k_i}) has the mean (b)_j / (n)_j, falling factorials; powers change nothing.
    """

    known: Points

    @property
    def p(self) -> int:
        return int(self.known.points.shape[1])

    @property
    def variables(self) -> int:
        return self.known.n - 1

    def points_of(self, degree: int) -> int:
        return self.known.n

    def lattice_points(self, q: int) -> tuple[Array, Residues]:
        return self.sample(0, q)

    def sample(self, degree: int, q: int) -> tuple[Array, Residues]:
        return self.known.points, residues(list(self.known.probabilities), q)

    def law(self, degree: int, q: int) -> tuple[Residues, Residues]:
        """Shares (K, N) on a lattice, the last point's being what is left of 1, and the weights of the lattice."""
        if self.known.n == 1:  # nothing is random
            return np.ones((1, 1), np.uint64), np.ones((1, 1), np.uint64)
        exponents = np.array(monomials(self.variables, degree)).reshape(-1, self.variables)
        if self.known.replacement:
            chances = residues(list(self.known.probabilities), q)
            singles, met = np.zeros(len(exponents), np.uint64), (exponents > 0).sum(1)
            singles[0] = 1
            singles[met == 1] = chances[exponents[met == 1].argmax(1)]
            moments = moments_of_means(singles, self.variables, degree, q)
        else:
            moments = _drawn_without(exponents, degree, self.known.n, q)
        last = (1 - exponents.sum(1)) % q
        shares = np.concatenate([exponents, last[:, None]], axis=1).T.astype(np.uint64)
        return shares, weights_of(exponents, moments, degree, q)


Draws = ByMoments | ByShares


def _drawn_without(exponents: Array, degree: int, n: int, q: int) -> Residues:
    """E prod_k pi_k^{a_k} over all points but the last, (N, powers of u)."""
    out = np.zeros((len(exponents), max(degree, 1)), dtype=object)
    falling = [np.array([1], dtype=object)]  # prod_{i < j} (1 - i u)
    for i in range(min(degree, n)):
        falling.append(np.append(falling[-1], 0) - i * np.append(0, falling[-1]))
    for row, a in zip(out, exponents, strict=True):
        j = int((a > 0).sum())
        chance = pow(math.perm(n, j), -1, q)
        for power, c in enumerate(falling[j].tolist()):
            if c:
                row[int(a.sum()) - j + power] = c * chance % q
    return out.astype(np.uint64)
