"""Gradient descent on a copy of a problem, and what is asked of it on the way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.problem import Problem

Array = NDArray[Any]
Row = dict[str, Array]  # what is found at one step; by layer, all of them together last, or a number


@dataclass
class Path:
    """The problem at the weights of one step, its gradient there (p,), and the layer of each parameter (p,)."""

    problem: Problem
    gradient: Tensor
    layers: Array

    @classmethod
    def of(cls, problem: Problem, w0: ArrayLike | None) -> "Path":
        own = problem.replica()
        if w0 is not None:
            start = np.asarray(w0, np.float64)
            if start.shape != (problem.parameter_count,) or not np.isfinite(start).all():
                raise InputError(f"w0: {problem.parameter_count} finite numbers are needed; got an array {start.shape}")
            place(own, torch.as_tensor(start, dtype=problem.dtype, device=problem.device))
        number = {name: k for k, names in enumerate(own.layers.values()) for name in names}
        layers = [np.full(p.numel(), number[name]) for name, p in own.parameters.items()]
        return cls(own, own.flatten(own.gradient()), np.concatenate(layers))

    @property
    def weights(self) -> Tensor:
        return self.problem.flatten(self.problem.parameters).detach().clone()

    def move(self, rate: float) -> None:
        place(self.problem, self.weights - rate * self.gradient)
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

    def samples(self, indices: Tensor | None) -> Tensor:
        """Per-sample gradients, centred by the full one, (m, p)."""
        named = self.problem.per_sample_gradients(indices)
        rows = torch.cat([named[name].flatten(1) for name in self.problem.parameters], 1)
        return rows - self.gradient


def place(problem: Problem, weights: Tensor) -> None:
    """Give the problem's model these weights (p,)."""
    with torch.no_grad():
        for name, value in problem.unflatten(weights).items():
            problem.parameters[name].copy_(value)


def estimated(draws: Array) -> tuple[Array, Array]:
    """Mean over the first axis, and its standard error."""
    return draws.mean(0), draws.std(0, ddof=1) / np.sqrt(len(draws))
