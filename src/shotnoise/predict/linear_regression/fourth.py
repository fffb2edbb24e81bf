"""The variance of the loss of linear regression, exactly, by the fourth moments of the iterate.

With delta = W - E W (and the velocity's deviation, under momentum) and z = (delta, 1), a batch moves z to (J - S) z,

    S = (1/b) sum_batch a_i - mean a_i,   a_i = s_i sum_o u_io v_io^T,   u_io = (a x_i, -x_i) in output o's place,
                                                                         v_io = x_i there, and the residual of E W.

So E z z z z moves by E (J - S)(J - S)(J - S)(J - S), one factor on each index. S is a centred mean, whose moments are
those of one centred sample, T2, T3, T4 and pairs of T2, times factors of the sampling. L is a quadratic form of z.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares
from shotnoise.sampling import Sampling, WithReplacement

OPERATIONS = 5e12  # beyond it, many minutes of one core, the answer is refused
NUMBERS = 2**28  # held at a time


@dataclass(frozen=True)
class Factors:
    """For one batch size, S being the mean of a batch of centred samples: the factor of T2 in E S S, of T3 in E S S S,
    and in E S S S S that of T4 and that of each of the three ways to apply T2 twice."""

    pair: float
    triple: float
    quad: float
    pairs: float


def factors(sampling: Sampling, b: int, n: int) -> Factors:
    """With replacement, or without, by counting equal and different samples.

    >>> from shotnoise.sampling import WithoutReplacement
    >>> factors(WithoutReplacement(), 1, 4), factors(WithoutReplacement(), 4, 4)
    (Factors(pair=1.0, triple=1.0, quad=1.0, pairs=0.0), Factors(pair=0.0, triple=0.0, quad=0.0, pairs=0.0))
    """
    if isinstance(sampling, WithReplacement):
        return Factors(1 / b, 1 / b**2, 1 / b**3, (b - 1) / b**3)
    if b == n:
        return Factors(0.0, 0.0, 0.0, 0.0)
    two, three, four = (_falling_ratio(b, n, k) for k in (2, 3, 4))
    return Factors(
        (b - n * two) / b**2,
        (b - 3 * n * two + 2 * n * three) / b**3,
        (b - 7 * n * two + 12 * n * three - 6 * n * four) / b**4,
        n**2 * (two - 2 * three + four) / b**4,
    )


def _falling_ratio(b: int, n: int, k: int) -> float:
    """The chance that k places of the batch hold k given samples."""
    return float(np.prod([(b - j) / (n - j) for j in range(k)])) if n >= k else 0.0


def check_cost(problem: LeastSquares, batches: int, steps: int, momentum: float) -> None:
    """Raise InputError where the fourth moments would take too long, or too much memory."""
    outputs = problem.y.shape[1]
    q = problem.p * outputs * (2 if momentum else 1) + 1
    rows = problem.n * outputs**2
    operations = 2.0 * steps * (rows * q**4 + batches * (3 * rows * q**4 + 3 * q**6))
    numbers = float(batches * q**4 + 40 * q**4 + 4 * rows * q**2)
    if operations > OPERATIONS or numbers > NUMBERS:
        raise InputError(
            f"loss_variance=True would take about {operations:.1g} operations and {8 * numbers / 2**30:.1g} GiB: both "
            f"grow as the fourth power of the moving numbers, here {q - 1}. The limits are {OPERATIONS:.0g} and "
            f"{8 * NUMBERS / 2**30:.0f} GiB; ask for fewer steps or batch sizes, or estimate it with simulate"
        )


def loss_variances(
    problem: LeastSquares, w0: Array, rates: Array, chances: list[Factors], momentum: float
) -> Iterator[Array]:
    """var L(w_t) at steps 0, 1, ..., len(rates): each (B,), one number for each of `chances`. w0 (k, p)."""
    mean, velocity = w0, np.zeros_like(w0)
    q = w0.size * (2 if momentum else 1) + 1
    start = np.zeros((q,) * 4)
    start[-1, -1, -1, -1] = 1.0
    moments = [start] * len(chances)
    for t in range(len(rates) + 1):
        form = _quadratic_form(problem, mean, q)
        yield np.array([_variance(form, tensor) for tensor in moments])
        if t == len(rates):
            return
        jacobian = _jacobian(problem, w0.shape[0], rates[t], momentum, q)
        kicks = _Kicks.of(problem, mean, rates[t], momentum, q)
        moments = [_moved(tensor, jacobian, kicks, own) for tensor, own in zip(moments, chances, strict=True)]
        velocity = momentum * velocity + problem.gradient(mean)
        mean = mean - rates[t] * velocity


def _quadratic_form(problem: LeastSquares, mean: Array, q: int) -> Array:
    """Q with L(w) - L(mean) = z^T Q z."""
    form = np.zeros((q, q))
    form[: mean.size, : mean.size] = np.kron(np.eye(len(mean)), problem.hessian) / 2
    form[: mean.size, -1] = form[-1, : mean.size] = problem.gradient(mean).reshape(-1) / 2
    return form


def _variance(form: Array, tensor: Array) -> float:
    q = len(form)
    inner = (form.reshape(-1) @ tensor.reshape(q * q, q * q)).reshape(q, q)
    return max(float((inner * form).sum() - inner[-1, -1] ** 2), 0.0)  # rounding


def _jacobian(problem: LeastSquares, outputs: int, rate: float, momentum: float, q: int) -> Array:
    size = problem.p * outputs
    identity, hessian = np.eye(size), np.kron(np.eye(outputs), problem.hessian)
    found = np.zeros((q, q))
    found[:size, :size] = identity - rate * hessian
    if momentum:
        found[:size, size:-1] = -rate * momentum * identity
        found[size:-1, :size] = hessian
        found[size:-1, size:-1] = momentum * identity
    found[-1, -1] = 1.0
    return found


@dataclass(frozen=True)
class _Kicks:
    """Of all samples: weights s (n,), vectors u and v (n, k, q), one for each of k outputs.

    uu, vv (n, k^2, q^2): outer products of two of them; mean: A (q, q); second: T2 as a matrix (q^2, q^2).
    """

    s: Array
    u: Array
    v: Array
    uu: Array
    vv: Array
    mean: Array
    second: Array

    @classmethod
    def of(cls, problem: LeastSquares, mean: Array, rate: float, momentum: float, q: int) -> "_Kicks":
        n, p, x, s = problem.n, problem.p, problem.x, problem.s
        outputs = len(mean)
        u, v = np.zeros((n, outputs, q)), np.zeros((n, outputs, q))
        for o, residual in enumerate(problem.residuals(mean)):
            place = slice(o * p, (o + 1) * p)
            u[:, o, place], v[:, o, place], v[:, o, -1] = rate * x, x, residual
            if momentum:
                u[:, o, mean.size + o * p : mean.size + (o + 1) * p] = -x
        uu, vv = ((m[:, :, None, :, None] * m[:, None, :, None, :]).reshape(n, outputs**2, q * q) for m in (u, v))
        average = (s[:, None, None] * u).reshape(-1, q).T @ v.reshape(-1, q) / n
        second = ((s**2)[:, None, None] * uu).reshape(-1, q * q).T @ vv.reshape(-1, q * q) / n
        return cls(s, u, v, uu, vv, average, second)


def _moved(tensor: Array, J: Array, kicks: _Kicks, own: Factors) -> Array:
    """E (J - S)(J - S)(J - S)(J - S) applied to the four indices of a symmetric tensor (q, q, q, q).

    Terms that differ in the places of their factors alone are computed once, and the sum made symmetric at the end.
    """
    q, A, n = len(J), kicks.mean, len(kicks.s)
    square = (q * q, q * q)
    flat = tensor.reshape(square)
    pair, triple, quad, pairs = own.pair, own.triple, own.quad, own.pairs
    JJ, JA, AA = np.kron(J, J), np.kron(J, A), np.kron(A, A)
    rest = pair * JJ + 2 * triple * JA + (quad - pairs) * AA  # beside a T2
    twice = kicks.second @ flat  # T2 on the first two indices
    moved = JJ @ flat @ JJ.T + 6 * (twice - AA @ flat) @ rest.T
    moved += (AA @ flat) @ (4 * triple * JA + 3 * (quad - pairs) * AA).T
    moved += 3 * pairs * twice @ kicks.second.T

    contracted = (kicks.vv.reshape(-1, q * q) @ flat).reshape(n, -1, q, q)  # v v on the first two indices
    third = np.einsum("nxpq,nyp->nxyq", contracted, kicks.v, optimize=True)
    kicked = np.einsum("nxyq,nyr,n->nxrq", third, kicks.u, kicks.s**3 / n, optimize=True)
    flat_uu = kicks.uu.reshape(-1, q * q)
    three = (flat_uu.T @ kicked.reshape(-1, q * q)).reshape((q,) * 4)  # T3 on the first three
    moved -= 4 * (three @ (triple * J + quad * A).T).reshape(square)

    fourth = contracted.reshape(n, -1, q * q) @ kicks.vv.swapaxes(1, 2)  # v v v v, (n, k^2, k^2)
    weighted = (kicks.s**4 / n)[:, None, None] * (fourth @ kicks.uu)
    moved += quad * flat_uu.T @ weighted.reshape(-1, q * q)
    return _symmetric(moved.reshape((q,) * 4))


def _symmetric(tensor: Array) -> Array:
    return np.asarray(sum(tensor.transpose(order) for order in permutations(range(4)))) / 24
