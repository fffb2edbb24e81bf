"""The density of all eigenvalues, by stochastic Lanczos quadrature.

    rho(x) = (1/p) sum_i delta(x - lambda_i)  ~  mean over random z of sum_j w_j normal(x; theta_j, width)

with theta_j the Ritz values of a Krylov space of `steps` dimensions from z / ||z|| and w_j the squares of the first
components of their coefficient vectors: a Gauss quadrature, exact for polynomials of degree 2 steps - 1. The
standard error is that of the mean over the probes. What the quadrature itself leaves out is a bias that the error does
not see: structure finer than about the spectrum's width over `steps`; eigenvalues that stand alone are sharp long
before. Source: Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019.
"""

from dataclasses import dataclass

import numpy as np
import torch

from shotnoise.errors import InputError
from shotnoise.measure.spectra.operator import Array, Symmetric

ORTHOGONAL = 2  # passes of Gram-Schmidt
MARGIN = 4  # widths beyond the extreme Ritz values


@dataclass(frozen=True)
class Density:
    """density and stderr at the eigenvalues `points`, each (points,), and the quadratures behind them.

    nodes, weights: (probes, steps).

    width: standard deviation of the Gaussian by which the density is smoothed.
    """

    points: Array
    density: Array
    stderr: Array
    width: float
    nodes: Array
    weights: Array

    def moment(self, power: int) -> tuple[float, float]:
        """(1/p) sum_i lambda_i^power with its standard error, without smoothing; free of bias for power < 2 steps."""
        each = (self.weights * self.nodes**power).sum(1)
        return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def spectral_density(
    operator: Symmetric,
    *,
    steps: int = 80,
    probes: int = 8,
    points: int = 400,
    width: float | None = None,
    seed: int = 0,
) -> Density:
    """The smoothed density of the operator's eigenvalues, `steps` products with each of `probes` random vectors.

    width: of the smoothing, default 1/100 of the range of the Ritz values. Raises InputError for fewer than 2 probes.

    >>> class Diagonal(Symmetric):
    ...     def product(self, vectors):
    ...         return vectors * torch.linspace(-1, 1, 500, dtype=torch.float64)
    >>> found = spectral_density(Diagonal(500, torch.float64, torch.device("cpu")))
    >>> bool(abs(found.density[200] - 0.5) < 4 * found.stderr[200] + 0.01)
    True
    """
    if probes < 2 or steps < 2 or points < 2:
        raise InputError(f"probes={probes}, steps={steps}, points={points}: a density with errors needs 2 of each")
    steps = min(steps, operator.shape[0])
    nodes, weights = quadratures(operator, steps, probes, seed)
    low, high = nodes.min(), nodes.max()
    if width is None:
        width = max((high - low) / 100, 1e-6 * max(abs(low), abs(high))) or 1.0
    if not width > 0:
        raise InputError(f"width={width}: a positive smoothing")
    grid = np.linspace(low - MARGIN * width, high + MARGIN * width, points)
    each = np.zeros((probes, points))
    for j in range(nodes.shape[1]):
        z = (grid[None] - nodes[:, j, None]) / width
        each += weights[:, j, None] * np.exp(-(z**2) / 2) / (width * np.sqrt(2 * np.pi))
    return Density(grid, each.mean(0), each.std(0, ddof=1) / np.sqrt(probes), float(width), nodes, weights)


def quadratures(operator: Symmetric, steps: int, probes: int, seed: int = 0) -> tuple[Array, Array]:
    """Nodes and weights (probes, steps) of the Gauss quadratures of random sign vectors, by plain Lanczos."""
    p = operator.shape[0]
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], size=(probes, p)) / np.sqrt(p)
    q = torch.as_tensor(drawn).to(operator.device, operator.precision)
    Q = q.new_zeros(probes, steps, p)
    diagonal, beside = np.zeros((probes, steps)), np.zeros((probes, steps - 1))
    for j in range(steps):
        Q[:, j] = q
        w = torch.cat([operator.product(some) for some in q.split(operator.block)])
        diagonal[:, j] = (w * q).double().sum(1).cpu().numpy()
        if j == steps - 1:
            break
        for _ in range(ORTHOGONAL):
            w = w - torch.einsum("rj,rjp->rp", torch.einsum("rjp,rp->rj", Q[:, : j + 1], w), Q[:, : j + 1])
        length = torch.linalg.vector_norm(w, dim=1)
        # An invariant subspace: what follows has weight zero, whatever it is.
        beside[:, j] = torch.where(length > 1e-14 * (1 + length.max()), length, 0).double().cpu().numpy()
        q = w / length.clamp_min(torch.finfo(w.dtype).tiny)[:, None]
    T = np.zeros((probes, steps, steps))
    i = np.arange(steps)
    T[:, i, i] = diagonal
    T[:, i[:-1], i[1:]] = T[:, i[1:], i[:-1]] = beside
    nodes, vectors = np.linalg.eigh(T)
    return nodes, vectors[:, 0, :] ** 2
