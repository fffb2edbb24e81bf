"""The confidence interval of the noise scale: all B that a test of the observed ||g||^2 does not reject.

For a hypothesised B let S = T/B be ||grad L||^2, f = 1 - m/n and tau = Tr Sigma^3 / Tr Sigma^2. Then ||g||^2 has

    mean   S + f T/m        variance   N + 4 f lambda S/m        N = 2 f^2 Tr Sigma^2 / m^2

and nearly a gamma distribution, skewed where few directions carry the noise; its least likely values are rejected.
The noise along the gradient, lambda, comes from an unbiased estimate Q of grad L^T Sigma grad L. Q is too large when
A is, by what the regression of Q on A says, c times as much; so, for the hypothesised S,

    lambda S = Q - c (A - S)        c = w tau + (1 - w) (lambda + tau)/2        w = N / (N + 4 f lambda S/m)

where c is tau were there noise alone, and at least lambda were there none. This is quadratic in lambda; the larger root
is taken, kept between 0 and the largest eigenvalue possible. The error of T enters through its jackknife variance and
its correlation with A; where A exceeds S, T has probably come out too small, and the variance is raised accordingly.

Assumes a mean of the samples that is nearly Gaussian. 95 % intervals were seen to cover in 92 to 98 % of cases from 16
samples (docs/evidence.md), from 90 % with 8. Exceptions: a gradient along a single noise direction of middling
strength, 89 to 94 %; a few samples that carry the noise, 90 to 100 %, where T has a standard error of some 40 % of T.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from shotnoise.measure.estimate import Array, Estimates, Products

MOST_RAISED = 2.0  # T is taken to be too small by this factor at most
GRID = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, 121)])  # hypotheses 1/B, in units of its estimate or its error


@dataclass(frozen=True)
class Evidence:
    """What the test knows of one column: m, f, T, A, Q, Tr Sigma^2, tau, the variance of T, its correlation with A.

    noise: what ||g||^2 has on average beyond S: f T/m, times n/(n - 1) as covariances have divisor n; ||g||^2 less A.
    """

    m: int
    f: float
    t: float
    a: float
    noise: float
    q: float
    trace_squared: float
    tau: float
    variance_t: float
    correlation: float

    @property
    def null(self) -> float:
        """N, the variance of ||g||^2 without a gradient."""
        return 2 * (self.f / self.m) ** 2 * self.trace_squared


def evidence(products: Products, estimates: Estimates, column: int) -> Evidence:
    """Of a column with T > 0. Where nothing is known of Tr Sigma^2, N and Q are what they can be at most."""
    _, t, a = estimates.values[:, column]
    m, f = products.samples, products.unseen
    seen = float(products.trace_squared[column])
    square = seen or t**2
    variance_t, variance_a = estimates.covariance[[1, 2], [1, 2], column]
    spread = np.sqrt(variance_t * variance_a)
    return Evidence(
        m=m,
        f=f,
        t=float(t),
        a=float(a),
        noise=float(f * t / m / (1 - products.rest)),
        q=noise_along_the_others(products, column) - f * seen / (m - 2),
        trace_squared=square,
        tau=float(np.clip(products.trace_cubed[column] / square, seen / t, np.sqrt(square))),
        variance_t=float(variance_t),
        correlation=float(np.clip(estimates.covariance[1, 2, column] / spread, -1, 1)) if spread > 0 else 0.0,
    )


def noise_along_the_others(products: Products, column: int) -> float:
    """grad L^T Sigma grad L + f Tr Sigma^2 / (m - 2), without bias for an unlimited population.

    (m - 1)^2/(m - 2)^2 times the variance over samples of g_i . (mean of the others); (m - 2)^2 rather than (m - 1)^2
    because the means of the others have samples in common.
    """
    m, along = products.samples, products.along_mean[:, column]
    return float(np.var(m * along - products.norms[:, column], ddof=1)) / (m - 2) ** 2


def noise_along_gradient(known: Evidence, squared_norm: Array) -> Array:
    """lambda for each hypothesised S > 0."""
    null, q, tau, s = known.null, known.q, known.tau, squared_norm
    excess, per_lambda = known.a - s, 4 * known.f * s / known.m
    quadratic = per_lambda * np.maximum(s + excess / 2, s / 4)  # (A + S)/2; the bound matters for an A below -S/2
    linear = null * s - per_lambda * (q - tau * excess / 2)
    constant = -null * (q - tau * excess)
    root = np.sqrt(np.maximum(linear**2 - 4 * quadratic * constant, 0))
    return np.clip((root - linear) / (2 * quadratic), 0, np.sqrt(known.trace_squared))


def null_distribution(known: Evidence, x: Array) -> tuple[Array, Array]:
    """Were 1/B = x: the shape of the gamma distribution of ||g||^2, and the observed ||g||^2 in its units."""
    f, m, t, s = known.f, known.m, known.t, x * known.t
    of_a = known.null + 4 * f * noise_along_gradient(known, np.where(s > 0, s, 1)) * s / m
    with_t = x**2 * known.variance_t - 2 * x * known.correlation * np.sqrt(of_a * known.variance_t)
    variance = np.maximum(of_a + with_t, np.finfo(float).tiny)  # of A - x T
    mean, excess = s + known.noise, known.a - s
    raised = 1 + x * known.variance_t * excess / (t * variance)  # the regression of T on A - x T, over T
    variance *= np.clip(raised, 1, MOST_RAISED) ** 2
    return mean**2 / variance, np.maximum(mean * (mean + excess) / variance, 0)


def plausibility(known: Evidence, x: Array) -> Array:
    """The probability of an ||g||^2 no more likely than the observed one, were 1/B = x."""
    return tail_by_density(*null_distribution(known, x))


def tail_by_density(shape: Array, y: Array) -> Array:
    """The probability that a gamma variable of this shape has a density no larger than at y.

    >>> tail_by_density(np.array([1.0]), np.array([2.0])).round(4)      # falling density: P(Y > 2) = exp(-2)
    array([0.1353])
    """
    mode = np.where(shape > 1 + 1e-6, shape - 1, 1.0)
    ratio = y / mode
    # The density is a function of ratio exp(-ratio); the other ratio with this value is on the other branch of W.
    value = np.maximum(-ratio * np.exp(-ratio), -np.exp(-1) + 1e-16)  # at the branch point itself SciPy returns NaN
    branch = np.where(ratio < 1, -1, 0)
    other = -special.lambertw(value, branch).real * mode
    inside = special.gammainc(shape, np.where(shape > 1 + 1e-6, other, 0.0)) - special.gammainc(shape, y)
    return 1 - np.abs(inside)


def interval(known: Evidence, confidence: float) -> tuple[float, float]:
    """The smallest and the largest B that are not rejected at this confidence; inf if arbitrarily large ones are not.

    Where A <= 0, ||g||^2 is less than noise alone gives on average and says nothing against a large B. It may be so
    small that every B is rejected; B must then be `1 - confidence` times as plausible as the most plausible one. If
    none is plausible at all, the distribution is not what it is taken to be, and nothing is said: 0 to inf.
    """

    def plausible(x: float) -> float:
        return float(plausibility(known, np.array([x]))[0])

    x = GRID * max(abs(known.a), np.sqrt(known.null)) / known.t
    found = plausibility(known, x)
    best = float(found.max())
    if best <= 0:
        return 0.0, np.inf
    needed = (1 - confidence) * (1.0 if best > 1 - confidence else best)
    while found[-1] > needed:
        x = np.append(x, 4 * x[-1])
        found = np.append(found, plausible(x[-1]))
    first, last = np.flatnonzero(found > needed)[[0, -1]]

    def end(i: int) -> float:
        return float(optimize.brentq(lambda x: plausible(x) - needed, x[i], x[i + 1]))

    return 1 / end(last), (1 / end(first - 1) if first and known.a > 0 else np.inf)
