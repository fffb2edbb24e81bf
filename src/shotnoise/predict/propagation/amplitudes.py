"""The next coefficient of the gradient's variance for models of any size, from trainings on randomly weighted data.

A batch enters as the gradient of a re-weighted loss, so that sum_i z_i (g_i - grad L) / sqrt(n) with z ~ N(0, I_n) is a
noise whose covariances, at all weights together, are those of one sample and whose higher cumulants vanish; and one
sample's g_i - grad L has the third cumulants too. Gradient descent with `amplitude` times such a noise, at a few small
amplitudes on both sides of 0 with the same z, gives the parts G1, G2, G3 of grad L(w_t) by order (see `second_order`):

    kappa^2:  E|G2|^2 - |E G2|^2 + 2 E<G1, G3> + half of D^2 tr Sigma along the path,       z normal
    kappa_3:  2 E<G1, G2>,                                                                  single samples

Everything runs in float64: third differences leave seven digits, far more than the draws do.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotnoise.evaluation import Evaluation, gradient, quiet
from shotnoise.measure.moments import of_all
from shotnoise.per_sample.finite import require_losses, require_sums
from shotnoise.predict.propagation.path import Path, Row, estimated
from shotnoise.problem import Problem
from shotnoise.samples import Batch, Samples, tree_map

RADIUS = 1e-3  # amplitude, in units of a batch of one
NORMAL, SINGLE = (1, -1, 2, -2), (1, -1)  # amplitudes, in units of the radius


@dataclass
class Amplitudes:
    """Weights of the trainings: without noise (p,), with normal (k, 4, p) and single-sample (k, 2, p) noise."""

    problem: Problem
    base: Tensor
    normal: Tensor
    single: Tensor
    rng: np.random.Generator
    moves: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def start(cls, path: Path, count: int, seed: int) -> "Amplitudes":
        problem, base = _doubled(path.problem), path.weights.double()
        normal, single = (base.expand(count, len(nodes), -1).clone() for nodes in (NORMAL, SINGLE))
        return cls(problem, base, normal, single, np.random.default_rng([seed, 2]))

    def look(self, path: Path) -> Row:
        """What each training moves along is kept for the move that follows."""
        n, count = self.problem.n, len(self.normal)
        normal = torch.from_numpy(self.rng.normal(size=(count, n))) / n**0.5
        single = torch.zeros(count, n, dtype=torch.float64)
        single[torch.arange(count), torch.from_numpy(self.rng.integers(n, size=count))] = 1.0
        full, still = self._gradients(self.base, torch.zeros(n, dtype=torch.float64))
        G, normal_moves = self._all(self.normal, NORMAL, normal)
        K, single_moves = self._all(self.single, SINGLE, single)
        self.moves = still, normal_moves, single_moves
        first, second, third = _orders(G - full)
        gradients = path.by_layer(_squares_about_mean(second) + 2 * first * third)
        noise = np.stack([self._noise(w[0]) + self._noise(w[1]) for w in self.normal]) - 2 * self._noise(self.base)
        odd, even = (K[:, 0] - K[:, 1]) / (2 * RADIUS), (K.mean(1) - full) / RADIUS**2
        draws = {
            "full_gradient_variance_second": gradients,
            "gradient_variance_second": gradients + noise / (2 * RADIUS**2),
            "full_gradient_variance_skewness": path.by_layer(2 * odd * even),
        }
        draws["gradient_variance_skewness"] = draws["full_gradient_variance_skewness"]
        found: Row = {}
        for name, values in draws.items():
            found[name], found[f"{name}_stderr"] = estimated(values)
        return found

    def move(self, path: Path, rate: float) -> None:
        assert self.moves is not None
        self.base = self.base - rate * self.moves[0]
        self.normal = self.normal - rate * self.moves[1]
        self.single = self.single - rate * self.moves[2]

    def _all(self, weights: Tensor, nodes: tuple[int, ...], noise: Tensor) -> tuple[Tensor, Tensor]:
        """The full gradients at weights (k, nodes, p), and those with each node's share of noise (k, n)."""
        centred = noise - noise.mean(1, keepdim=True)
        found = [
            [self._gradients(w, RADIUS * node * own) for w, node in zip(row, nodes, strict=True)]
            for row, own in zip(weights, centred, strict=True)
        ]
        full, moving = (torch.stack([torch.stack([pair[i] for pair in row]) for row in found]) for i in (0, 1))
        return full, moving

    def _gradients(self, weights: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Of the loss, and of the loss with extra (n,) added to the samples' weights 1/n."""
        problem = self.problem
        problem.place(weights)
        total, added = torch.zeros_like(weights), torch.zeros_like(weights)
        with quiet():
            evaluation = Evaluation(problem.model, problem.loss_spec)
            for chunk in problem.chunks(None, problem.chunk_size):
                losses = evaluation.losses(*evaluation.place(problem.samples.batch(chunk)))
                require_losses(losses, chunk)
                mean = gradient(losses.sum() / problem.n, evaluation.leaves, retain_graph=True)
                require_sums(mean, "gradient")
                total += problem.flatten(mean)
                added += problem.flatten(gradient(losses @ extra[chunk].to(losses), evaluation.leaves))
        total += problem.l2 * weights
        return total, total + added

    def _noise(self, weights: Tensor) -> Any:
        self.problem.place(weights)
        return of_all(self.problem).noise_trace


def _squares_about_mean(draws: Tensor) -> Tensor:
    """Entry by entry, with the variance for a mean."""
    return (draws - draws.mean(0)).square() * (len(draws) / (len(draws) - 1))


def _orders(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients of the first three powers of the amplitude from values (k, nodes, p) that vanish without."""
    h = RADIUS
    odd, wide_odd = (values[:, 0] - values[:, 1]) / 2, (values[:, 2] - values[:, 3]) / 2
    even, wide_even = (values[:, 0] + values[:, 1]) / 2, (values[:, 2] + values[:, 3]) / 2
    return (
        (8 * odd - wide_odd) / (6 * h),
        (16 * even - wide_even) / (12 * h**2),
        (wide_odd - 2 * odd) / (6 * h**3),
    )


@dataclass
class _Doubled:
    """Samples in double precision where they have that of the model."""

    own: Samples
    dtype: torch.dtype
    n: int

    def batch(self, indices: Tensor) -> tuple[Batch, Batch]:
        doubled: tuple[Batch, Batch] = tree_map(
            lambda t: t.double() if t.dtype == self.dtype else t, self.own.batch(indices)
        )
        return doubled

    def fingerprint(self) -> str:
        return self.own.fingerprint()


def _doubled(problem: Problem) -> Problem:
    """A copy in float64."""
    own = problem.replica()
    if problem.dtype != torch.float64:
        own.samples = _Doubled(problem.samples, problem.dtype, problem.n)
        own.model.double()
    return own
