"""A linear regression as the theory wants it: moments of the data, residuals, everything in the model's coordinates.

    L(W) = (1/n) sum_i s_i 1/2 ||W x_i - y_i||^2 + (l2/2) ||W||^2,     W (k, p), one row per output

The gradient of sample i is s_i (W x_i - y_i) x_i^T; the penalty is common to all samples and adds no noise. Each row
of W moves by itself, driven by the same batches.
"""

from dataclasses import dataclass
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
        half = self.x.dtype.type(0.5) if self.x.dtype != object else _half()
        data = half * (self.s * self.residuals(w) ** 2).sum((-2, -1)) / self.n
        return data + half * self.l2 * (w**2).sum((-2, -1))

    @cached_property
    def products(self) -> Array | None:
        """x_i x_i^T as rows (n, p^2), where that is small: both contractions of the noise are then plain products."""
        if self.n * self.p**2 > PRODUCTS:
            return None
        return (self.x[:, :, None] * self.x[:, None, :]).reshape(self.n, -1)


def least_squares(
    x: ArrayLike, y: ArrayLike, *, intercept: bool, weights: ArrayLike | None = None, l2: float = 0.0
) -> LeastSquares:
    """Check the data and build the problem in float64.

    Raises DataError for data that is not finite, InputError for shapes that do not fit.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or not len(a) or not a.shape[1]:
        raise InputError(f"X: a matrix (samples, features) is needed, not an array {a.shape}")
    b = b[:, None] if b.ndim == 1 else b
    if b.ndim != 2 or len(b) != len(a):
        raise InputError(f"y: {len(a)} targets (or rows of targets) are needed for X {a.shape}; got {np.shape(y)}")
    for name, values in (("X", a), ("y", b)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = map(int, bad[0])
            raise DataError(
                f"{name}[{row}, {column}] is {values[row, column]}: {len(bad)} entries of {name} are not finite"
            )
    if not np.isfinite(l2):
        raise InputError(f"l2={l2}: a finite number")
    s = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    if s.shape != (len(a),) or not np.isfinite(s).all() or (s < 0).any():
        raise InputError(f"weights: {len(a)} finite numbers that are not negative, one per sample; got {s.shape}")
    return LeastSquares(np.column_stack([a, np.ones(len(a))]) if intercept else a, b, s, float(l2))


def _half() -> Any:
    from fractions import Fraction

    return Fraction(1, 2)
