"""The mean of any expression in weights, gradients and constants: an exact polynomial in 1/b."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.batch_polynomial import INVERSE
from shotnoise.predict.networks.engines import SECONDS, Engine, Interrupted, Progress, in_floats, refuse_beyond
from shotnoise.predict.networks.expressions import Scalar
from shotnoise.predict.networks.inputs import Moments, Points
from shotnoise.predict.networks.model import network, trimmed
from shotnoise.predict.networks.paths import Paths, checked_inputs, gradient_input_degree, loss_input_degree
from shotnoise.predict.networks.polynomial import NetworkPolynomial
from shotnoise.predict.networks.residues import rational


def expectation(
    expression: Scalar,
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> NetworkPolynomial:
    """E of an expression over all batches that it depends on, at every batch size; other arguments as for gradients.

    expression: traces of products of `Weight`, `Gradient`, `FullGradient` and `Constant` matrices at any steps, and
    `Loss`, added and multiplied. Steps are counted as everywhere: the gradient at step t is drawn at w_t.
    The degree in 1/b is at most the sum over batches of (degree in the batch - 1).

    Raises InputError for shapes that do not fit, and what would take too long; `Interrupted` when stopped.
    Source: variance paper Theorem 3, its successor Theorem 3.3, with the degrees corrected.

    >>> import shotnoise as sn
    >>> g = sn.predict.networks.Gradient(0, step=0)
    >>> own = sn.predict.networks.expectation((g.T @ g).trace(), [[[1]], [[1]]], [[4]], "1/24")
    >>> own.coefficients.tolist()  # ||grad L||^2 = 9, var(g) = 18 / b
    [Fraction(9, 1), Fraction(18, 1)]
    """
    if not isinstance(expression, Scalar):
        raise InputError(f"expression: a trace, a loss, or what is made of them; got {expression!r}. Call .trace()")
    own = network(student, teacher, learning_rate, expression.step, activation)
    checked_inputs(own, inputs)
    expression.checked(own)
    degrees = expression.degrees(own.weight_degree)
    followed = Paths(own, inputs, degrees, max(gradient_input_degree(own), loss_input_degree(own)))
    engine = Engine("means of batches on a lattice", followed.seconds, lambda tell: ([], None))
    refuse_beyond(seconds, engine, "the exact mean")
    try:
        found: list[Any] = trimmed(
            rational(
                lambda q: followed.means(expression.values, q)[0],
                [*followed.numbers, *expression.numbers],
                progress or (lambda done, of: None),
                followed.primes,
            )
        )
    except KeyboardInterrupt as stop:
        raise Interrupted({}, expression.step) from stop
    errors = np.zeros(len(found))
    if not own.rational:
        found, errors = in_floats(found, None)
    return NetworkPolynomial(
        np.array(found, dtype=object if own.rational else np.float64),
        INVERSE,
        inputs.n if isinstance(inputs, Points) and not inputs.replacement else None,
        degree_bound=sum(max(d - 1, 0) for d in degrees),
        engine=engine.name,
        coefficient_errors=errors,
        bounded_inputs=isinstance(inputs, Points),
    )
