"""The variance of a network's stochastic gradient after t steps, given only the initial weights: a polynomial in 1/b.

By the law of total variance, with Sigma(w) the covariance of one sample's gradient, u = 1/b and fresh batches,

    var(g_t) = u E tr Sigma(w_t) + var(grad L(w_t)).

The second term, which the variance paper's proof of Theorem 4 leaves out, is of the same order from t = 1 on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.batch_polynomial import INVERSE, BatchPolynomial
from shotnoise.predict.networks import gaussian, lattice, points, traces
from shotnoise.predict.networks.forms import FULL_GRADIENT, GRADIENT, LOSS
from shotnoise.predict.networks.model import (
    Network,
    gradient_degree,
    layer_index,
    loss_degree,
    network,
    printed_bounds,
)
from shotnoise.predict.networks.points import Points

SECONDS = 600.0  # what may be asked for without saying so
SMALL = 0.1  # of the leading term: what higher ones may add where a simulation is expected to agree


@dataclass(frozen=True)
class NetworkPolynomial(BatchPolynomial):
    """A polynomial in u = 1/b, and what is known about it.

    degree_bound: the highest power that can occur, reached by generic weights. printed_bounds: what the papers print
    for the gradient's variance, by theorem; some lie below degrees that occur. engine: how it was computed.
    """

    degree_bound: int = 0
    printed_bounds: dict[str, int] = field(default_factory=dict)
    engine: str = ""

    @property
    def simulation_agrees_from(self) -> float:
        """The smallest batch size from which on terms beyond 1/b add at most a tenth of the one in 1/b.

        With unbounded inputs, exact values at smaller batches are carried by events that no simulation meets: compare
        runs with exact values from here on only. math.inf where there is no term in 1/b but higher ones.
        """
        leading, *higher = [abs(float(c)) for c in self.coefficients[1:]] or [0.0]
        if not any(higher):
            return 1.0
        if not leading:
            return math.inf

        def small(b: float) -> bool:
            # from the highest power down, so that no power of a large b overflows
            total = 0.0
            for c in reversed(higher):
                total = (total + c) / b
            return total <= SMALL * leading

        above = 1
        while not small(above):
            above *= 2
        below = above // 2
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (below, middle) if small(middle) else (middle, above)
        return float(above)


def gradient_variance_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points = "gaussian",
    seconds: float = SECONDS,
) -> NetworkPolynomial:
    """var(g_t) = E ||g_t||^2 - ||E g_t||^2 of one layer's batch gradient at step t, by batch size.

    student: weight matrices (outputs, inputs), first layer first, at step 0. teacher: likewise, or for a linear teacher
    one product matrix; labels are its outputs, without noise. activation: c_0, c_1, ... of a polynomial that acts on
    the hidden layers of both; None for linear networks. The loss is E 1/2 ||f(x) - y||^2.
    learning_rate: a number, one number per update, or a function of t. layer: 0 is the first.
    inputs: "gaussian", fresh x ~ N(0, I) in every batch (with an activation, step 0
    and, for one input, step 1 are in reach); or `Points`, finitely many values.
    seconds: refuse what is predicted to take longer.

    Ints, Fractions and strings such as "1/3" give exact Fractions, floats give floats. The result is a polynomial in
    1/b, at most of degree sum_{s=0}^t (2 (2 q - 1)^s - 1), q the degree of the outputs in the weights; without a
    constant term, except without replacement. Only distributions given as points, or Gaussian, are covered; for other
    networks simulate.

    Raises InputError for shapes that do not chain, numbers that are not finite, and what would take too long.
    Source: variance paper sec. 3.2 (Theorem 4, corrected), its successor sec. 3.1.

    >>> p = gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    >>> p.degree, p.degree_bound, p.printed_bounds["Theorem 4"]
    (6, 6, 18)
    >>> round(float(p(2)), 5), p.decreasing_beyond, p.simulation_agrees_from
    (9.17015, 1.0, 2.0)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return _polynomial(own, inputs, GRADIENT, layer_index(own, layer), seconds)


def full_gradient_variance_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points = "gaussian",
    seconds: float = SECONDS,
) -> NetworkPolynomial:
    """var(grad L(w_t)): how far the full gradient at step t differs between runs. Arguments as for the batch gradient.

    >>> p = full_gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    >>> p.coefficients[:2].tolist(), p.degree
    ([Fraction(0, 1), Fraction(169, 131072)], 5)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return _polynomial(own, inputs, FULL_GRADIENT, layer_index(own, layer), seconds)


def loss_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points = "gaussian",
    seconds: float = SECONDS,
) -> NetworkPolynomial:
    """E L(w_t), the expected loss at step t, with the loss of plain gradient descent as its constant term.

    Unlike in linear regression it may rise with the batch size, even for large batches. Arguments as above.

    >>> loss_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1).coefficients[1]
    Fraction(-13, 2048)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return _polynomial(own, inputs, LOSS, 0, seconds)


def predicted_seconds(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points = "gaussian",
) -> float:
    """How long `gradient_variance_polynomial` would take on one core, within a small factor; 1e300 beyond memory.

    Floats take longer than short fractions: they are binary fractions of some fifty digits.

    >>> predicted_seconds([[[1]], [[1]]], [[4]], "1/24", step=2) < 1 < predicted_seconds([[[1]], [[1]]], [[4]], 0.1, 5)
    True
    """
    own = network(student, teacher, learning_rate, step, activation)
    return min(engine.seconds for engine in _engines(own, inputs, GRADIENT, layer_index(own, layer)))


@dataclass(frozen=True)
class _Engine:
    name: str
    seconds: float
    run: Callable[[], list[Any]]


def _polynomial(own: Network, inputs: str | Points, quantity: str, layer: int, seconds: float) -> NetworkPolynomial:
    engine = min(_engines(own, inputs, quantity, layer), key=lambda engine: engine.seconds)
    step = len(own.rates)
    if engine.seconds > seconds:
        needs = "more memory than there is" if engine.seconds >= 1e300 else f"about {engine.seconds:.2g} seconds"
        raise InputError(
            f"the exact polynomial at step {step} would take {needs} ({engine.name}); the limit is "
            f"seconds={seconds:g}. Ask for an earlier step or fewer inputs, give short fractions instead of floats, "
            "use gradient_variance_at for one batch size of a linear network (at most two inputs), or simulate"
        )
    found = engine.run()
    bounds = {GRADIENT: gradient_degree(own, step), FULL_GRADIENT: gradient_degree(own, step) - 1}
    without = isinstance(inputs, Points) and not inputs.replacement
    if quantity != LOSS and not without:
        found[0] -= found[0]  # exactly zero; of floats there may be rounding
    if not own.rational:
        found = [float(c) for c in found]
    coefficients = np.array(found, dtype=object if own.rational else np.float64)
    return NetworkPolynomial(
        coefficients,
        INVERSE,
        inputs.n if isinstance(inputs, Points) and without else None,
        degree_bound=bounds[quantity] if quantity != LOSS else loss_degree(own, step),
        printed_bounds=printed_bounds(own, step) if quantity == GRADIENT else {},
        engine=engine.name,
    )


def _engines(own: Network, inputs: str | Points, quantity: str, layer: int) -> list[_Engine]:
    """All that can answer, with their predicted costs."""
    if isinstance(inputs, Points):
        if inputs.points.shape[1] != own.p:
            raise InputError(f"inputs: points with {inputs.points.shape[1]} entries, but the student takes {own.p}")
        return [
            _Engine(
                "shares of points on a lattice",
                points.lattice_cost(own, quantity, inputs.n, inputs.n - 1),
                lambda: points.polynomial(own, inputs, quantity, layer),
            )
        ]
    if inputs != "gaussian":
        raise InputError(f"inputs={inputs!r}: 'gaussian' or Points are known")
    if own.activation is not None:
        return [
            _Engine(
                "means of monomials on a lattice",
                gaussian.cost(own, quantity),
                lambda: points.polynomial(own, gaussian.GaussianInputs.of(own), quantity, layer),
            )
        ]
    step = len(own.rates)
    if step == 0:
        return [_Engine("closed form", 0.0, lambda: _at_the_start(own, quantity, layer))]
    engines = [
        _Engine(
            "covariances on a lattice", lattice.cost(own, quantity), lambda: lattice.polynomial(own, quantity, layer)
        )
    ]
    if step == 1 and own.depth == 2:
        rate = own.rates[0] if own.rational else float(own.rates[0])

        def by_traces() -> list[Any]:
            layers, target = own.arrays()
            return traces.polynomial(layers, target, rate, quantity, layer)

        engines.append(_Engine("trace calculus", traces.cost(own.p, exact=own.rational), by_traces))
    return engines


def _at_the_start(own: Network, quantity: str, layer: int) -> list[Any]:
    """Nothing random has happened but the batch itself: u (||L^T e R^T||^2 + ||L^T e||^2 ||R||^2), or the loss."""
    layers, error = own.arrays()
    after, before = None, None
    for k, W in enumerate(layers):
        if k < layer:
            before = W if before is None else W @ before
        elif k > layer:
            after = W if after is None else W @ after
    output = layers[0]
    for W in layers[1:]:
        output = W @ output
    error = output - error
    if quantity == LOSS:
        return [(error**2).sum() / 2]
    pulled = error if after is None else after.T @ error
    inner = pulled if before is None else pulled @ before.T
    spread = own.p if before is None else (before**2).sum()
    variance = (inner**2).sum() + (pulled**2).sum() * spread
    return [0 * variance, variance] if quantity == GRADIENT else [0 * variance]
