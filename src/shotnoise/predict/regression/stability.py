"""How large a constant learning rate may be, and where the iterate then settles: second moments, exactly.

The covariance of each row of W moves by T(P) = P - 2 a A(P) + a^2 B(P) plus what the mean brings, with

    A(P) = (H P + P H) / 2,    B(P) = H P H + kappa [(1/n) sum_i s_i^2 (x_i^T P x_i) x_i x_i^T - C P C].

T is self-adjoint and maps positive semidefinite matrices to such, so its spectral radius is its largest eigenvalue, and
T contracts if and only if 2 A - a B is positive definite: the largest learning rate is 2 / max eigenvalue of A^-1 B, a
symmetric problem after A^-1/2, which is diagonal in the eigenbasis of H. The stationary covariance solves
(2 A - a B)(P) = a kappa N(w*), N the noise at the minimum.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, cg, eigsh

from shotnoise.errors import InputError, ShotnoiseError
from shotnoise.predict.regression.least_squares import Array, LeastSquares

NULL = 1e-12  # eigenvalues of H below this share of the largest count as zero: no data speaks of that direction


@dataclass(frozen=True)
class SecondMoments:
    """The operators A and B in the eigenbasis of H, on the directions that the data (or the penalty) curve."""

    problem: LeastSquares
    curvatures: Array  # (r,)
    basis: Array  # (p, r)
    x: Array  # (n, r), the data in the basis

    @classmethod
    def of(cls, problem: LeastSquares) -> "SecondMoments":
        values, vectors = np.linalg.eigh(problem.hessian)
        if values[0] < -NULL * max(abs(values[-1]), 1e-300):
            raise InputError(
                f"the Hessian has the negative eigenvalue {values[0]:.3g}: nothing is stationary; raise l2"
            )
        kept = values > NULL * values[-1]
        return cls(problem, values[kept], vectors[:, kept], problem.x @ vectors[:, kept])

    def slope(self) -> Array:
        """A as factors of the entries, (r, r)."""
        return (self.curvatures[:, None] + self.curvatures) / 2

    def growth(self, P: Array, kappa: float) -> Array:
        """B(P) for P (r, r)."""
        h, n, s = self.curvatures, self.problem.n, self.problem.s
        moment = h - self.problem.l2
        spread = ((self.x @ P) * self.x).sum(1)
        kicks = (self.x * (s**2 * spread)[:, None]).T @ self.x / n
        return h[:, None] * P * h + kappa * (kicks - moment[:, None] * P * moment)


def largest_learning_rate(problem: LeastSquares, kappa: float) -> float:
    """The constant learning rate below which second moments stay bounded, for batches with variance factor kappa.

    At kappa = 0 it is 2 / (largest eigenvalue of H), that of gradient descent.
    """
    operators = SecondMoments.of(problem)
    r = len(operators.curvatures)
    root = 1 / np.sqrt(operators.slope())

    def apply(vector: Array) -> Array:
        P = vector.reshape(r, r)
        return (root * operators.growth(root * (P + P.T) / 2, kappa)).reshape(-1)

    if r == 1:
        return float(2 / apply(np.ones(1))[0])
    start = np.eye(r).reshape(-1)  # the leading eigenvector is positive semidefinite, so this is not orthogonal to it
    operator = LinearOperator((r * r, r * r), matvec=apply, dtype=np.float64)
    try:
        largest = eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False, tol=1e-12)
    except ArpackNoConvergence as error:
        raise ShotnoiseError(f"the largest learning rate was not found: {error}") from error
    return float(2 / largest[0])


def stationary_covariance(problem: LeastSquares, learning_rate: float, kappa: float) -> Array:
    """cov(w) of each output's row when SGD at a constant rate has settled, (k, p, p).

    Directions without curvature keep their start; they are zero here. Raises InputError at or beyond the largest
    learning rate, where there is none.
    """
    limit = largest_learning_rate(problem, kappa)
    if not 0 < learning_rate < limit:
        raise InputError(
            f"learning_rate={learning_rate}: second moments stay bounded only below {limit:.6g} for this batch size"
        )
    operators = SecondMoments.of(problem)
    r = len(operators.curvatures)
    minimum = problem.cross @ operators.basis / operators.curvatures @ operators.basis.T
    u = (minimum @ problem.moment - problem.cross) @ operators.basis
    squares = problem.s**2 * problem.residuals(minimum) ** 2
    factors = 2 * operators.slope()
    found = []
    for own, drift in zip(squares, u, strict=True):
        noise = (operators.x * own[:, None]).T @ operators.x / problem.n - np.outer(drift, drift)

        def apply(vector: Array) -> Array:
            P = vector.reshape(r, r)
            return (factors * P - learning_rate * operators.growth(P, kappa)).reshape(-1)

        operator = LinearOperator((r * r, r * r), matvec=apply, dtype=np.float64)
        solved, left = cg(operator, (learning_rate * kappa * noise).reshape(-1), rtol=1e-13, maxiter=50 * r)
        if left:
            raise ShotnoiseError(
                f"the stationary covariance did not converge at learning_rate={learning_rate}, "
                f"{learning_rate / limit:.4f} of the largest; move away from it"
            )
        found.append(operators.basis @ solved.reshape(r, r) @ operators.basis.T)
    return np.array(found)
