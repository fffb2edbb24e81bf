"""From which batch size on the first order tells the whole: how large what it leaves out is."""

import numpy as np

from shotnoise.predict.propagation.first_order import Spread
from shotnoise.predict.propagation.path import Array, Path, place

LOOKS = 8  # pairs of displaced weights
SMALL = 0.1  # next order up to which the law counts as valid


def noise_change(path: Path, spread: Spread, kappas: Array, seed: int) -> tuple[Array, Array]:
    """The relative change of tr Sigma over w +- sqrt(kappa) delta, by kappa, and its standard error over delta."""

    def noise_here() -> float:
        return float(path.noise(np.random.default_rng([seed, 2]))[0][-1])  # everywhere from the same samples

    here, noise = path.weights, noise_here()
    deviations = spread.deviations(LOOKS, np.random.default_rng([seed, 1])).to(here)
    if not noise > 0:
        return np.zeros_like(kappas), np.zeros_like(kappas)
    changes = np.empty((len(kappas), len(deviations)))
    for i, kappa in enumerate(kappas):
        for j, delta in enumerate(deviations):
            pair = 0.0
            for sign in (1.0, -1.0):
                place(path.problem, here + sign * float(np.sqrt(kappa)) * delta)
                pair += noise_here() / 2
            changes[i, j] = pair / noise - 1
    place(path.problem, here)
    return changes.mean(1), changes.std(1, ddof=1) / np.sqrt(changes.shape[1])


def valid_from(sizes: Array, change: Array, error: Array) -> int:
    """The smallest batch size from which on the next order, two standard errors included, is small; 0 for none."""
    order = np.argsort(sizes)[::-1]
    valid = 0
    for k in order:
        if not abs(change[k]) + 2 * error[k] <= SMALL:
            break
        valid = int(sizes[k])
    return valid
