"""How large a constant learning rate may be, and where the iterate then settles: second moments, exactly.

The covariance P of each row of W obeys, once it is stationary, (slope / a + E - kappa S)(P) = kappa N(w*), with

    S(P) = (1/n) sum_i s_i^2 (x_i^T P x_i) x_i x_i^T - C P C,     N(w*) the noise at the minimum,

and, entry by entry in the eigenbasis of H, with eigenvalues l_i and momentum mu,

    slope_ij = (1 - mu) (l_i + l_j),     E_ij = [mu (l_i - l_j)^2 - (1 - mu)^2 l_i l_j] / (1 - mu^2),

as `predict.damping` derives (for mu = 0 it is P = J P J + a^2 kappa S(P) + ..). All three are self-adjoint, and the
operator falls with a: second moments stay bounded if and only if it is positive definite, up to a = 1 / (largest
eigenvalue of slope^-1/2 (kappa S - E) slope^-1/2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, cg, eigsh

from shotnoise import results
from shotnoise.errors import InputError, ShotnoiseError
from shotnoise.predict import damping
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares, least_squares
from shotnoise.predict.linear_regression.recursion import expected_noise
from shotnoise.predict.linear_regression.verb import check_momentum, check_sampling
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithoutReplacement

NULL = 1e-12  # eigenvalues of H below this share of the largest count as zero: no data speaks of that direction
STATIONARY, DIVERGES = "stationary", "diverges"


def regression_stability(
    X: ArrayLike,
    batch_sizes: Sequence[int],
    *,
    sampling: Sampling | None = None,
    intercept: bool = False,
    l2: float = 0.0,
    weights: ArrayLike | None = None,
    momentum: float = 0.0,
) -> xr.Dataset:
    """The constant learning rate up to which SGD's second moments stay bounded, for each batch size; exact.

    The targets do not matter. X, intercept, l2, weights, momentum and sampling (fresh batches, default
    WithoutReplacement()) as in `regression`.

    Returns `critical_learning_rate` (batch_size) and `mean_critical_learning_rate`, that of gradient descent, 2 (1 +
    mu) / (largest eigenvalue of the Hessian), beyond which the mean diverges too. Between the two the mean converges
    and the variance grows without limit. Matrix-free: O(n p^2) per product, some ten to a hundred products.

    Raises InputError where the Hessian has a negative eigenvalue (l2 too negative): no learning rate is stable.
    Source: the operator of the variance paper's recursion; for momentum 0 the limit is that of Mulayoff and Michaeli
    (2024).

    >>> r = regression_stability([[1.0], [3.0]], [1, 2])
    >>> r["critical_learning_rate"].values.round(6).tolist()  # 2 C / E x^4, C = 5; and 2 / C
    [0.243902, 0.4]
    """
    problem, sampling = _problem(X, np.zeros(np.shape(X)[:1]), batch_sizes, sampling, intercept, l2, weights, momentum)
    operators = SecondMoments.of(problem, momentum)
    critical = [operators.critical(sampling.variance_factor(b, problem.n)) for b in batch_sizes]
    found = {
        "critical_learning_rate": ("batch_size", np.array(critical)),
        "mean_critical_learning_rate": ((), operators.critical(0.0)),
    }
    coordinates = {"batch_size": np.asarray(batch_sizes, np.int64)}
    return results.dataset(found, coordinates, _attributes(problem, sampling, momentum))


def regression_stationary(
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: float,
    batch_sizes: Sequence[int],
    *,
    sampling: Sampling | None = None,
    intercept: bool = False,
    l2: float = 0.0,
    weights: ArrayLike | None = None,
    momentum: float = 0.0,
) -> xr.Dataset:
    """Where SGD at a constant learning rate settles on a linear regression, and how widely it then moves; exact.

    Arguments as in `regression`; fresh batches only. Returns, by batch_size, the limits of that function's variables
    for t to infinity: `gradient_variance`, `full_gradient_variance`, `loss`, `gradient_norm_sq`, `weights_variance`;
    `weight_covariance` and `noise_covariance` (batch_size, output, parameter, parameter_) of each row of weights and
    of its minibatch gradient at fixed weights, on average; `mean_weights` (the minimum; of several the shortest); and
    `critical_learning_rate` and `status`, "stationary" or, at and beyond the critical rate, "diverges": there all
    else is NaN. Directions that neither data nor penalty curve keep their start and count nothing.

    >>> r = regression_stationary([[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], 0.25, [1])
    >>> round(float(r["weights_variance"][0]), 12)  # P = P / 4 + (2 P + 2/3) / 16, so 1/15
    0.066666666667
    """
    problem, sampling = _problem(X, y, batch_sizes, sampling, intercept, l2, weights, momentum)
    if callable(learning_rate) or np.ndim(learning_rate) or not 0 < learning_rate < np.inf:
        raise InputError(
            f"learning_rate={learning_rate}: one positive number; only a constant rate has a stationary state"
        )
    operators = SecondMoments.of(problem, momentum)
    minimum, hessian = operators.minimum, problem.hessian
    critical, status, rows = [], [], []
    for b in batch_sizes:
        kappa = sampling.variance_factor(b, problem.n)
        critical.append(operators.critical(kappa))
        status.append(STATIONARY if learning_rate < critical[-1] else DIVERGES)
        if status[-1] == DIVERGES:
            P = np.full((len(minimum), problem.p, problem.p), np.nan)
        else:
            P = operators.stationary(learning_rate, kappa)
        noise = kappa * expected_noise(problem, minimum, P[None])[0]
        full = np.trace(hessian @ P @ hessian, axis1=1, axis2=2).sum()
        rows.append({
            "gradient_variance": np.trace(noise, axis1=1, axis2=2).sum() + full,
            "full_gradient_variance": full,
            "loss": problem.loss(minimum) + 0.5 * np.einsum("pr,kpr->", hessian, P),
            "gradient_norm_sq": (problem.gradient(minimum) ** 2).sum() + full,
            "weights_variance": np.trace(P, axis1=1, axis2=2).sum(),
            "weight_covariance": P,
            "noise_covariance": noise,
        })  # fmt: skip
    dims = ("batch_size", "output", "parameter", "parameter_")
    found = {name: (dims[: np.ndim(rows[0][name]) + 1], np.array([row[name] for row in rows])) for name in rows[0]} | {
        "mean_weights": (("output", "parameter"), minimum),
        "critical_learning_rate": ("batch_size", np.array(critical)),
        "status": ("batch_size", np.array(status)),
    }
    coordinates = {"batch_size": np.asarray(batch_sizes, np.int64)}
    attributes = _attributes(problem, sampling, momentum) | {"learning_rate": float(learning_rate)}
    return results.dataset(found, coordinates, attributes)


@dataclass(frozen=True)
class SecondMoments:
    """The operators in the eigenbasis of H, on the directions that the data (or the penalty) curve."""

    problem: LeastSquares
    momentum: float
    curvatures: Array  # (r,)
    basis: Array  # (p, r)
    x: Array  # (n, r), the data in the basis

    @classmethod
    def of(cls, problem: LeastSquares, momentum: float = 0.0) -> "SecondMoments":
        values, vectors = np.linalg.eigh(problem.hessian)
        if values[0] < -NULL * max(abs(values[-1]), 1e-300):
            raise InputError(
                f"the Hessian has the negative eigenvalue {values[0]:.3g}: nothing is stationary; raise l2"
            )
        kept = values > NULL * values[-1]
        if not kept.any():
            raise InputError("X is zero and there is no penalty: every learning rate leaves the weights where they are")
        return cls(problem, momentum, values[kept], vectors[:, kept], problem.x @ vectors[:, kept])

    @property
    def minimum(self) -> Array:
        """The shortest weights of least loss, (k, p)."""
        found: Array = self.problem.cross @ self.basis / self.curvatures @ self.basis.T
        return found

    @property
    def slope(self) -> Array:
        return damping.slope(self.curvatures, self.momentum)

    @property
    def offset(self) -> Array:
        return damping.offset(self.curvatures, self.momentum)

    def spread(self, P: Array) -> Array:
        """S(P) for P (r, r)."""
        moment = self.curvatures - self.problem.l2
        weights = self.problem.s**2 * ((self.x @ P) * self.x).sum(1) / self.problem.n
        return (self.x * weights[:, None]).T @ self.x - moment[:, None] * P * moment

    def critical(self, kappa: float) -> float:
        """The largest learning rate for batches with variance factor kappa; at kappa = 0 that of gradient descent."""
        r, root = len(self.curvatures), 1 / np.sqrt(self.slope)

        def apply(vector: Array) -> Array:
            P = root * vector.reshape(r, r)
            P = (P + P.T) / 2
            return (root * (kappa * self.spread(P) - self.offset * P)).reshape(-1)

        if kappa == 0:
            return 2 * (1 + self.momentum) / float(self.curvatures[-1])
        if r == 1:
            return float(1 / apply(np.ones(1))[0])
        noise = np.random.default_rng(0).normal(size=(r, r))
        start = np.eye(r) + 1e-3 * (noise + noise.T)  # near the cone's middle, orthogonal to nothing
        operator = LinearOperator((r * r, r * r), matvec=apply, dtype=np.float64)
        try:
            largest = eigsh(operator, k=1, which="LA", v0=start.reshape(-1), return_eigenvectors=False, tol=1e-12)
        except ArpackNoConvergence as error:
            raise ShotnoiseError(f"the critical learning rate was not found: {error}") from error
        return float(1 / largest[0])

    def stationary(self, learning_rate: float, kappa: float) -> Array:
        """cov(w) of each output's row, (k, p, p), at a rate below the critical one; zero where nothing curves."""
        r, problem, minimum = len(self.curvatures), self.problem, self.minimum
        diagonal = self.slope / learning_rate + self.offset
        u = (minimum @ problem.moment - problem.cross) @ self.basis
        squares = problem.s**2 * problem.residuals(minimum) ** 2

        def apply(vector: Array) -> Array:
            P = vector.reshape(r, r)
            return (diagonal * P - kappa * self.spread(P)).reshape(-1)

        operator = LinearOperator((r * r, r * r), matvec=apply, dtype=np.float64)
        inverse = LinearOperator((r * r, r * r), matvec=lambda v: v / diagonal.reshape(-1), dtype=np.float64)
        found = []
        for own, drift in zip(squares, u, strict=True):
            noise = kappa * ((self.x * own[:, None]).T @ self.x / problem.n - np.outer(drift, drift))
            solved, left = cg(operator, noise.reshape(-1), rtol=1e-13, maxiter=50 * r + 100, M=inverse)
            if left:
                raise ShotnoiseError(
                    f"the stationary covariance did not converge at learning_rate={learning_rate}, "
                    f"{learning_rate / self.critical(kappa):.4f} of the critical rate; move away from it"
                )
            found.append(self.basis @ solved.reshape(r, r) @ self.basis.T)
        return np.array(found)


def _problem(
    X: ArrayLike,
    y: ArrayLike,
    batch_sizes: Sequence[int],
    sampling: Sampling | None,
    intercept: bool,
    l2: float,
    weights: ArrayLike | None,
    momentum: float,
) -> tuple[LeastSquares, Sampling]:
    sampling = WithoutReplacement() if sampling is None else sampling
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(f"{sampling!r}: stability is known here for fresh batches; use WithoutReplacement()")
    problem = least_squares(X, y, intercept=intercept, weights=weights, l2=l2)
    check_momentum(momentum)
    check_sampling(sampling, batch_sizes, problem.n)
    return problem, sampling


def _attributes(problem: LeastSquares, sampling: Sampling, momentum: float) -> dict[str, object]:
    return {
        "theory": "exact second moments of linear regression with fresh batches and a constant learning rate",
        "sampling": str(sampling),
        "n_samples": problem.n,
        "parameters": problem.p * problem.y.shape[1],
        "l2": problem.l2,
        "momentum": float(momentum),
    }
