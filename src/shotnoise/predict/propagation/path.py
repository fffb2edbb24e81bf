"""Gradient descent on a copy of a problem, and what is asked of it on the way.

Of a population, loss, gradient and Hessian are those of its evaluation points; noise is that of fresh samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.moments import of_all
from shotnoise.measure.products import per_sample_norms
from shotnoise.population import Population
from shotnoise.problem import Problem

Array = NDArray[Any]
NOISE_SAMPLES = 1024  # fresh ones that estimate the noise of a population at a step
Drawn = tuple[Problem, Tensor]  # which samples, and of which problem: its model is the path's own
Row = dict[str, Array]  # what is found at one step; by layer, all of them together last, or a number


@dataclass
class Path:
    """The problem at the weights of one step, its gradient there (p,), and the layer of each parameter (p,)."""

    problem: Problem
    gradient: Tensor
    layers: Array
    population: Population | None = None

    @classmethod
    def of(cls, subject: Problem | Population, w0: ArrayLike | None) -> "Path":
        population = subject if isinstance(subject, Population) else None
        problem = subject.problem if isinstance(subject, Population) else subject
        own = problem.replica()
        if w0 is not None:
            start = np.asarray(w0, np.float64)
            if start.shape != (problem.parameter_count,) or not np.isfinite(start).all():
                raise InputError(f"w0: {problem.parameter_count} finite numbers are needed; got an array {start.shape}")
            own.place(start)
        number = {name: k for k, names in enumerate(own.layers.values()) for name in names}
        layers = [np.full(p.numel(), number[name]) for name, p in own.parameters.items()]
        return cls(own, own.flatten(own.gradient()), np.concatenate(layers), population)

    @property
    def weights(self) -> Tensor:
        return self.problem.flatten(self.problem.parameters).detach().clone()

    def move(self, rate: float) -> None:
        self.problem.place(self.weights - rate * self.gradient)
        self.gradient = self.problem.flatten(self.problem.gradient())

    def by_layer(self, values: Tensor) -> Array:
        """Sums of values (..., p) over the parameters of each layer, and over all, (..., layers + 1)."""
        flat = values.double().cpu()
        count = int(self.layers.max()) + 1
        sums = torch.zeros(*flat.shape[:-1], count, dtype=torch.float64)
        sums.index_add_(flat.dim() - 1, torch.from_numpy(self.layers), flat)
        return torch.cat([sums, sums.sum(-1, keepdim=True)], -1).numpy()

    def squares(self, vectors: Tensor) -> Array:
        """||v||^2 by layer, and of all, for the rows of vectors (k, p), (k, layers + 1)."""
        ends = np.flatnonzero(np.diff(self.layers, append=-1)) + 1
        by_layer = np.zeros((len(vectors), int(self.layers.max()) + 2))
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            norms = torch.linalg.vector_norm(vectors[:, start:stop], dim=1, dtype=torch.float64)
            by_layer[:, self.layers[start]] += norms.square().cpu().numpy()
        by_layer[:, -1] = by_layer.sum(1)
        return by_layer

    def products(self, vectors: Tensor) -> Tensor:
        """H v for the rows of vectors (k, p)."""
        found = self.problem.hessian_vector_products([self.problem.unflatten(v) for v in vectors])
        return torch.stack([self.problem.flatten(product) for product in found])

    def third_derivatives(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """H v and D^3 L [v, v] for the rows of vectors (k, p)."""
        found = self.problem.third_derivatives([self.problem.unflatten(v) for v in vectors])
        flatten = self.problem.flatten
        return torch.stack([flatten(product) for product, _ in found]), torch.stack([flatten(t) for _, t in found])

    def samples(self) -> Tensor:
        """Per-sample gradients of all samples, centred by the full one, (n, p)."""
        return self.centred(self.problem, None)

    def draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Samples drawn with replacement, or fresh."""
        if self.population is None:
            return self.problem, torch.as_tensor(rng.integers(self.problem.n, size=count))
        return self._fresh(rng, count), torch.arange(count)

    def noise(self, rng: np.random.Generator, gradient: Tensor) -> tuple[Array, Array | None]:
        """tr Sigma by layer, and of all; with its standard error where it is estimated from fresh samples.

        gradient (p,): the full one at the weights that the problem has.
        """
        if self.population is None:
            return of_all(self.problem).noise_trace, None
        norms = per_sample_norms(self._fresh(rng, NOISE_SAMPLES))
        by_layer = torch.stack([norms[layer].double().cpu() for layer in self.problem.layers], 1).numpy()
        mean, error = estimated(np.column_stack([by_layer, by_layer.sum(1)]))
        return mean - self.squares(gradient[None])[0], error

    def _fresh(self, rng: np.random.Generator, count: int) -> Problem:
        assert self.population is not None
        return self.problem.on(*self.population.finish(*self.population.draw(rng, count)))

    def centred(self, problem: Problem, indices: Tensor | None) -> Tensor:
        """Those of some samples, (m, p)."""
        named = problem.per_sample_gradients(indices)
        return torch.cat([named[name].flatten(1) for name in problem.parameters], 1) - self.gradient


def estimated(draws: Array) -> tuple[Array, Array]:
    """Mean over the first axis, and its standard error."""
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))
