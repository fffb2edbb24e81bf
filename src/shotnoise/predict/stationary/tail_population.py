"""The tail index in several dimensions: the root of lim_n (E||F_n .. F_1 v||^beta)^(1/n) = 1.

F is the random matrix that moves (w, m). The expectation belongs to rare growth: a population of vectors is moved,
weighted with its growth ||F v||^beta and resampled, and the mean weights multiply up to it.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import Array, Grid, covariance
from shotnoise.predict.stationary.tails import highest_moment

LARGEST = 64.0  # order of moments beyond which the estimate by a population of vectors means nothing


def tail_index_matrix(
    feature_covariance: ArrayLike,
    learning_rate: float | ArrayLike,
    batch_size: int,
    momentum: float = 0.0,
    *,
    replicates: int = 8,
    particles: int = 1000,
    steps: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """The tail index in several dimensions, by Monte Carlo with standard error; Gaussian features, no penalty.

    learning_rate: a number or a symmetric positive definite matrix. Each of `replicates` independent populations of
    `particles` vectors, moved, weighted and resampled `steps` times after a tenth of that, gives a root; returned are
    their mean and its standard error: `tail_index`, `tail_index_stderr`, and `lyapunov_exponent` with its own, besides
    `highest_moment` and `status`. A finite population errs besides, upwards, as the largest growth is too rare to be
    met: with three isotropic features, S = 4 and 1500 particles by 0.5 % at beta = 2.8, 0.8 % at 4.3, 5 % at 6.6, with
    300 by 1 %, 4 %, 16 %: double them and see. Above 64 an InputError says that this is no way to find it. Even orders
    are exactly known without: beta = 2 at the critical rate of `gaussian`.

    >>> r = tail_index_matrix([1.0, 1.0], 0.8, 2, particles=200, steps=100)
    >>> abs(float(r["tail_index"]) - 2) < 0.3  # 0.8 = 2 S / (S + p + 1), where the variance ceases to exist
    True
    """
    check_momentum(momentum)
    K = covariance("feature_covariance", feature_covariance)
    grid = Grid.of(learning_rate, batch_size, len(K))
    if grid.rates.kind == "sweep" or not grid.one_size:
        raise InputError("learning_rate and batch_size: one each; call again for others")
    if min(replicates, particles, steps) < 2:
        raise InputError(f"replicates={replicates}, particles={particles}, steps={steps}: at least 2 of each")
    rates = float(grid.rates.multiples[0]) * grid.rates.matrix
    values, vectors = np.linalg.eigh(K)
    population = _Population(
        (vectors * np.sqrt(np.maximum(values, 0))).T, rates, int(grid.sizes[0]), momentum, particles, steps
    )
    seeds = np.random.SeedSequence(seed).spawn(replicates)
    exponents = np.array([population.exponent(child, 0.0) for child in seeds])
    error = exponents.std(ddof=1) / np.sqrt(replicates)
    stable = bool(exponents.mean() < 0)
    roots = np.array([population.root(child, exponents.mean()) for child in seeds]) if stable else np.full(2, np.nan)
    index = float(roots.mean())
    found = {
        "tail_index": index,
        "tail_index_stderr": roots.std(ddof=1) / np.sqrt(replicates),
        "lyapunov_exponent": exponents.mean(),
        "lyapunov_exponent_stderr": error,
        "highest_moment": float(highest_moment(np.array(index))),
        "status": STATIONARY if stable else DIVERGES,
    }
    attributes = {
        "theory": "tail index from the growth of moments, Monte Carlo",
        "replicates": replicates,
        "particles": particles,
        "steps": steps,
        "seed": seed,
        "momentum": float(momentum),
        "parameters": len(K),
    }
    variables = {name: ((), value) for name, value in found.items()}
    return results.dataset(variables, grid.coordinates, attributes)


@dataclass(frozen=True)
class _Population:
    """Vectors (w, m) that a common law of matrices moves, weighted with their growth and resampled."""

    root_features: Array  # rows: x = z @ root_features
    rates: Array
    batch_size: int
    momentum: float
    particles: int
    steps: int

    def exponent(self, seed: np.random.SeedSequence, beta: float) -> float:
        """(1/n) ln E||F_n .. F_1 v||^beta; for beta = 0 its slope there, the Lyapunov exponent."""
        rng, p = np.random.default_rng(seed), len(self.rates)
        w, m = rng.normal(size=(2, self.particles, p))
        if not self.momentum:
            m[:] = 0
        total, skipped = 0.0, self.steps // 10
        for step in range(skipped + self.steps):
            x = rng.normal(size=(self.particles, self.batch_size, p)) @ self.root_features
            gradient = np.einsum("ns,nsp->np", np.einsum("nsp,np->ns", x, w), x) / self.batch_size
            shift = rng.random()
            m = self.momentum * m + gradient
            w = w - m @ self.rates
            state = np.concatenate([w, m], axis=1) if self.momentum else w
            growth = np.log(np.linalg.norm(state, axis=1))
            w, m = w / np.exp(growth)[:, None], m / np.exp(growth)[:, None]
            weights = np.exp(beta * (growth - growth.max()))
            if step >= skipped:
                total += beta * growth.max() + np.log(weights.mean()) if beta else growth.mean()
            if beta:
                places = (np.arange(self.particles) + shift) / self.particles * weights.sum()
                chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), self.particles - 1)
                w, m = w[chosen], m[chosen]
        return float(total / self.steps)

    def root(self, seed: np.random.SeedSequence, exponent: float) -> float:
        """Where the growth of moments vanishes; the same random numbers for every beta."""

        def slope(beta: float) -> float:
            return self.exponent(seed, beta) / beta

        high = 1.0
        while slope(high) < 0:
            high *= 2
            if high > LARGEST:
                raise InputError(
                    f"the tail index is above {LARGEST:g}: too light a tail for this estimate (all moments that matter "
                    "exist); nearer the critical learning rate it can be had"
                )
        low = high / 2
        while slope(low) > 0:
            low /= 2
            if low < 1e-3:
                raise InputError(
                    f"the tail index is below 0.001, the Lyapunov exponent {exponent:.2g}: a stationary law hardly "
                    "exists here; take a smaller learning rate"
                )
        return float(brentq(slope, low, high, xtol=1e-3 * low))
