"""Gauss-k: k unit Gaussian clouds around random centres, some of the labels drawn at random.

    x = (c_y + e) / s      c_y ~ U(-10, 10)^d one centre per class, e ~ N(0, I), s = 5

Divided by s = 5, and with all weights and biases of a 50-10-30-k ReLU network drawn from 0.1 N(0, I), the set
trains and shows the dynamics described by Li, Gu, Zhou, Chen, Banerjee (appendix A.1), who print s = 1, with
which most runs diverge in the first steps and then stand still.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shotnoise.datasets.data import Data
from shotnoise.errors import InputError

_HALF_WIDTH = 10.0


def make_gauss(
    k: int = 10,
    *,
    n: int = 100,
    dimension: int = 50,
    random_labels: float = 0.0,
    scale: float = 5.0,
    seed: int = 0,
) -> Data:
    """Gauss-k: inputs (n, dimension), k classes of n/k samples (sizes differ by at most one), interleaved.

    random_labels  share of the samples, spread evenly over the classes, whose label is drawn again uniformly
                   from all k classes. A draw may give the old label back, so that on average a share
                   random_labels (1 - 1/k) ends up wrong.
    scale          the inputs are divided by it; 5 is the recipe that trains, 1 the published one
    seed           the inputs depend on seed but not on random_labels
    Raises InputError for options out of range.

    >>> make_gauss(2, n=6, dimension=3).targets.tolist()
    [0, 1, 0, 1, 0, 1]
    """
    _check_options(k, n, dimension, random_labels, scale)
    points, relabelling = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    labels = np.arange(n) % k
    centres = points.uniform(-_HALF_WIDTH, _HALF_WIDTH, size=(k, dimension))
    inputs = (centres[labels] + points.normal(size=(n, dimension))) / scale
    redrawn = _spread_over_classes(relabelling, n, k, round(random_labels * n))
    labels[redrawn] = relabelling.integers(k, size=len(redrawn))
    return Data(
        name=f"gauss-{k}",
        inputs=torch.from_numpy(inputs.astype(np.float32)),
        targets=torch.from_numpy(labels.astype(np.int64)),
        task="classification",
        classes=k,
        source=f"synthetic: Gauss-k with k={k}, n={n}, dimension={dimension}, random_labels={random_labels}, "
        f"scale={scale}, seed={seed}",
        licence="none needed (generated)",
    )


def _spread_over_classes(rng: np.random.Generator, n: int, k: int, count: int) -> NDArray[np.int64]:
    """`count` of the samples 0..n-1 (class = index % k), as evenly over the classes as `count` allows.

    Blocks of k consecutive samples hold each class once. Shuffling inside each class and then cutting inside
    one shuffled block gives every sample of every class the same chance.
    """
    blocks = np.full((-(-n // k), k), -1)
    blocks.flat[:n] = np.arange(n)
    for label in range(k):
        members = blocks[blocks[:, label] >= 0, label]
        blocks[: len(members), label] = rng.permutation(members)
    order = np.concatenate([rng.permutation(block[block >= 0]) for block in blocks])
    return order[:count]


def _check_options(k: int, n: int, dimension: int, random_labels: float, scale: float) -> None:
    if k < 2 or n < k or dimension < 1:
        raise InputError(
            f"gauss: k={k}, n={n}, dimension={dimension}; expected k >= 2 classes, n >= k samples and dimension >= 1."
        )
    if not 0 <= random_labels <= 1:
        raise InputError(f"gauss: random_labels={random_labels}; expected a share between 0 and 1, e.g. 0.15.")
    if not 0 < scale < float("inf"):
        raise InputError(f"gauss: scale={scale}; the inputs are divided by it, so it must be positive and finite.")
