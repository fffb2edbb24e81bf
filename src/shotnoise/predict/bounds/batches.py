"""Batches at fixed weights: all of them with their probabilities where they are few, else independent redraws."""

from itertools import combinations, combinations_with_replacement
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, quiet
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithoutReplacement, WithReplacement

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
MOST_ENUMERATED = 5000  # batches


def check_sampling(sampling: Sampling | None) -> Sampling:
    """The scheme, default WithReplacement(); a single batch of an epoch is a uniform subset."""
    if sampling is None:
        return WithReplacement()
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        return WithoutReplacement()
    if not isinstance(sampling, (WithReplacement, WithoutReplacement)):
        raise InputError(f"{sampling!r}: a step draws from the data set; use WithReplacement() or WithoutReplacement()")
    return sampling


def count(sampling: Sampling, n: int, m: int) -> int:
    """How many batches there are, their order set aside."""
    return comb(n + m - 1, m) if isinstance(sampling, WithReplacement) else comb(n, m)


def enumerated(sampling: Sampling, n: int, m: int) -> tuple[Indices, Array]:
    """Every batch (k, m) and its probability (k,)."""
    if isinstance(sampling, WithReplacement):
        batches = np.array(list(combinations_with_replacement(range(n), m)), np.int64).reshape(-1, m)
        counts = np.zeros((len(batches), n))
        np.add.at(counts, (np.arange(len(batches))[:, None], batches), 1)
        return batches, np.exp(gammaln(m + 1) - gammaln(counts + 1).sum(1) - m * np.log(n))
    batches = np.array(list(combinations(range(n), m)), np.int64).reshape(-1, m)
    return batches, np.full(len(batches), 1 / len(batches))


def drawn(sampling: Sampling, n: int, m: int, draws: int, seed: int) -> Indices:
    """Independent batches (draws, m)."""
    return sampling.draws(m, n, [np.random.default_rng([seed, m])])(draws)[0]


def loss_changes(problem: Problem, gradients: Array, batches: Indices, learning_rate: float) -> Array:
    """f(theta - eta g_batch) - f(theta) over the whole data set for each of the batches (k, m), in double precision.

    gradients: of the samples, penalty included, (n, p).
    """
    start = problem.flatten(problem.parameters).detach().double().cpu().numpy()
    with quiet(), torch.no_grad():
        evaluation = Evaluation(problem.model, problem.loss_spec, torch.float64)
        parts = [evaluation.place(problem.samples.batch(c)) for c in problem.chunks(None, problem.chunk_size)]

        def loss(weights: Array) -> float:
            leaves = problem.unflatten(torch.as_tensor(weights, device=problem.device))
            total = sum(float(evaluation.losses(x, y, leaves, checked=False).sum()) for x, y in parts)
            return total / problem.n + 0.5 * problem.l2 * float(weights @ weights)

        here = loss(start)
        return np.array([loss(start - learning_rate * gradients[batch].mean(0)) - here for batch in batches])
