"""Stationary densities with no current, and the tempered posterior: where it is right and how far off it is elsewhere.

With eps = eta s_f, one weight, and the integral from wherever L' changes sign,

    ito                   p ~ Sigma^-1   exp(-2/eps int L'/Sigma)        SGD's diffusion
    stratonovich          p ~ Sigma^-1/2 exp(..),      hanggi-klimontovich  p ~ exp(..)
    tempered posterior    p ~ exp(-beta L), beta = 2 / (eps s)           right where Sigma = s I, in any dimension
    printed, eq. 28       beta = B / (2 eta): 4 times too small          (s at the minimum)
    printed, eq. 29       |Sigma|^-1/2 exp(-2 B L / eta): the exponent lacks Sigma

In several dimensions there is such a density only where Sigma^-1 (2/eps grad L + div Sigma) is a gradient: see
`detailed_balance`. Near a minimum with constant C it is one if and only if H and C commute.
"""

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.diffusion.landscape import Landscape, derivative_along
from shotnoise.predict.diffusion.linear import FIRST, Minimum
from shotnoise.predict.diffusion.network import placed
from shotnoise.predict.diffusion.ornstein_uhlenbeck import MATRIX, require_stationary
from shotnoise.predict.diffusion.settings import Array, Setting, matrices
from shotnoise.predict.stationary.arguments import numbers
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling

DENSITIES = ("ito", "stratonovich", "hanggi-klimontovich", "tempered posterior", "printed, eq. 28", "printed, eq. 29")


def tempered_posterior(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, grid: ArrayLike,
    *, sampling: Sampling | None = None,
) -> xr.Dataset:  # fmt: skip
    """The densities of one weight on a rising grid, each normalised there, by quadrature in the logarithmic domain.

    landscape: of one weight with Sigma > 0. Returns by `theory` (see the head of this file; "ito" is SGD's diffusion)
    `density` (theory, x), `mean_weights`, `weights_variance`, and `total_variation`, half the integral of the absolute
    difference to "ito": the largest error of any probability. Raises InputError where the noise vanishes on the grid.

    >>> x = np.linspace(-30, 30, 6001)
    >>> land = Landscape(1, lambda w: w / 2, lambda w: (w**2 / 2 + 1)[:, :, None])
    >>> t = tempered_posterior(land, 0.4, 5, x)
    >>> [round(float(v), 5) for v in t["weights_variance"].values[:3]]
    [0.08333, 0.08696, 0.09091]
    """
    x = numbers("grid", grid)
    land, setting = placed(landscape, learning_rate, batch_size, 0.0, sampling)
    if land.dimension != 1 or x.ndim != 1 or len(x) < 5 or not (np.diff(x) > 0).all():
        raise InputError(
            "one weight, and a rising grid of at least five places, are needed; see `FokkerPlanck` for two"
        )
    slope, sigma = _at(land, x)
    middle_slope, middle_sigma = _at(land, (x[1:] + x[:-1]) / 2)
    if not (min(sigma.min(), middle_sigma.min()) > 0):
        raise InputError(
            f"the covariance is {sigma.min():.3g} at weight {x[sigma.argmin()]:.4g}: without noise there is no density"
        )
    widths = np.diff(x)

    def integral(ends: Array, middles: Array) -> Array:
        """Simpson's rule, cumulative from the left."""
        pieces = widths * (ends[:-1] + 4 * middles + ends[1:]) / 6
        return np.concatenate([[0.0], np.cumsum(pieces)])

    loss = integral(slope, middle_slope)
    potential = 2 / setting.epsilon * integral(slope / sigma, middle_slope / middle_sigma)
    s = sigma[loss.argmin()]
    inverse = batch_size / learning_rate  # as printed, whatever the sampling
    logs = np.array([
        -potential - np.log(sigma),
        -potential - np.log(sigma) / 2,
        -potential,
        -2 / (setting.epsilon * s) * loss,
        -inverse / 2 * loss / s,
        -2 * inverse * loss - np.log(sigma) / 2,
    ])  # fmt: skip
    density = np.exp(logs - logs.max(1, keepdims=True))
    density /= np.trapezoid(density, x, axis=1)[:, None]
    mean = np.trapezoid(density * x, x, axis=1)
    found = {
        "density": (("theory", "x"), density),
        "mean_weights": (("theory",), mean),
        "weights_variance": (("theory",), np.trapezoid(density * (x - mean[:, None]) ** 2, x, axis=1)),
        "total_variation": (("theory",), np.trapezoid(np.abs(density - density[0]), x, axis=1) / 2),
    }
    attributes = {"theory": "densities without current of one weight", **setting.attributes}
    return results.dataset(found, {"theory": list(DENSITIES), "x": x}, attributes)


def detailed_balance(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, points: ArrayLike, *, tolerance: float = 1e-6
) -> xr.Dataset:
    """Is there a density without current? The Jacobian of Sigma^-1 (2/eps grad L + div Sigma) must be symmetric.

    points: weights (m, d), at which it is asked. Returns `asymmetry` (point), the Frobenius norm of the antisymmetric
    part of the Jacobian over that of the whole, and `reversible`, whether it is below `tolerance` at all of them:
    necessary and, where the points stand for a region without holes, sufficient. Derivatives by central differences.

    >>> h, c = [[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 0.6]]
    >>> from shotnoise.predict.diffusion.landscape import Quadratic
    >>> [bool(detailed_balance(Quadratic(h, noise), 0.1, 4, [[0.0, 0.0]])["reversible"]) for noise in (c, [1.0, 1.0])]
    [False, True]
    """
    w = torch.from_numpy(np.atleast_2d(numbers("points", points)))
    land, setting = placed(landscape, learning_rate, batch_size, 0.0, None)
    d, epsilon = land.dimension, setting.epsilon
    if w.shape[1] != d:
        raise InputError(f"points: {d} weights each are needed; got an array {tuple(w.shape)}")
    asymmetry = []
    for point in w:
        step = 1e-4 * max(1.0, float(point.abs().max()))
        shifted = torch.cat([point + step * torch.eye(d), point - step * torch.eye(d)])
        b = _field(land, shifted.double(), epsilon)
        jacobian = ((b[:d] - b[d:]) / (2 * step)).numpy()
        size = np.linalg.norm(jacobian)
        asymmetry.append(float(np.linalg.norm(jacobian - jacobian.T) / 2 / size) if size else 0.0)
    found = {"asymmetry": (("point",), asymmetry), "reversible": ((), bool(max(asymmetry) < tolerance))}
    return results.dataset(found, {}, {"theory": "integrability of the stationary density without current"})


def approximate_inference(
    hessian: ArrayLike, noise_covariance: ArrayLike, learning_rate: float, batch_size: int, n: int,
    *, sampling: Sampling | None = None,
) -> xr.Dataset:  # fmt: skip
    """SGD as a sampler of the posterior N(0, (n H)^-1) near its mode: how good, and at which rate it is best.

    H, C (d, d) as in `ornstein_uhlenbeck`, n samples. Returns `weight_covariance` X of the first-order diffusion,
    `posterior_covariance`, `posterior_divergence` KL(X || posterior) in nats, `optimal_learning_rate` 2 d / (n s_f tr
    C) where it is least, `least_divergence` there: zero if and only if C is a multiple of I; `tempered_divergence`,
    from X to the nearest tempered posterior N(0, (beta H)^-1), and its `inverse_temperature` beta. Source: Mandt,
    Hoffman and Blei (2017), sec. 9 of the corrected notes.

    >>> a = approximate_inference([2.0, 1.0], [1.0, 1.0], 0.01, 4, 100)
    >>> round(float(a["optimal_learning_rate"]), 12), abs(float(a["least_divergence"])) < 1e-12
    (0.08, True)
    """
    H, C = matrices(hessian, noise_covariance)
    minimum = Minimum(H, C, Setting.of(learning_rate, batch_size, 0.0, sampling, n))
    require_stationary(minimum, FIRST)
    if not np.linalg.eigvalsh(H)[0] > 0:
        raise InputError("hessian: flat directions have no posterior without a prior; leave them out")
    d, factor, X = len(H), minimum.setting.factor, minimum.settled(FIRST)
    if not np.linalg.eigvalsh(X)[0] > 1e-14 * np.linalg.eigvalsh(X)[-1]:
        raise InputError("the stationary law is singular, its divergence from the posterior infinite")
    best = 2 * d / (n * factor * float(np.trace(C)))
    beta = d / float(np.trace(H @ X))
    found = {
        "weight_covariance": (MATRIX, X),
        "posterior_covariance": (MATRIX, np.linalg.inv(n * H)),
        "posterior_divergence": ((), _divergence(X, n * H)),
        "optimal_learning_rate": ((), best),
        "least_divergence": ((), _divergence(X * best / learning_rate, n * H)),
        "tempered_divergence": ((), _divergence(X, beta * H)),
        "inverse_temperature": ((), beta),
    }
    attributes = {"theory": "constant-rate SGD as approximate inference", "n_samples": n, **minimum.setting.attributes}
    return results.dataset(found, {}, attributes)


def _divergence(X: Array, precision: Array) -> float:
    """KL of N(0, X) from N(0, precision^-1)."""
    inner = precision @ X
    return float((np.trace(inner) - len(X) - np.linalg.slogdet(inner)[1]) / 2)


def _at(landscape: Landscape, x: Array) -> tuple[Array, Array]:
    w = torch.from_numpy(np.array(x))[:, None]
    return landscape.gradient(w)[:, 0].numpy(), landscape.covariance(w)[:, 0, 0].numpy()


def _field(landscape: Landscape, w: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Sigma^-1 (2/eps grad L + div Sigma), (m, d)."""
    d = w.shape[1]
    divergence = torch.zeros_like(w)
    if landscape.constant is None:
        for j in range(d):
            along = torch.zeros_like(w)
            along[:, j] = 1
            divergence += derivative_along(lambda v, j=j: landscape.covariance(v)[:, :, j], w, along)  # type: ignore[misc]
    right = 2 / epsilon * landscape.gradient(w) + divergence
    return torch.linalg.solve(landscape.covariance(w), right.unsqueeze(2)).squeeze(2).detach()
