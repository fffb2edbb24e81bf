"""Mean and covariance of the SGD iterate of linear regression, step by step, for several batch sizes together.

Rows w of W move alike, driven by the same fresh batches. With H = C + l2 I, momentum mu and learning rate a_t

    m <- mu m + g,   w <- w - a m,   E g = H w - d,   cov(g | w) = kappa S(w),
    S(w) = (1/n) sum_i s_i^2 r_i^2 x_i x_i^T - u u^T,   r_i = x_i^T w - y_i,   u = C w - d,

the mean obeys the same recursion without noise, and the covariance of (w, m)

    V <- A V A^T + kappa N (x) [[a^2, -a], [-a, 1]],   A = [[I - a H, -a mu I], [H, mu I]],
    N = E S(w) = (1/n) sum_i s_i^2 (x_i^T P x_i + rbar_i^2) x_i x_i^T - C P C - ubar ubar^T,   P = V_ww,

exactly (kappa is that of the sampling; corrected Lemma 2 of the variance paper, sec. 3.1). N is positive semidefinite.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares

NUMBERS = 2**19  # of a slice of the data; what is made of it takes as much again


@dataclass(frozen=True)
class Moments:
    """At one step: mean (k, p) or, where it depends on the batch size, (B, k, p); covariance of each row of W and of
    each row of the minibatch gradient drawn there, (B, k, p, p)."""

    mean: Array
    covariance: Array
    gradient_covariance: Array


def moments(problem: LeastSquares, w0: Array, rates: Array, kappas: Array, momentum: float = 0.0) -> Iterator[Moments]:
    """The moments at steps 0, 1, ..., len(rates). kappas (B,): variance factors of the batch sizes.

    One more entry of the covariances, the last, is what kappa is multiplied with to first order: the noise along it is
    that at the mean alone.
    """
    mean, velocity = w0, np.zeros_like(w0)
    shape = (len(kappas) + 1, *w0.shape, w0.shape[-1])
    covariance, crossed, driven = np.zeros(shape), np.zeros(shape), np.zeros(shape)  # ww, wm, mm
    hessian, identity, kappa = problem.hessian, np.eye(problem.p), np.append(kappas, 1.0)[:, None, None, None]
    for t in range(len(rates) + 1):
        felt = np.concatenate([covariance[:-1], np.zeros_like(covariance[-1:])])
        noise = kappa * expected_noise(problem, mean, felt)
        yield Moments(mean, covariance, noise + hessian @ covariance @ hessian)
        if t == len(rates):
            return
        a = rates[t]
        contraction = identity - a * hessian
        if momentum:
            moved = covariance @ hessian + momentum * crossed  # cov(w, m') without the new noise
            fed = hessian @ moved + momentum * (np.swapaxes(crossed, -1, -2) @ hessian + momentum * driven)
            driven = _symmetric(fed + noise)  # m'
            crossed = moved - a * driven  # cov(w', m') = cov(w, m') - a cov(m')
            covariance = _symmetric(covariance - a * (moved + np.swapaxes(moved, -1, -2)) + a**2 * driven)
        else:
            covariance = _symmetric(contraction @ covariance @ contraction + a**2 * noise)
        velocity = momentum * velocity + problem.gradient(mean)
        mean = mean - a * velocity


def expected_noise(problem: LeastSquares, mean: Array, covariance: Array) -> Array:
    """N for the given mean (k, p) and covariance (B, k, p, p)."""
    u = mean @ problem.moment - problem.cross
    second = problem.moment @ covariance @ problem.moment + u[:, :, None] * u[:, None, :]
    own = problem.residuals(mean) ** 2
    if problem.products is not None:
        flat = covariance.reshape(*covariance.shape[:-2], -1)
        spread = flat @ problem.products.T
        kicks = (problem.s**2 * (spread + own)) @ problem.products / problem.n
        return kicks.reshape(covariance.shape) - second
    kicks = np.zeros_like(covariance)
    size = max(1, NUMBERS // problem.p)
    room = np.empty((min(size, problem.n), problem.p))
    for start in range(0, problem.n, size):
        some = slice(start, start + size)
        x, s = problem.x[some], problem.s[some] ** 2
        kicked = room[: len(x)]
        for place in np.ndindex(covariance.shape[:2]):
            lengths = own[place[1], some]
            if covariance[place].any():
                np.matmul(x, covariance[place], out=kicked)
                lengths = lengths + np.einsum("ij,ij->i", kicked, x)
            np.multiply(np.sqrt(np.maximum(s * lengths, 0.0))[:, None], x, out=kicked)
            kicks[place] += kicked.T @ kicked  # a product with itself takes half the work
    return kicks / problem.n - second


def _symmetric(matrix: Array) -> Array:
    """Against the slow growth of rounding errors."""
    return (matrix + np.swapaxes(matrix, -1, -2)) / 2
