"""Which engine answers, what it will cost, and carrying it out: progress, and what is finished when stopped."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.batch_polynomial import INVERSE
from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks import centred, lattice, quantities, traces
from shotnoise.predict.networks.forms import GRADIENT, LOSS, LOSS_VARIANCE, degree_bound
from shotnoise.predict.networks.inputs import Moments, Points
from shotnoise.predict.networks.model import Network, printed_bounds
from shotnoise.predict.networks.paths import checked_inputs
from shotnoise.predict.networks.polynomial import NetworkPolynomial

Progress = Callable[[int, int], None]
Found = tuple[list[Any], Array | None]  # coefficients, and bounds on their errors if they are floats
EPS = 2.0**-53
SECONDS = 600.0  # what may be asked for without saying so
LONG = 3.0  # predicted seconds from which on earlier steps are done first, so that something is there when stopped


class Interrupted(KeyboardInterrupt):
    """Stopped by the user; `partial` holds what was finished: the polynomials of earlier steps, by step.

    Those are computed first wherever the whole is predicted to take more than three seconds and they are cheap beside.
    """

    def __init__(self, partial: dict[int, NetworkPolynomial], step: int) -> None:
        done = f"steps {', '.join(map(str, partial))} are" if partial else "no step is"
        super().__init__(f"stopped at step {step}; {done} finished and in .partial")
        self.partial = partial


@dataclass(frozen=True)
class Engine:
    name: str
    seconds: float
    run: Callable[[Progress], Found]


def answered(
    own: Network, inputs: Any, quantity: str, layer: int, seconds: float, progress: Progress | None
) -> NetworkPolynomial:
    """The polynomial by the cheapest engine, refused beyond `seconds`; Interrupted carries earlier steps."""
    step, partial = len(own.rates), {}
    engine = cheapest(own, inputs, quantity, layer)
    refuse_beyond(seconds, engine, f"the exact polynomial at step {step}")
    try:
        for earlier in range(step if engine.seconds > LONG else 0):
            before = replace(own, rates=own.rates[:earlier])
            cheap = cheapest(before, inputs, quantity, layer)
            if cheap.seconds < engine.seconds / 4:
                partial[earlier] = _polynomial(before, inputs, quantity, cheap, None)
        return _polynomial(own, inputs, quantity, engine, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted(partial, step) from stop


def refuse_beyond(seconds: float, engine: Engine, what: str) -> None:
    if engine.seconds > seconds:
        needs = "more memory than there is" if engine.seconds >= 1e300 else f"about {engine.seconds:.2g} seconds"
        raise InputError(
            f"{what} would take {needs} ({engine.name}); the limit is seconds={seconds:g}. Ask for an earlier step or "
            "fewer inputs, use gradient_variance_at for one batch size of a linear network (at most two inputs), "
            "sn.predict.propagation for the term in 1/b of any network, or simulate"
        )


def cheapest(own: Network, inputs: Any, quantity: str, layer: int) -> Engine:
    return min(_engines(own, inputs, quantity, layer), key=lambda engine: engine.seconds)


def in_floats(found: list[Any], errors: Array | None) -> tuple[list[float], Array]:
    """Exact coefficients are rounded correctly; those of float engines come with their bounds."""
    try:
        values = [float(c) for c in found]
    except OverflowError as error:
        raise InputError(
            "the coefficients leave the range of floats: give ints, Fractions or strings for exact ones"
        ) from error
    return values, np.abs(values) * EPS if errors is None else errors


def _polynomial(
    own: Network, inputs: Any, quantity: str, engine: Engine, progress: Progress | None
) -> NetworkPolynomial:
    step = len(own.rates)
    found, errors = engine.run(progress or _silent)
    without = isinstance(inputs, Points) and not inputs.replacement
    if own.rational:
        errors = np.zeros(len(found))
    else:
        found, errors = in_floats(found, errors)
    if quantity != LOSS and not without:
        found[0] -= found[0]  # exactly zero; of floats there may be rounding
        errors[0] = 0.0
    return NetworkPolynomial(
        np.array(found, dtype=object if own.rational else np.float64),
        INVERSE,
        inputs.n if isinstance(inputs, Points) and without else None,
        degree_bound=degree_bound(quantity, own.weight_degree, step),
        printed_bounds=printed_bounds(own, step) if quantity == GRADIENT else {},
        engine=engine.name,
        coefficient_errors=errors,
        bounded_inputs=isinstance(inputs, Points),
    )


def _silent(done: int, of: int) -> None:
    pass


def _engines(own: Network, inputs: Any, quantity: str, layer: int) -> list[Engine]:
    """All that can answer, with their predicted costs."""
    checked_inputs(own, inputs)
    if isinstance(inputs, Points | Moments) or own.activation is not None:
        followed = quantities.paths(own, inputs, quantity)
        return [
            Engine(
                "means of batches on a lattice",
                followed.seconds,
                lambda tell: (quantities.polynomial(followed, quantity, layer, tell), None),
            )
        ]
    step = len(own.rates)
    if step == 0:
        return [Engine("closed form", 0.0, lambda tell: _at_the_start(own, quantity, layer))]
    engines = [
        Engine(
            "covariances on a lattice",
            lattice.cost(own, quantity),
            lambda tell: (lattice.polynomial(own, quantity, layer, tell), None),
        )
    ]
    if not own.rational:

        def centred_algebra(tell: Progress) -> Found:
            values, errors = centred.polynomial(own, quantity, layer)
            return values.tolist(), errors

        engines.append(Engine("centred covariances in floats", centred.cost(own, quantity), centred_algebra))
    if step == 1 and own.depth == 2 and quantity != LOSS_VARIANCE:
        engines.append(
            Engine(
                "trace calculus",
                traces.cost(own.p, exact=own.rational),
                lambda tell: _by_traces(own, quantity, layer),
            )
        )
    return engines


def _by_traces(own: Network, quantity: str, layer: int) -> Found:
    layers, target = own.arrays()
    rate: Any = own.rates[0] if own.rational else float(own.rates[0])
    found = traces.polynomial(layers, target, rate, quantity, layer)
    return found, None if own.rational else traces.error_bounds(layers, target, rate, quantity, layer)


def _at_the_start(own: Network, quantity: str, layer: int) -> Found:
    layers, target = own.arrays()
    found = _form_at_the_start(layers, target, quantity, layer)
    if own.rational:
        return found, None
    absolute = _form_at_the_start([np.abs(W) for W in layers], -np.abs(target), quantity, layer)
    roundings = 4 * sum(sum(W.shape) + 2 for W in layers)  # that can follow each other, at most
    return found, roundings * 2 * EPS * np.array(absolute)


def _form_at_the_start(layers: list[Array], target: Array, quantity: str, layer: int) -> list[Any]:
    """Nothing random has happened but the batch itself: u (||L^T e R^T||^2 + ||L^T e||^2 ||R||^2), or the loss."""
    after, before = None, None
    for k, W in enumerate(layers):
        if k < layer:
            before = W if before is None else W @ before
        elif k > layer:
            after = W if after is None else W @ after
    output = layers[0]
    for W in layers[1:]:
        output = W @ output
    error = output - target
    if quantity in (LOSS, LOSS_VARIANCE):
        loss = (error**2).sum() / 2
        return [loss if quantity == LOSS else 0 * loss]
    pulled = error if after is None else after.T @ error
    inner = pulled if before is None else pulled @ before.T
    spread = layers[0].shape[1] if before is None else (before**2).sum()
    variance = (inner**2).sum() + (pulled**2).sum() * spread
    return [0 * variance, variance] if quantity == GRADIENT else [0 * variance]
