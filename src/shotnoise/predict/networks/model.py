"""A student network, its teacher and its learning rates, checked; and how high the polynomials in 1/b can go.

    f(x) = W_H s(W_{H-1} ... s(W_1 x)),   s(z) = c_0 + c_1 z + ... + c_D z^D on the hidden layers, or none (linear)
    L(w) = E 1/2 ||f(x) - y(x)||^2,   y the teacher's output without noise

f has degree q = 1 + D + ... + D^(H-1) in the weights (H if linear), a per-sample gradient 2 q - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from numbers import Rational
from typing import Any

import numpy as np

from shotnoise import schedules
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, fractions
from shotnoise.schedules import whole


@dataclass(frozen=True)
class Network:
    """All entries Fractions, whatever came in: floats are the binary fractions that they are.

    student: the W_k, first layer first; teacher likewise; activation: c_0 .. c_D, None if linear; rates: one per update
    before the gradient that is asked about; rational: whether the numbers came as ints and Fractions.
    """

    student: tuple[Array, ...]
    teacher: tuple[Array, ...]
    activation: Array | None
    rates: tuple[Fraction, ...]
    rational: bool

    @property
    def depth(self) -> int:
        return len(self.student)

    @property
    def p(self) -> int:
        """How many inputs there are."""
        return int(self.student[0].shape[1])

    @property
    def target(self) -> Array:
        """W*, the linear teacher as one matrix (outputs, p)."""
        return reduce(lambda inner, W: W @ inner, self.teacher)

    def arrays(self) -> tuple[list[Array], Array]:
        """The student's weights and W*, float64 unless everything came as rational numbers."""
        if self.rational:
            return list(self.student), self.target
        layers, teacher = ([W.astype(np.float64) for W in own] for own in (self.student, self.teacher))
        return layers, reduce(lambda inner, W: W @ inner, teacher)

    @property
    def weight_degree(self) -> int:
        """q, the degree of the outputs in all weights together."""
        if self.activation is None:
            return self.depth
        return sum((len(self.activation) - 1) ** k for k in range(self.depth))


def network(
    student: Sequence[Any], teacher: Any, learning_rate: Any, step: int, activation: Sequence[Any] | None = None
) -> Network:
    """Raises InputError for shapes that do not chain, outputs that differ, numbers that are not finite."""
    step = whole("step", step, low=0)
    layers, rational = _matrices("student", _listed("student", student))
    given = _listed("teacher", teacher)
    targets, rational_targets = _matrices("teacher", [given] if _is_matrix(given) else given)
    for what, own, other in (
        ("inputs", layers[0].shape[1], targets[0].shape[1]),
        ("outputs", layers[-1].shape[0], targets[-1].shape[0]),
    ):
        if own != other:
            raise InputError(f"the student has {own} {what}, the teacher {other}; they must see and answer the same")
    coefficients, rational_activation = None, True
    if activation is not None:
        rational_activation = _is_rational(activation)
        coefficients = fractions(_finite("activation", activation))
        if coefficients.ndim != 1 or len(coefficients) < 2:
            raise InputError(
                f"activation: coefficients c_0, c_1, ... of a polynomial of degree >= 1; got {activation!r}"
            )
        while len(coefficients) > 2 and coefficients[-1] == 0:
            coefficients = coefficients[:-1]
        if coefficients.tolist() == [0, 1]:
            coefficients = None
    rates = _rates(learning_rate, step)
    return Network(
        layers,
        targets,
        coefficients,
        tuple(fractions(rates).tolist()) if rates else (),
        rational and rational_targets and rational_activation and _is_rational(rates),
    )


def layer_index(network: Network, layer: int) -> int:
    """The layer from the front, 0 first; negative ones count from the back."""
    if not -network.depth <= layer < network.depth:
        raise InputError(f"layer={layer}: the student has layers 0 .. {network.depth - 1}")
    return layer % network.depth


def printed_bounds(network: Network, step: int) -> dict[str, int]:
    """What the papers print for var(g_t): by theorem, whether right or not (some lie below degrees that occur)."""
    found = {}
    if network.depth == 2 and network.activation is None:
        found["Theorem 4"] = 2 * 3 ** (step + 1)
        found["Theorem A.7"] = 3 ** (step + 1) - 1
    degree = 1 if network.activation is None else len(network.activation) - 1
    found["Theorem 3.4"] = (degree + 1) ** ((step + 1) * degree) - 1
    found["Theorem 3.4, end of its proof"] = 2 * (degree + 1) ** ((step + 1) * degree) - 1
    return found


def trimmed(coefficients: list[Fraction]) -> list[Fraction]:
    """Without the zeros of the highest powers."""
    while len(coefficients) > 1 and not coefficients[-1]:
        coefficients = coefficients[:-1]
    return coefficients


def _matrices(name: str, given: Sequence[Any]) -> tuple[tuple[Array, ...], bool]:
    found: list[Array] = []
    for k, matrix in enumerate(given):
        W = _finite(f"{name}[{k}]", matrix)
        if W.ndim != 2 or not W.size:
            raise InputError(f"{name}[{k}]: a matrix (outputs, inputs) is needed, not an array {W.shape}")
        if found and W.shape[1] != found[-1].shape[0]:
            raise InputError(
                f"{name}: layer {k} takes {W.shape[1]} inputs but layer {k - 1} gives {found[-1].shape[0]} outputs; "
                "matrices are (outputs, inputs), first layer first"
            )
        found.append(fractions(W))
    return tuple(found), all(map(_is_rational, given))


def _listed(name: str, given: Any) -> list[Any]:
    """Tensors as arrays, at the top or one level down."""
    if not hasattr(given, "__iter__") or isinstance(given, str) or not len(_plain(given)):
        raise InputError(f"{name}: a list of weight matrices, first layer first, is needed; got {given!r}")
    return [_plain(entry) for entry in _plain(given)]


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _is_matrix(given: list[Any]) -> bool:
    """One matrix, rather than a list of them."""
    return all(np.ndim(row) == 1 and all(np.ndim(value) == 0 for value in row) for row in given)


def _is_rational(values: Any) -> bool:
    return all(isinstance(value, (Rational, np.integer, str)) for value in np.asarray(values, dtype=object).ravel())


def _finite(name: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
        if array.dtype.kind != "f":
            array = fractions(np.asarray(values, dtype=object))
        finite = bool(np.isfinite(array.astype(float)).all())
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: numbers are needed; {error}") from error
    if not finite:
        raise InputError(f"{name} holds numbers that are not finite")
    return array.astype(object)


def _rates(learning_rate: Any, step: int) -> list[Any]:
    """One per update; those of a longer sequence that come later do not matter."""
    if callable(learning_rate):
        given = [learning_rate(t) for t in range(step)]
    elif np.ndim(learning_rate) == 0:
        given = [learning_rate] * step
    else:
        given = list(learning_rate)[:step]
    if len(given) < step:
        raise InputError(f"learning_rate has {len(given)} values; step={step} needs one for each of {step} updates")
    values = [v.item() if isinstance(v, np.generic) else v for v in given]
    try:
        plain = [float(Fraction(v)) if isinstance(v, str) else float(v) for v in values]
    except (ValueError, TypeError) as error:
        raise InputError(f"learning_rate={learning_rate!r}: numbers are needed") from error
    schedules.values(plain, step)
    return values
