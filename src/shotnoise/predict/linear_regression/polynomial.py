"""The same answers as explicit polynomials in kappa, the variance factor of the sampling: coefficients per step.

    V_t = sum_j kappa^j V_t^(j),    V_{t+1}^(j) = A V_t^(j) A^T + N_t^(j-1) (x) [[a^2, -a], [-a, 1]],

for the covariance V of (w, m) and A as in `recursion`, with N_t^(j) that of `recursion` for V_t^(j), the mean's share
in N_t^(0) alone. Without momentum V is that of w. Every coefficient matrix is positive semidefinite and, of the
variances, every coefficient non-negative, so nothing cancels. With Fractions in, Fractions out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results, schedules
from shotnoise.errors import InputError
from shotnoise.predict.batch_polynomial import KAPPA, BatchPolynomial
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares, fractions, least_squares
from shotnoise.predict.linear_regression.verb import check_momentum, check_sampling, regression, starting_weights
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithoutReplacement, WithReplacement

VARIABLES = ("gradient_variance", "full_gradient_variance", "loss", "gradient_norm_sq", "weights_variance")
OPERATIONS = 2e12  # of the float recursion
EXACT_OPERATIONS = 2e7  # of Fractions, some minutes


@dataclass(frozen=True)
class RegressionPolynomials:
    """What `regression_polynomial` returns: for each variable a `BatchPolynomial` per step 0 .. steps.

    relative_error: of float coefficients, the largest difference from `regression` over batch sizes, steps and
    variables, in units of the value; None where the arithmetic was exact.
    """

    variable: str
    polynomials: dict[str, list[BatchPolynomial]]
    relative_error: float | None

    def __getitem__(self, name: str) -> list[BatchPolynomial]:
        if name not in self.polynomials:
            raise InputError(f"no polynomials of {name!r}; there are {', '.join(self.polynomials)}")
        return self.polynomials[name]

    def to_dataset(self) -> xr.Dataset:
        """The coefficients as floats, by (step, power); zero beyond a polynomial's degree."""
        size = max(len(p.coefficients) for own in self.polynomials.values() for p in own)
        found = {
            name: (
                ("step", "power"),
                np.array([np.pad(p.coefficients.astype(float), (0, size - len(p.coefficients))) for p in own]),
            )
            for name, own in self.polynomials.items()
        }
        steps = len(next(iter(self.polynomials.values())))
        attributes: dict[str, Any] = {"polynomial_in": self.variable}
        if self.relative_error is not None:
            attributes["relative_error"] = self.relative_error
        return results.dataset(found, {"step": np.arange(steps), "power": np.arange(size)}, attributes)


def regression_polynomial(
    X: ArrayLike,
    y: ArrayLike,
    w0: ArrayLike,
    learning_rate: schedules.LearningRate | Sequence[Any],
    steps: int,
    *,
    sampling: Sampling | None = None,
    variable: str = KAPPA,
    projection: ArrayLike | None = None,
    intercept: bool = False,
    l2: Any = 0.0,
    weights: ArrayLike | None = None,
    momentum: Any = 0.0,
    exact: bool = False,
) -> RegressionPolynomials:
    """The variances and means of `regression` as polynomials, one per step, valid for every batch size at once.

    Arguments as there; fresh batches only. variable: "kappa", the sampling's variance factor ((n - b) / (b (n - 1))
    without replacement, 1/b with), in which all coefficients of the variances are >= 0; or "1/b", where without
    replacement signs alternate and float coefficients of high powers lose digits.
    exact: take every number (ints, Fractions, strings such as "1/3"; floats as the binary fractions that they are)
    and compute with Fractions: for tiny problems.

    Degrees (attained generically): `gradient_variance` t + 1, the others (`full_gradient_variance`, `loss`,
    `gradient_norm_sq`, `weights_variance`) t. `p(b)` evaluates, `p.decreasing_beyond` is b_0: 1 here for fresh
    batches, since the coefficients in kappa are not negative (Theorem 2 of the variance paper). Costs O(steps^2 (n
    p^2 + p^3)).

    Raises InputError where that is too much, or for what does not fit.
    Source: variance paper sec. 3.1; the recursion replaces its Lemma 2, which is misprinted.

    >>> r = regression_polynomial([[1], [2], [-1]], [1, 0, 1], [1], "1/4", 1, exact=True)
    >>> r["gradient_variance"][1].coefficients.tolist()
    [Fraction(0, 1), Fraction(11, 6), Fraction(1, 3)]
    >>> r["gradient_variance"][1](2), r["gradient_variance"][1].decreasing_beyond
    (Fraction(23, 48), 1.0)
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(f"{sampling!r}: in epochs the variances are no polynomials in the batch size")
    problem = least_squares(X, y, intercept=intercept, weights=weights, l2=l2, exact=exact)
    check_sampling(sampling, [1], problem.n)
    start, rates = starting_weights(w0, problem, exact=exact), _rates(learning_rate, steps, exact)
    check_momentum(float(fractions(momentum).item()) if exact else momentum)
    mu = fractions(momentum).item() if exact else float(momentum)
    gram = _gram(projection, problem)
    _check_cost(problem, len(rates), exact)
    n = None if isinstance(sampling, WithReplacement) else problem.n
    found: dict[str, list[BatchPolynomial]] = {name: [] for name in VARIABLES}
    for row in _coefficients(problem, start, rates, mu, gram):
        for name, coefficients in row.items():
            polynomial = BatchPolynomial(coefficients, KAPPA, n)
            found[name].append(polynomial if variable == KAPPA else polynomial.in_inverse_batch())
    _ = BatchPolynomial(np.zeros(1), variable)  # checks its name
    error = None
    if not exact:
        sizes = sorted({1, min(2, problem.n), max(1, problem.n // 2), problem.n})
        check = regression(
            X, y, w0, rates.tolist(), sizes, len(rates), sampling=sampling, projection=projection, intercept=intercept,
            l2=l2, weights=weights, momentum=momentum,
        )  # fmt: skip
        error = max(_difference(found[name], check[name], sizes) for name in VARIABLES)
    return RegressionPolynomials(variable, found, error)


def _coefficients(
    problem: LeastSquares, w0: Array, rates: Array, momentum: Any, gram: Array
) -> Iterator[dict[str, Array]]:
    """By variable the coefficients at steps 0 .. len(rates), in kappa. w0 (k, p), gram B^T B (p, p)."""
    x, s, n, p, hessian, moment = problem.x, problem.s, problem.n, problem.p, problem.hessian, problem.moment
    identity, mean, velocity = _identity(problem), w0, 0 * w0
    zero = 0 * np.kron(np.ones((2, 2), int), hessian) if momentum else 0 * hessian
    covariances = [zero]
    for t in range(len(rates) + 1):
        gradient = problem.gradient(mean)
        u = mean @ moment - problem.cross
        own = (problem.residuals(mean) ** 2).sum(0)  # summed over outputs, which share their batches
        noises = []
        for j, covariance in enumerate(covariances):
            P = covariance[:p, :p]
            spread = ((x @ P) * x).sum(1) + (own if j == 0 else 0)
            second = moment @ P @ moment + (u.T @ u if j == 0 else 0)
            noises.append((s**2 * spread * x.T) @ x / n - second)
        inner = [c[:p, :p] for c in covariances]
        moved = [hessian @ P @ hessian for P in inner]
        full = np.array([(gram * m).sum() for m in moved])
        noise = np.array([(gram * m).sum() for m in noises])
        yield {
            "gradient_variance": np.append(full, 0 * full[:1]) + np.append(0 * noise[:1], noise),
            "full_gradient_variance": full,
            "loss": _plus(np.array([(hessian * P).sum() for P in inner]) / 2, problem.loss(mean)),
            "gradient_norm_sq": _plus(np.array([np.trace(m) for m in moved]), (gradient**2).sum()),
            "weights_variance": np.array([np.trace(P) for P in inner]),
        }
        if t == len(rates):
            return
        a = rates[t]
        step, kick = identity - a * hessian, np.array([[a**2]], dtype=x.dtype)
        if momentum:
            step = np.block([[step, -a * momentum * identity], [hessian, momentum * identity]])
            kick = np.array([[a**2, -a], [-a, a**0]], dtype=x.dtype)
        driven = [0 * zero] + [np.kron(kick, N) for N in noises]
        covariances = [step @ c @ step.T + d for c, d in zip([*covariances, zero], driven, strict=True)]
        velocity = momentum * velocity + gradient
        mean = mean - a * velocity


def _rates(learning_rate: Any, steps: int, exact: bool) -> Array:
    if not exact:
        return schedules.values(learning_rate, steps)
    steps = len(schedules.values(0.0, steps))
    given = [learning_rate(t) for t in range(steps)] if callable(learning_rate) else learning_rate
    rates = fractions(np.full(steps, given) if np.ndim(given) == 0 else given)
    if rates.shape != (steps,) or (steps and min(rates) < 0):
        raise InputError(f"learning_rate: one value for each of {steps} updates, none negative; got {learning_rate!r}")
    return rates


def _gram(projection: ArrayLike | None, problem: LeastSquares) -> Array:
    if projection is None:
        return _identity(problem)
    exact = problem.x.dtype == object
    matrix = np.atleast_2d(fractions(projection) if exact else np.asarray(projection, np.float64))
    if matrix.shape[1:] != (problem.p,):
        raise InputError(f"projection: a matrix (q, {problem.p}) is needed; got {matrix.shape}")
    gram: Array = matrix.T @ matrix
    return gram


def _identity(problem: LeastSquares) -> Array:
    return fractions(np.eye(problem.p, dtype=int)) if problem.x.dtype == object else np.eye(problem.p)


def _plus(coefficients: Array, constant: Any) -> Array:
    coefficients[0] = coefficients[0] + constant
    return coefficients


def _check_cost(problem: LeastSquares, steps: int, exact: bool) -> None:
    operations = steps**2 * (problem.n * problem.p**2 + 4.0 * problem.p**3)
    limit = EXACT_OPERATIONS if exact else OPERATIONS
    if operations > limit:
        raise InputError(
            f"polynomials for {steps} steps take about {operations:.1g} operations{' on Fractions' * exact} "
            f"(steps^2 n p^2); the limit is {limit:.0g}. Ask for fewer steps, or use regression for chosen batches"
        )


def _difference(polynomials: list[BatchPolynomial], values: xr.DataArray, sizes: list[int]) -> float:
    found = np.array([polynomial(sizes) for polynomial in polynomials]).T
    wanted = values.transpose("batch_size", "step").values
    scale = np.abs(wanted).max(0)  # at each step, over the batch sizes: at b = n both are rounding
    off = np.abs(found - wanted).max(0)
    return float((off[scale > 0] / scale[scale > 0]).max(initial=0.0))
