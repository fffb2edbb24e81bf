"""The noise scale that takes curvature into account: Tr(H Sigma) / (g^T H g), in samples.

For a quadratic loss and the best step size it is the batch size at which half of the possible progress is lost to noise
(McCandlish et al. 2018, eq. 2.8); it equals Tr Sigma / ||g||^2 when H is a multiple of the identity.
"""

from dataclasses import dataclass

import numpy as np
import torch

from shotnoise.measure.estimate import Array
from shotnoise.named import Named, dot
from shotnoise.problem import Problem

MEMORY_BYTES = 256 * 2**20  # of the probe vectors held at a time


@dataclass(frozen=True)
class HessianNoiseScale:
    """Tr(H Sigma) with its standard error (0 when exact), g^T H g, and their ratio (NaN unless g^T H g > 0)."""

    noise_curvature: float
    noise_curvature_stderr: float
    gradient_curvature: float

    @property
    def value(self) -> float:
        return self.noise_curvature / self.gradient_curvature if self.gradient_curvature > 0 else float("nan")

    @property
    def stderr(self) -> float:
        return self.noise_curvature_stderr / self.gradient_curvature if self.gradient_curvature > 0 else float("nan")


def hessian_noise_scale(problem: Problem, probes: int = 32, seed: int = 0) -> HessianNoiseScale:
    """Tr(H Sigma) from random combinations of the samples' noise, one Hessian-vector product each.

    z = n^-1/2 sum_i s_i (g_i - g) with random signs s has covariance Sigma, so z^T H z has mean Tr(H Sigma). With
    n <= probes every sample is taken by itself instead, and the result is exact.
    """
    gradient = problem.gradient()
    n = problem.n
    exact = n <= probes
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, probes))
    weights = np.sqrt(n) * np.eye(n) if exact else signs
    weights = (weights - weights.mean(0)) / np.sqrt(n)
    at_a_time = max(1, MEMORY_BYTES // (4 * problem.parameter_count))
    values = np.concatenate(
        [_curvatures(problem, weights[:, k : k + at_a_time]) for k in range(0, weights.shape[1], at_a_time)]
    )
    along = _quadratic(problem, gradient)
    stderr = 0.0 if exact else float(values.std(ddof=1) / np.sqrt(len(values)))
    return HessianNoiseScale(float(values.mean()), stderr, along)


def _curvatures(problem: Problem, weights: Array) -> Array:
    """z^T H z for z = sum_i weights_ik g_i, one number per column k."""
    sums: dict[str, torch.Tensor] = {}
    start = 0
    for chunk in problem.passes(with_gradient=False):
        some = torch.as_tensor(weights[start : start + len(chunk.indices)], dtype=problem.dtype, device=problem.device)
        for name, gradients in chunk.per_sample.items():
            part = gradients.weighted_sum(some)
            sums[name] = sums[name] + part if name in sums else part
        start += len(chunk.indices)
    columns = range(weights.shape[1])
    return np.array([_quadratic(problem, {name: s[k] for name, s in sums.items()}) for k in columns])


def _quadratic(problem: Problem, vector: Named) -> float:
    product = problem.hessian_vector_product(vector)
    return float(dot(product, vector))
