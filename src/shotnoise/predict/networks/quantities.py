"""The variances of gradients and of the loss, and its mean, on paths: means of forms, less squared means of others."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from shotnoise.predict.networks.forms import FULL_GRADIENT, GRADIENT, LOSS, LOSS_VARIANCE, batch_degrees
from shotnoise.predict.networks.inputs import Points
from shotnoise.predict.networks.model import Network, trimmed
from shotnoise.predict.networks.paths import History, Paths, gradient_input_degree, loss_input_degree
from shotnoise.predict.networks.residues import Residues, convolved, rational, reduced


def paths(network: Network, inputs: Any, quantity: str) -> Paths:
    """What runs to follow, and how far the moments of the inputs must be known."""
    gradient = gradient_input_degree(network)
    degree = {GRADIENT: 2 * gradient, FULL_GRADIENT: gradient}.get(quantity, loss_input_degree(network))
    return Paths(network, inputs, tuple(batch_degrees(quantity, network.weight_degree, len(network.rates))), degree)


def polynomial(
    own: Paths, quantity: str, layer: int, tell: Callable[[int, int], None] = lambda done, of: None
) -> list[Fraction]:
    """The coefficients in u, constant term first; `tell` hears of every prime that is done, of about how many."""
    return trimmed(rational(lambda q: _modulo(own, quantity, layer, q), own.numbers, tell, own.primes))


def _modulo(own: Paths, quantity: str, layer: int, q: int) -> Residues:
    last = len(own.network.rates)

    def loss(history: History) -> Residues:
        return history.loss(last)[None]

    def squared_loss(history: History) -> Residues:
        return reduced(loss(history) * loss(history), q)

    def squares(history: History) -> Residues:
        return history.network.squares(history.weights[last], history.sample, layer)

    def full_gradient(history: History) -> Residues:
        full = history.full_gradient(layer, last)
        return full.reshape(-1, full.shape[-1])

    if quantity == LOSS:
        return own.means(loss, q)[0]
    if quantity == LOSS_VARIANCE:
        plain, inner = own.means(squared_loss, q)[0], own.halved.means(loss, q)
    else:
        (plain, single), inner = own.means(squares, q), own.halved.means(full_gradient, q)
    total = np.zeros(len(plain) + 1, np.uint64)
    total[:-1] = plain
    if quantity == GRADIENT:  # kappa (E ||g||^2 of one sample - E ||grad L||^2)
        spread, inputs = reduced(single + np.uint64(q) - plain, q), own.inputs
        if not isinstance(inputs, Points) or inputs.replacement:
            total[1:] += spread
        elif inputs.n > 1:
            share = pow(inputs.n - 1, -1, q)
            total[1:] += reduced(spread * np.uint64(inputs.n * share % q), q)
            total[:-1] += reduced(spread * np.uint64(q - share), q)
    for entry in inner:
        square = convolved(entry, entry, q)
        total[: len(square)] = reduced(total[: len(square)] + np.uint64(q) - square, q)
    return reduced(total, q)
