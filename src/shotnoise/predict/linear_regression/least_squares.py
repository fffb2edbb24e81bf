"""A linear regression as the theory wants it: moments of the data, residuals, everything in the model's coordinates.

    L(W) = (1/n) sum_i s_i 1/2 ||W x_i - y_i||^2 + (l2/2) ||W||^2,     W (k, p), one row per output

The gradient of sample i is s_i (W x_i - y_i) x_i^T; the penalty is common to all samples and adds no noise. Each row
of W moves by itself, driven by the same batches.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shotnoise.errors import DataError, InputError

Array = NDArray[Any]  # float64, or object holding Fractions
PRODUCTS = 2**18  # numbers


@dataclass(frozen=True)
class LeastSquares:
    """x (n, p) with the column of ones if there is an intercept, y (n, k), sample weights s (n,), penalty l2."""

    x: Array
    y: Array
    s: Array
    l2: Any = 0.0

    @property
    def n(self) -> int:
        return len(self.x)

    @property
    def p(self) -> int:
        return int(self.x.shape[1])

    @cached_property
    def moment(self) -> Array:
        """C = (1/n) sum s_i x_i x_i^T, (p, p)."""
        return self.x.T @ (self.s[:, None] * self.x) / self.n

    @cached_property
    def hessian(self) -> Array:
        """C + l2 I, the Hessian of each row, (p, p)."""
        return self.moment + self.l2 * np.eye(self.p, dtype=self.x.dtype if self.x.dtype != object else int)

    @cached_property
    def cross(self) -> Array:
        """(1/n) sum s_i y_i x_i^T, (k, p)."""
        return (self.s[:, None] * self.y).T @ self.x / self.n

    def residuals(self, w: Array) -> Array:
        """W x_i - y_i for weights (..., k, p), (..., k, n)."""
        return w @ self.x.T - self.y.T

    def gradient(self, w: Array) -> Array:
        """The full gradient at weights (..., k, p)."""
        return w @ self.hessian - self.cross

    def loss(self, w: Array) -> Array:
        """L at weights (..., k, p)."""
        half = Fraction(1, 2) if self.x.dtype == object else 0.5
        data = half * (self.s * self.residuals(w) ** 2).sum((-2, -1)) / self.n
        return data + half * self.l2 * (w**2).sum((-2, -1))

    @cached_property
    def products(self) -> Array | None:
        """x_i x_i^T as rows (n, p^2), where that is small: both contractions of the noise are then plain products."""
        if self.n * self.p**2 > PRODUCTS:
            return None
        return (self.x[:, :, None] * self.x[:, None, :]).reshape(self.n, -1)


def least_squares(
    x: ArrayLike,
    y: ArrayLike,
    *,
    intercept: bool,
    weights: ArrayLike | None = None,
    l2: Any = 0.0,
    exact: bool = False,
) -> LeastSquares:
    """Check the data and build the problem in float64, or with exact=True in Fractions.

    Raises DataError for data that is not finite, InputError for shapes that do not fit.
    """
    given = (x, y, l2) if weights is None else (x, y, l2, weights)
    X, Y, penalty, *rest = (fractions(v) if exact else np.asarray(v, np.float64) for v in given)
    if X.ndim != 2 or not len(X) or not X.shape[1]:
        raise InputError(f"X: a matrix (samples, features) is needed, not an array {X.shape}")
    Y = Y[:, None] if Y.ndim == 1 else Y
    if Y.ndim != 2 or len(Y) != len(X):
        raise InputError(f"y: {len(X)} targets (or rows of targets) are needed for X {X.shape}; got {np.shape(y)}")
    for name, values in (("X", X), ("y", Y)):
        bad = np.argwhere(~np.isfinite(values.astype(float)))
        if len(bad):
            row, column = map(int, bad[0])
            raise DataError(
                f"{name}[{row}, {column}] is {values[row, column]}: {len(bad)} entries of {name} are not finite"
            )
    if penalty.ndim or not np.isfinite(float(penalty)):
        raise InputError(f"l2={l2}: a finite number")
    one = fractions([1])[0] if exact else 1.0
    s = rest[0] if rest else np.full(len(X), one)
    if s.shape != (len(X),) or not np.isfinite(s.astype(float)).all() or (s < 0).any():
        raise InputError(f"weights: {len(X)} finite numbers that are not negative, one per sample; got {s.shape}")
    if intercept:
        X = np.column_stack([X, np.full(len(X), one)])
    return LeastSquares(X, Y, s, penalty.item())


def fractions(values: Any) -> Array:
    """An object array of Fractions from ints, Fractions, strings such as "1/3" or floats, which are taken exactly."""
    array = np.asarray(values, dtype=object)
    try:
        return np.array(np.vectorize(Fraction, otypes=[object])(array), dtype=object)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"exact arithmetic needs rational numbers: {error}") from error
