"""From which batch size on the first order tells the whole: how large what it leaves out is."""

import numpy as np
from torch import Tensor

from shotnoise.errors import NonFiniteError
from shotnoise.predict.propagation.first_order import Spread
from shotnoise.predict.propagation.path import Array, Path

LOOKS = 8  # pairs of displaced weights
SMALL = 0.1  # next order up to which the law counts as valid


def displaced(path: Path, spread: Spread, kappas: Array, leading: float, seed: int) -> tuple[Array, Array]:
    """What the law misses at the last step over w +- sqrt(kappa) delta, by kappa, with its standard error over delta.

    kappa tr Sigma + ||change of grad L||^2 on average, less their values to first order, relative to kappa leading:
    how far noise and gradient are from being constant and linear where the weights fluctuate. What has gathered
    on the way is not in it. Infinite where the loss is not finite.
    """
    here, noise = path.weights, _noise(path, path.gradient, seed)
    deviations = spread.deviations(LOOKS, np.random.default_rng([seed, 1])).to(here)
    zeros = np.zeros_like(kappas)
    if not leading > 0:
        return zeros, zeros
    linear = path.squares(path.products(deviations))[:, -1]
    changes = np.empty((len(kappas), len(deviations)))
    for i, kappa in enumerate(kappas):
        for j, delta in enumerate(deviations):
            try:
                moved = [_at(path, here + sign * float(np.sqrt(kappa)) * delta, seed) for sign in (1.0, -1.0)]
            except NonFiniteError:
                changes[i] = np.inf
                break
            shaken = kappa * (np.mean([trace for trace, _ in moved]) - noise)
            bent = np.mean([float((g - path.gradient).double().square().sum()) for _, g in moved])
            changes[i, j] = (shaken + bent - kappa * linear[j]) / (kappa * leading) if kappa else 0.0
    path.problem.place(here)
    finite = np.isfinite(changes).all(1)
    error = np.full_like(kappas, np.inf)
    error[finite] = changes[finite].std(1, ddof=1) / np.sqrt(changes.shape[1])
    return changes.mean(1), error


def _at(path: Path, weights: Tensor, seed: int) -> tuple[float, Tensor]:
    path.problem.place(weights)
    gradient = path.problem.flatten(path.problem.gradient())
    return _noise(path, gradient, seed), gradient


def _noise(path: Path, gradient: Tensor, seed: int) -> float:
    """tr Sigma where the path's problem is; of a population from the same samples everywhere."""
    return float(path.noise(np.random.default_rng([seed, 2]), gradient)[0][-1])


def valid_from(sizes: Array, change: Array, error: Array) -> int:
    """The smallest batch size from which on the next order, two standard errors included, is small; 0 for none."""
    order = np.argsort(sizes)[::-1]
    valid = 0
    for k in order:
        if not abs(change[k]) + 2 * error[k] <= SMALL:
            break
        valid = int(sizes[k])
    return valid
