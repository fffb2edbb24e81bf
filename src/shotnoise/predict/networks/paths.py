"""Networks of any depth, polynomial activations, any inputs with known moments or values: exact means over all batches.

A batch enters through the means of a few quantities of one sample: shares of points, or monomials of x; from known
weights, as at the start, through the batch gradient itself, which has no more independent entries than there are
weights. What is asked is a polynomial of degree d_s in the means of batch s, and as in `lattice`

    E F(batch 0, batch 1, ...) = sum over lattice points of F, each with a weight that is a polynomial in u = 1/b:

SGD is run with batches whose means are whole numbers; the weights carry all that is random.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.networks import means
from shotnoise.predict.networks.inputs import ByMoments, ByShares, Draws, Moments, Points, normal_moment
from shotnoise.predict.networks.laws import NUMBERS, fits, mean_over, weights_of
from shotnoise.predict.networks.model import Network
from shotnoise.predict.networks.residues import Residues, matmul, primes, reduced
from shotnoise.predict.networks.sampled import Modular, Sample
from shotnoise.predict.networks.wishart import Exponents, monomials

CHUNK = 2**22  # numbers held for paths side by side
OPERATIONS_PER_SECOND = 4e8  # as in `lattice`
OVERHEAD = 2e-3
TERM = 2e-8  # seconds for one term of the moments of a mean
FEATURES = 2**12


@dataclass(frozen=True)
class History:
    """Weights at every step and the batch gradients between, by layer; runs of later steps vary fastest."""

    network: Modular
    sample: Sample
    weights: list[list[Residues]]
    gradients: list[list[Residues]]
    runs: int

    def weight(self, layer: int, step: int) -> Residues:
        return self._spread(self.weights[step][layer])

    def gradient(self, layer: int, step: int) -> Residues:
        return self._spread(self.gradients[step][layer])

    def full_gradient(self, layer: int, step: int) -> Residues:
        return self._spread(self.network.full_gradient(self.weights[step], self.sample, layer))

    def loss(self, step: int) -> Residues:
        return self._spread(self.network.loss(self.weights[step], self.sample))

    def _spread(self, values: Residues) -> Residues:
        """Repeated for every run of the steps that come later."""
        return np.repeat(values, self.runs // values.shape[-1], axis=-1)


Forms = Callable[[History], Residues]  # what is asked, (forms, runs)


@dataclass(frozen=True)
class Paths:
    """SGD by a network on inputs: degrees d_s in the means of each batch that matters, form_degree in x at fixed w.

    inputs: "gaussian", Points or Moments.
    """

    network: Network
    inputs: Any
    degrees: tuple[int, ...]
    form_degree: int

    def means(self, forms: Forms, q: int) -> Residues:
        """E of the forms as coefficients (forms, powers of u)."""
        network = Modular.of(self.network, q)
        sample = network.sample(*self._known.sample(self.form_degree, q))
        if not self.degrees:
            return forms(History(network, sample, [network.start], [], 1)).reshape(-1, 1)
        first, law = self._first(network)
        others = [self._later.law(d, q) for d in self.degrees[1:]]
        inner = math.prod(own.shape[0] for _, own in others)
        at = network.sample(*self._later.lattice_points(q)) if others else sample
        size = max(1, CHUNK // (inner * self._numbers_each))
        tables = []
        for start in range(0, law.shape[0], size):
            gradients = [[own[..., start : start + size] for own in first]]
            weights = [network.start]
            for s, (coefficients, _) in enumerate([(None, None), *others]):
                if coefficients is not None:
                    own = network.gradients(weights[-1], at)
                    gradients.append([_combined(g, coefficients, q) for g in own])
                if s < len(network.rates):
                    weights.append(_moved(weights[-1], gradients[-1], network.rates[s], q))
            runs = gradients[-1][0].shape[-1]
            table = forms(History(network, sample, weights, gradients, runs))[..., None]
            for _, weighted in reversed(others):
                table = mean_over(table.reshape(len(table), -1, weighted.shape[0], table.shape[-1]), weighted, q)
            tables.append(table)
        return mean_over(np.concatenate(tables, axis=1), law, q).reshape(len(tables[0]), -1)

    @property
    def seconds(self) -> float:
        """On one core, about: paths x multiplications at each x primes; 1e300 where memory would not do."""
        if self._features > FEATURES and not isinstance(self.inputs, Points):
            return 1e300
        n, d, m = self._sizes, self.degrees, self._later.variables
        variables = [self._rank if self._spanned else m, *[m] * (len(d) - 1)][: len(d)]
        tables = list(zip(variables, d, strict=True))
        if not all(fits(v, own) and (v == 0 or means.fits(v, own)) for v, own in tables):
            return 1e300
        counts = [math.comb(v + own, v) for v, own in tables]
        paths = math.prod(counts)
        if max(paths, math.prod(counts[1:]) * self._numbers_each, n * math.prod(counts[:1])) > NUMBERS:
            return 1e300
        activation = 2 if self.network.activation is None else 2 * len(self.network.activation)
        each = self._form_points * 3 * sum(W.size + W.shape[0] * activation for W in self.network.student)
        laws = sum((own + 1.0) ** (v + 1) * own * v for v, own in tables) + 5 * n * math.prod(counts[:1])
        sums = sum(means.terms(v, own) for v, own in tables) * TERM + OVERHEAD * (len(d) + 1)
        sums += 1e-4 * sum(counts)  # a step of the recursion for each
        return 2 * (sums + (paths * each + laws) / OPERATIONS_PER_SECOND) * self.primes

    @property
    def primes(self) -> int:
        """How many will be needed, about: two thirds of it for the numbers' own digits."""
        numbers = [*self.network.rates, *(v for W in self.network.student for v in W.ravel())]
        numbers += self.inputs.points.ravel().tolist() if isinstance(self.inputs, Points) else []
        length = sum(math.log2(v.denominator) for v in numbers) / len(numbers) + 4
        return int(length * (sum(self.degrees) + 4) / 15 + 4)

    @property
    def numbers(self) -> list[Fraction]:
        """All that came in, whose denominators no prime may divide."""
        found = [*self.network.rates, *(v for W in (*self.network.student, *self.network.teacher) for v in W.ravel())]
        found += [] if self.network.activation is None else self.network.activation.tolist()
        if isinstance(self.inputs, Points):
            found += [*self.inputs.points.ravel(), *self.inputs.probabilities]
        elif isinstance(self._moments, Moments) and self.inputs != "gaussian":
            found += [self._moments.moment(a) for a in monomials(self.network.p, self.needed_moments)]
        return found

    @cached_property
    def halved(self) -> "Paths":
        """For what is squared afterwards."""
        return Paths(self.network, self.inputs, tuple(d // 2 for d in self.degrees), self.form_degree)

    @property
    def needed_moments(self) -> int:
        return max(self.form_degree, self._x_degree * max(self.degrees, default=0))

    @cached_property
    def _x_degree(self) -> int:
        return gradient_input_degree(self.network)

    @cached_property
    def _moments(self) -> Moments | Points:
        if isinstance(self.inputs, Points):
            return self.inputs
        if isinstance(self.inputs, Moments):
            return self.inputs.checked(self.network.p, self.needed_moments)
        return Moments(normal_moment)

    @cached_property
    def _known(self) -> Draws:
        """What means over x are taken with."""
        return ByShares(self.inputs) if isinstance(self.inputs, Points) else self._by_moments

    @cached_property
    def _by_moments(self) -> ByMoments:
        degree, p = self._x_degree, self.network.p
        chosen = [a for a in monomials(p, degree) if sum(a) == 2 or (self.network.activation is not None and any(a))]
        return ByMoments(p, self._moments, tuple(chosen))

    @property
    def _features(self) -> int:
        """How many there are in `_by_moments`."""
        p = self.network.p
        return math.comb(p + 1, 2) if self.network.activation is None else math.comb(p + self._x_degree, p) - 1

    @cached_property
    def _later(self) -> Draws:
        """How batches act on weights that vary."""
        if isinstance(self.inputs, Points):
            shares = ByShares(self.inputs)
            if not self.inputs.replacement or shares.variables <= self._features:
                return shares
        return self._by_moments

    @cached_property
    def _spanned(self) -> bool:
        """Whether the first batch gradient has fewer independent entries than a batch has means."""
        drawn_without = isinstance(self.inputs, Points) and not self.inputs.replacement
        return not drawn_without and bool(self.degrees) and self._rank < self._later.variables

    @cached_property
    def _rank(self) -> int:
        size = self._known.points_of(self._x_degree)
        if size * sum(W.size for W in self.network.student) > NUMBERS // 8:
            return 10**6
        q = next(q for q in primes() if all(v.denominator % q for v in self.numbers))
        network = Modular.of(self.network, q)
        values = _flat(network.gradients(network.start, network.sample(*self._known.sample(self._x_degree, q))))
        places, _ = means.echelon(_centred(values, q), q)
        return len(places)

    @cached_property
    def _sizes(self) -> int:
        """Points that the law of the first gradient is got from."""
        return self._known.points_of(self._x_degree * self.degrees[0]) if self._spanned else 0

    @cached_property
    def _form_points(self) -> int:
        return self._known.points_of(self.form_degree)

    @property
    def _numbers_each(self) -> int:
        return max(self._form_points, self._later.points_of(self._x_degree)) * max(W.size for W in self.network.student)

    def _first(self, network: Modular) -> tuple[list[Residues], Residues]:
        """The gradients of the first batch on a lattice, by layer (rows, columns, N), and the lattice's weights."""
        q, d = network.q, self.degrees[0]
        if not self._spanned:
            coefficients, law = self._later.law(d, q)
            own = network.gradients(network.start, network.sample(*self._later.lattice_points(q)))
            return [_combined(g, coefficients, q) for g in own], law
        sample = network.sample(*self._known.sample(self._x_degree * d, q))
        values = _flat(network.gradients(network.start, sample))
        centred = _centred(values, q)
        places, V = means.echelon(centred, q)
        r = len(places)
        if not r:  # all samples have the same gradient
            return [own[:, :, 0] for own in network.gradients(network.start, sample)], np.ones((1, 1), np.uint64)
        exponents = np.array(monomials(r, d)).reshape(-1, r)
        singles = means.moments(V, sample.shares, d, q)
        law = weights_of(exponents, means.moments_of_means(singles, r, d, q), d, q)
        basis = np.ascontiguousarray(centred[:, places])
        lattice = matmul(basis, np.ascontiguousarray(exponents.T.astype(np.uint64)), q)
        flat, found, begin = reduced(values[:, :1] + lattice, q), [], 0
        for W in network.start:
            rows, columns = W.shape[:2]
            found.append(flat[begin : begin + rows * columns].reshape(rows, columns, -1))
            begin += rows * columns
        return found, law


def gradient_input_degree(network: Network) -> int:
    """Of one sample's gradient in x."""
    own, other = _output_degrees(network)
    return own + max(own, other)


def loss_input_degree(network: Network) -> int:
    return 2 * max(_output_degrees(network))


def _output_degrees(network: Network) -> tuple[int, int]:
    activated = 1 if network.activation is None else len(network.activation) - 1
    return activated ** (network.depth - 1), activated ** (len(network.teacher) - 1)


def checked_inputs(network: Network, inputs: Any) -> None:
    """Raises InputError for what is neither Gaussian, Points nor Moments, or has another number of entries."""
    if isinstance(inputs, Points):
        if inputs.points.shape[1] != network.p:
            raise InputError(f"inputs: points with {inputs.points.shape[1]} entries, but the student takes {network.p}")
    elif isinstance(inputs, Moments):
        table: Any = inputs.moments
        wrong: list[Exponents] = [] if callable(table) else [a for a in table if np.shape(a) != (network.p,)]
        if wrong:
            raise InputError(f"inputs: a moment with exponents {wrong[0]!r}, but the student takes {network.p} inputs")
    elif not isinstance(inputs, str) or inputs != "gaussian":
        raise InputError(f"inputs={inputs!r}: 'gaussian', Points or Moments are known")


def _flat(gradients: list[Residues]) -> Residues:
    """(weights, points) from one run."""
    return np.concatenate([g.reshape(-1, g.shape[2]) for g in gradients])


def _centred(values: Residues, q: int) -> Residues:
    return reduced(values + np.uint64(q) - values[:, :1], q)


def _combined(gradients: Residues, coefficients: Residues, q: int) -> Residues:
    """sum_k g_k c_k: gradients (rows, columns, K, n), coefficients (K, N)."""
    total = np.zeros((*gradients.shape[:2], gradients.shape[3], coefficients.shape[1]), np.uint64)
    for k, own in enumerate(coefficients):
        total = total + reduced(gradients[:, :, k, :, None] * own, q)
    return reduced(total, q).reshape(*gradients.shape[:2], -1)


def _moved(weights: list[Residues], gradients: list[Residues], rate: int, q: int) -> list[Residues]:
    step = np.uint64(q - rate)
    return [
        reduced(np.repeat(W, g.shape[-1] // W.shape[-1], axis=-1) + reduced(g * step, q), q)
        for W, g in zip(weights, gradients, strict=True)
    ]
