"""The variance of the minibatch gradient as it is observed: real batches, redrawn at fixed weights.

The full gradient mu is known, so the mean of ||g_batch - mu||^2 over R independent batches is unbiased for the
variance, and its standard error is that of a mean of R numbers. It knows nothing of the factor kappa.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.measure.moments import Progress
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, Indices, ReshuffledEpochs, Sampling, WithoutReplacement


def observed(
    problem: Problem,
    batch_sizes: Sequence[int],
    sampling: Sampling | None = None,
    *,
    draws: int = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """`conditional_gradient_variance` by batch_size from `draws` independent batches each, with its standard error.

    sampling: default WithoutReplacement(). Epochs are started afresh for every batch, since successive batches of an
    epoch are not independent. Costs draws backward passes per batch size.
    Raises InputError for fewer than 2 draws or a batch that cannot be drawn.
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    check_draws(draws)
    sampling.check_all(batch_sizes, problem.n)
    full = problem.flatten(problem.gradient())
    mean, stderr = [], []
    for done, b in enumerate(batch_sizes):
        batches = _independent(sampling, b, problem.n, np.random.default_rng([seed, b]))
        squares = np.empty(draws)
        for r in range(draws):
            batch = torch.as_tensor(np.sort(next(batches)))  # sorted: a batch of all samples is exact to the last bit
            squares[r] = float((problem.flatten(problem.gradient(batch)) - full).double().square().sum())
            if progress is not None:
                progress(done * draws + r + 1, draws * len(batch_sizes))
        mean.append(squares.mean())
        stderr.append(squares.std(ddof=1) / np.sqrt(draws))
    found = {
        "conditional_gradient_variance": ("batch_size", np.array(mean)),
        "conditional_gradient_variance_stderr": ("batch_size", np.array(stderr)),
    }
    coordinates = {"batch_size": np.asarray(batch_sizes, dtype=np.int64)}
    attributes = results.provenance(problem) | {"sampling": str(sampling), "draws": draws, "seed": seed}
    return results.dataset(found, coordinates, attributes)


def check_draws(draws: int) -> None:
    if draws < 2:
        raise InputError(f"draws={draws}: a variance needs at least 2 batches")


def _independent(sampling: Sampling, b: int, n: int, rng: np.random.Generator) -> Iterator[Indices]:
    if not isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        yield from sampling.batches(b, n, rng)
    while True:
        yield next(iter(sampling.batches(b, n, rng)))
