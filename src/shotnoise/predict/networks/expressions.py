"""Traces of products of weights, gradients and constants at any steps, and what is added and multiplied of them.

The mean of any such expression is a polynomial in 1/b (Theorem 3 of the variance paper, 3.3 of its successor). Degrees
in the batches add up in products: the weights at step t have degree (2 q - 1)^(t - 1 - s) in batch s, a gradient there
2 q - 1 times that, and a batch's own gradient degree one in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, fractions
from shotnoise.predict.networks.model import Network, layer_index
from shotnoise.predict.networks.paths import History
from shotnoise.predict.networks.residues import Residues, product, reduced, residues
from shotnoise.schedules import whole

Degrees = tuple[int, ...]  # in batch 0, 1, ...


@dataclass(frozen=True)
class _Node:
    """How to compute it on paths, and what has to be known to check it and to tell what it costs."""

    shape: Callable[[Network], tuple[int, int]]  # raises InputError
    degrees: Callable[[int], Degrees]  # from the degree of the outputs in the weights
    values: Callable[[History], Residues]  # (rows, columns, runs)
    step: int = 0  # the last one whose weights are used
    numbers: tuple[Fraction, ...] = ()


class Matrix:
    """A matrix that depends on the batches: `A @ B`, `A + B`, `A - B`, `2 * A`, `A.T`, `A.trace()`, also with arrays.

    Made by `Weight`, `Gradient`, `FullGradient` and `Constant`.
    """

    __array_ufunc__ = None  # arrays leave operators to this class

    def __init__(self, node: _Node) -> None:
        self._node = node

    def __matmul__(self, other: Any) -> "Matrix":
        return Matrix(_product(self._node, _matrix(other)._node))

    def __rmatmul__(self, other: Any) -> "Matrix":
        return _matrix(other) @ self

    def __add__(self, other: Any) -> "Matrix":
        return Matrix(_sum(self._node, _matrix(other)._node))

    def __radd__(self, other: Any) -> "Matrix":
        return _matrix(other) + self

    def __sub__(self, other: Any) -> "Matrix":
        return self + _matrix(other) * -1

    def __rsub__(self, other: Any) -> "Matrix":
        return _matrix(other) - self

    def __neg__(self) -> "Matrix":
        return self * -1

    def __mul__(self, number: Any) -> "Matrix":
        return Matrix(_scaled(self._node, _scalar(number)._node))

    __rmul__ = __mul__

    @property
    def T(self) -> "Matrix":
        own = self._node

        def shape(network: Network) -> tuple[int, int]:
            rows, columns = own.shape(network)
            return columns, rows

        return Matrix(
            _Node(shape, own.degrees, lambda history: own.values(history).swapaxes(0, 1), own.step, own.numbers)
        )

    def trace(self) -> "Scalar":
        own = self._node

        def shape(network: Network) -> tuple[int, int]:
            if len(set(found := own.shape(network))) > 1:
                raise InputError(f"the trace of a matrix {found} was asked for; a square one is needed")
            return 1, 1

        def values(history: History) -> Residues:
            matrix = own.values(history)
            diagonal = sum((matrix[k, k] for k in range(len(matrix))), np.zeros_like(matrix[0, 0]))
            return reduced(diagonal, history.network.q)[None, None]

        return Scalar(_Node(shape, own.degrees, values, own.step, own.numbers))


class Scalar:
    """A number that depends on the batches, a trace or a loss: `+`, `-`, `*` and whole powers, also with numbers."""

    def __init__(self, node: _Node) -> None:
        self._node = node

    def __add__(self, other: Any) -> "Scalar":
        return Scalar(_sum(self._node, _scalar(other)._node))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Matrix):
            return other * self
        return Scalar(_scaled(self._node, _scalar(other)._node))

    __rmul__ = __mul__

    def __neg__(self) -> "Scalar":
        return Scalar(_scaled(self._node, _scalar(-1)._node))

    def __sub__(self, other: Any) -> "Scalar":
        return self + _scalar(other) * -1

    def __rsub__(self, other: Any) -> "Scalar":
        return -self + other

    def __pow__(self, power: int) -> "Scalar":
        found = _scalar(1)
        for _ in range(whole("power", power, low=0)):
            found = Scalar(_scaled(found._node, self._node))
        return found

    def checked(self, network: Network) -> None:
        """Raises InputError for shapes that do not fit, layers and steps that are not there."""
        self._node.shape(network)

    def degrees(self, outputs: int) -> Degrees:
        return self._node.degrees(outputs)

    @property
    def step(self) -> int:
        """The last one whose weights are used: how many updates there are."""
        return self._node.step

    @property
    def numbers(self) -> tuple[Fraction, ...]:
        return self._node.numbers

    def values(self, history: History) -> Residues:
        """(1, runs)."""
        return self._node.values(history)[0]


def Weight(layer: int, step: int) -> Matrix:
    """The weights of a layer at a step, before that step's update; layer 0 is the first, -1 the last."""
    step = whole("step", step, low=0)

    def values(history: History) -> Residues:
        return history.weight(layer, step)

    return Matrix(_Node(_shape_of(layer), lambda q: _weights(q, step), values, step))


def Gradient(layer: int, step: int) -> Matrix:
    """The gradient of the batch drawn at a step, in the shape of the layer's weights."""
    step = whole("step", step, low=0)

    def values(history: History) -> Residues:
        return history.gradient(layer, step)

    return Matrix(_Node(_shape_of(layer), lambda q: (*_times(_weights(q, step), 2 * q - 1), 1), values, step))


def FullGradient(layer: int, step: int) -> Matrix:
    """The gradient of the population's loss at the weights of a step."""
    step = whole("step", step, low=0)

    def values(history: History) -> Residues:
        return history.full_gradient(layer, step)

    return Matrix(_Node(_shape_of(layer), lambda q: _times(_weights(q, step), 2 * q - 1), values, step))


def Loss(step: int) -> Scalar:
    """The population's loss at the weights of a step."""
    step = whole("step", step, low=0)

    def values(history: History) -> Residues:
        return history.loss(step)[None, None]

    return Scalar(_Node(lambda network: (1, 1), lambda q: _times(_weights(q, step), 2 * q), values, step))


def Constant(values: Any) -> Matrix:
    """A matrix of numbers: ints, Fractions, strings such as "1/3", or floats, which are taken exactly."""
    matrix: Array = fractions(values)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"a constant matrix is needed, not an array {matrix.shape}")

    def modulo(history: History) -> Residues:
        return residues(matrix, history.network.q)[..., None]

    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    return Matrix(_Node(lambda network: shape, lambda q: (), modulo, 0, tuple(matrix.ravel().tolist())))


def _matrix(value: Any) -> Matrix:
    return value if isinstance(value, Matrix) else Constant(value)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, Scalar):
        return value
    if np.ndim(value) or isinstance(value, Matrix):
        raise InputError(f"a number or a trace is needed, not {value!r}; matrices are multiplied by @")
    return Scalar(Constant([[value]])._node)


def _shape_of(layer: int) -> Callable[[Network], tuple[int, int]]:
    def shape(network: Network) -> tuple[int, int]:
        rows, columns = network.student[layer_index(network, layer)].shape
        return int(rows), int(columns)

    return shape


def _weights(outputs: int, step: int) -> Degrees:
    return tuple((2 * outputs - 1) ** (step - 1 - s) for s in range(step))


def _times(degrees: Degrees, factor: int) -> Degrees:
    return tuple(factor * d for d in degrees)


def _padded(a: Degrees, b: Degrees) -> Iterator[tuple[int, int]]:
    return zip_longest(a, b, fillvalue=0)


def _product(a: _Node, b: _Node) -> _Node:
    def shape(network: Network) -> tuple[int, int]:
        (rows, inner), (other, columns) = a.shape(network), b.shape(network)
        if inner != other:
            raise InputError(f"a matrix {(rows, inner)} times a matrix {(other, columns)}: the inner sizes differ")
        return rows, columns

    def values(history: History) -> Residues:
        return product(a.values(history), b.values(history), history.network.q)

    return _Node(
        shape,
        lambda q: tuple(x + y for x, y in _padded(a.degrees(q), b.degrees(q))),
        values,
        max(a.step, b.step),
        a.numbers + b.numbers,
    )


def _scaled(a: _Node, scalar: _Node) -> _Node:
    def shape(network: Network) -> tuple[int, int]:
        scalar.shape(network)
        return a.shape(network)

    def values(history: History) -> Residues:
        return reduced(a.values(history) * scalar.values(history), history.network.q)

    return _Node(
        shape,
        lambda q: tuple(x + y for x, y in _padded(a.degrees(q), scalar.degrees(q))),
        values,
        max(a.step, scalar.step),
        a.numbers + scalar.numbers,
    )


def _sum(a: _Node, b: _Node) -> _Node:
    def shape(network: Network) -> tuple[int, int]:
        first, second = a.shape(network), b.shape(network)
        if first != second:
            raise InputError(f"a matrix {first} plus a matrix {second}: the shapes differ")
        return first

    def values(history: History) -> Residues:
        return reduced(a.values(history) + b.values(history), history.network.q)

    return _Node(
        shape,
        lambda q: tuple(max(x, y) for x, y in _padded(a.degrees(q), b.degrees(q))),
        values,
        max(a.step, b.step),
        a.numbers + b.numbers,
    )
