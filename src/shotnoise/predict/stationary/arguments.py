"""What users may pass, checked at the door: covariances, penalties, learning rates, batch sizes, fourth moments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shotnoise.errors import InputError

Array = NDArray[np.float64]
FourthMoment = Callable[[Array], Array]  # S -> E[x x^T S x x^T]
ROUNDING = 1e-10  # asymmetry, relative to the largest entry, that counts as rounding


def numbers(name: str, value: ArrayLike) -> Array:
    """A finite float64 array."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: numbers are needed; got {value!r}") from error
    if not np.isfinite(found).all():
        raise InputError(f"{name}: {np.size(found) - np.isfinite(found).sum()} entries are not finite")
    return found


def covariance(name: str, value: ArrayLike, p: int | None = None) -> Array:
    """A symmetric positive semi-definite matrix (p, p); a number or a vector stands for a diagonal one."""
    given = numbers(name, value)
    matrix = np.diag(np.atleast_1d(given)) if given.ndim < 2 else given
    _check_symmetric(name, matrix, p)
    eigenvalues = np.linalg.eigvalsh(matrix)
    if eigenvalues[0] < -ROUNDING * max(abs(eigenvalues[-1]), np.finfo(float).tiny):
        raise InputError(
            f"{name} has the negative eigenvalue {eigenvalues[0]:.3g}: a covariance has none; "
            "was it made as x.T @ x / n?"
        )
    return (matrix + matrix.T) / 2


def penalty(name: str, value: ArrayLike, p: int) -> Array:
    """A symmetric matrix (p, p) of any sign; a number stands for a multiple of the identity."""
    given = numbers(name, value)
    matrix = given * np.eye(p) if given.ndim == 0 else given
    _check_symmetric(name, matrix, p)
    return (matrix + matrix.T) / 2


def vector(name: str, value: ArrayLike, p: int) -> Array:
    given = np.atleast_1d(numbers(name, value))
    if given.shape != (p,):
        raise InputError(f"{name}: {p} numbers are needed, one per feature; got an array {given.shape}")
    return given


def variance(name: str, value: float) -> float:
    given = numbers(name, value)
    if given.ndim or given < 0:
        raise InputError(f"{name}={value}: one number that is not negative")
    return float(given)


@dataclass(frozen=True)
class Rates:
    """Learning rates as multiples (L,) of one symmetric positive definite matrix (p, p)."""

    matrix: Array
    multiples: Array
    kind: str  # "number", "sweep" or "matrix"

    @classmethod
    def of(cls, learning_rate: ArrayLike, p: int) -> "Rates":
        given = numbers("learning_rate", learning_rate)
        if given.ndim == 2:
            matrix = covariance("learning_rate", given, p)
            if not np.linalg.eigvalsh(matrix)[0] > 0:
                raise InputError(
                    "learning_rate: a matrix of learning rates must be positive definite; this one is singular"
                )
            return cls(matrix, np.ones(1), "matrix")
        if given.ndim > 2 or not given.size or not (given > 0).all():
            raise InputError(
                f"learning_rate={given.tolist()}: a positive number, a sequence of them, or a symmetric positive "
                f"definite matrix ({p}, {p})"
            )
        return cls(np.eye(p), given.reshape(-1), "number" if given.ndim == 0 else "sweep")

    @property
    def root(self) -> Array:
        """The symmetric root of the matrix."""
        if self.kind != "matrix":
            return self.matrix
        values, vectors = np.linalg.eigh(self.matrix)
        return (vectors * np.sqrt(values)) @ vectors.T


@dataclass(frozen=True)
class Grid:
    """Learning rates by batch sizes, and how results over both become labelled variables."""

    rates: Rates
    sizes: NDArray[np.int64]
    one_size: bool

    @classmethod
    def of(cls, learning_rate: ArrayLike, batch_size: int | Sequence[int], p: int) -> "Grid":
        sizes, one = whole_batches(batch_size)
        return cls(Rates.of(learning_rate, p), sizes, one)

    @property
    def coordinates(self) -> dict[str, Any]:
        found: dict[str, Any] = {"batch_size": self.sizes[0] if self.one_size else self.sizes}
        if self.rates.kind != "matrix":
            multiples = self.rates.multiples
            found["learning_rate"] = multiples[0] if self.rates.kind == "number" else multiples
        return found

    def variable(self, values: Any, *more: str, over: str = "both") -> tuple[tuple[str, ...], Any]:
        """Dimensions and values; values lead with learning_rate and batch_size, or with the one that `over` names."""
        found = np.asarray(values)
        lead = ("learning_rate", "batch_size") if over == "both" else (over,)
        single = {"learning_rate": self.rates.kind != "sweep", "batch_size": self.one_size}
        for axis in reversed(range(len(lead))):
            if single[lead[axis]]:
                found = found.take(0, axis=axis)
        return (*(name for name in lead if not single[name]), *more), found


def whole_batches(batch_size: int | Sequence[int]) -> tuple[NDArray[np.int64], bool]:
    """Batch sizes (B,) and whether there was just the one number."""
    given = np.asarray(batch_size)
    if given.ndim > 1 or not given.size or given.dtype.kind not in "iu" or (given < 1).any():
        raise InputError(f"batch_size={batch_size}: a whole number of samples, at least 1, or a sequence of them")
    return given.reshape(-1).astype(np.int64), given.ndim == 0


def fourth_moment(given: FourthMoment | ArrayLike | None, second: Array) -> FourthMoment | None:
    """S -> E[x x^T S x x^T] from a function or the tensor E[x_i x_j x_k x_l], against which `second` is held."""
    if given is None:
        return None
    p = len(second)
    if callable(given):
        moment: FourthMoment = given
    else:
        tensor = numbers("fourth_moment", given)
        if tensor.shape != (p,) * 4:
            raise InputError(f"fourth_moment: a tensor {(p,) * 4} or a function is needed; got {tensor.shape}")

        def moment(matrix: Array) -> Array:
            contracted: Array = np.tensordot(tensor, matrix, axes=([1, 2], [0, 1]))
            return contracted

    rng = np.random.default_rng(0)
    probes = [(lambda z: z + z.T)(rng.normal(size=(p, p))) for _ in range(2)]
    found = [np.asarray(moment(probe), np.float64) for probe in probes]
    if any(f.shape != (p, p) or not np.isfinite(f).all() for f in found):
        raise InputError(f"fourth_moment: it must map a matrix ({p}, {p}) to another, finite; got {found[0].shape}")
    crossed, scale = [(probes[1 - i] * found[i]).sum() for i in (0, 1)], np.abs(found[0]).max() * p * p
    if abs(crossed[0] - crossed[1]) > 1e-8 * scale:
        raise InputError("fourth_moment: S -> E[x x^T S x x^T] is self-adjoint, this map is not; check its indices")
    lengths = float(np.trace(moment(np.eye(p))))
    if lengths < np.trace(second) ** 2 * (1 - 1e-8):
        raise InputError(
            f"fourth_moment: E||x||^4 = {lengths:.4g} is below (E||x||^2)^2 = {np.trace(second) ** 2:.4g}; "
            "it does not belong to this feature_covariance"
        )
    return moment


def _check_symmetric(name: str, matrix: Array, p: int | None) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise InputError(f"{name}: a square matrix is needed; got an array {matrix.shape}")
    if p is not None and len(matrix) != p:
        raise InputError(f"{name}: a matrix ({p}, {p}) is needed, as there are {p} features; got {matrix.shape}")
    off = np.abs(matrix - matrix.T).max()
    if off > ROUNDING * np.abs(matrix).max():
        raise InputError(f"{name} is not symmetric: entries differ by up to {off:.3g} from their transposes")
