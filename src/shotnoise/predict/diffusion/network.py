"""A Problem as a landscape: the noise that SGD really has, from per-sample factors, for many paths at once.

    a grad L(w) + b xi(w, z) = sum_i c_i grad l_i(w),     c_i = a / n + b (z_i - mean z) / sqrt(n)

has mean a grad L and covariance b^2 Sigma(w) with the empirical Sigma (divisor n), since xi = sum_i (z_i - mean z) g_i
/ sqrt(n): a step of the diffusion costs one weighted backward pass over the data, and what SGD does on a batch is the
same with c_i = counts / B. The paths are stepped here and not by the engines of `simulate`, because what `predict` says
must not rest on what `simulate` does: the two meet in `compare`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, quiet
from shotnoise.predict.diffusion.landscape import Landscape
from shotnoise.predict.diffusion.settings import Setting
from shotnoise.problem import Problem
from shotnoise.samples import Batch, tree_map
from shotnoise.sampling import Sampling

BYTES = 64 * 2**20  # what the recorded inputs and gradients of one pass over some samples of all paths may take


class Network(Landscape):
    """The loss of a `Problem` and the gradient noise of its samples; `sources` is n, its number of samples.

    >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> path = Network(Problem(line, "mse", x, 1 + x))
    >>> path.covariance(torch.tensor([[1.0]], dtype=torch.float64)).item()  # gradients at w = 1: -1 and 1
    1.0
    """

    def __init__(self, problem: Problem) -> None:
        problem.examine()
        self.problem = problem
        self.dimension, self.sources, self.constant = problem.parameter_count, problem.n, None
        self._evaluation = Evaluation(problem.model, problem.loss_spec, torch.float64)
        self._shapes = {name: p.shape for name, p in problem.parameters.items()}
        self._bytes = 2 * max(problem.bytes_per_sample, 8)

    @property
    def has_loss(self) -> bool:
        return True

    @property
    def start(self) -> Tensor:
        """The model's own weights, (1, d)."""
        return self.problem.flatten(self.problem.parameters).detach().double().cpu()[None]

    def loss(self, w: Tensor) -> Tensor:
        """The mean loss at each path's weights, penalty included, (R,)."""
        total = 0.5 * self.problem.l2 * w.square().sum(1)
        for inputs, targets, _ in self._slices(len(w)):
            total = total + self._vmapped(self._sum, (0, None, None))(w, inputs, targets) / self.problem.n
        return total.detach()

    def gradient(self, w: Tensor) -> Tensor:
        return self.weighted(w, torch.full((len(w), self.sources), 1 / self.sources, dtype=w.dtype), 1.0)

    def pull(self, w: Tensor, z: Tensor, a: float, b: float) -> Tensor:
        z = z.to(w.dtype)
        return self.weighted(w, a / self.sources + b / self.sources**0.5 * (z - z.mean(1, keepdim=True)), a)

    def covariance(self, w: Tensor) -> Tensor:
        """The empirical covariance (divisor n), (R, d, d)."""
        each = self._per_sample(w)
        each = each - each.mean(1, keepdim=True)
        return each.mT @ each / self.sources

    def variances(self, w: Tensor) -> Tensor:
        """The diagonal of the covariance, (R, d)."""
        found = [self._per_sample(row[None])[0].var(0, correction=0) for row in w]
        return torch.stack(found)

    def factor(self, w: Tensor) -> Tensor:
        each = self._per_sample(w)
        return (each - each.mean(1, keepdim=True)).mT / self.sources**0.5

    def curved(self, w: Tensor, v: Tensor) -> Tensor:
        """Hessian-vector products, row by row."""
        total = self.problem.l2 * v
        for inputs, targets, _ in self._slices(len(w)):

            def product(one: Tensor, along: Tensor, x: Batch = inputs, y: Batch = targets) -> Tensor:
                slope: Callable[[Tensor], Tensor] = torch.func.grad(lambda u: self._sum(u, x, y))
                return torch.func.grad(lambda u: (slope(u) * along).sum())(one)

            total = total + self._vmapped(product, (0, 0))(w, v).detach() / self.sources
        return total

    def weighted(self, w: Tensor, coefficients: Tensor, share: float) -> Tensor:
        """sum_i c_i grad l_i(w) + share l2 w: coefficients (R, n), the penalty counted `share` times."""
        total = share * self.problem.l2 * w
        slope = self._vmapped(torch.func.grad(self._weighted), (0, None, None, 0))
        for inputs, targets, chunk in self._slices(len(w)):
            total = total + slope(w, inputs, targets, coefficients[:, chunk]).detach()
        return total

    def on_batches(self, w: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
        """sum_j c_j grad l_{indices_j}(w) + l2 w, indices and coefficients (R, b): each path's own samples."""
        flat = self._evaluation.place(self.problem.samples.batch(indices.reshape(-1)))
        inputs, targets = tree_map(lambda t: t.view(*indices.shape, *t.shape[1:]), flat)
        slope = self._vmapped(torch.func.grad(self._weighted), (0, 0, 0, 0))
        return slope(w, inputs, targets, coefficients).detach() + self.problem.l2 * w

    def everything(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The outputs for all samples as a function of the weights (d,), in one row, and the targets."""
        inputs, targets = self._evaluation.place(self.problem.samples.batch(torch.arange(self.problem.n)))
        return lambda w: self._evaluation.outputs(inputs, self._named(w)).reshape(-1), torch.as_tensor(targets)

    def _per_sample(self, w: Tensor) -> Tensor:
        """(R, n, d)"""
        one = torch.func.grad(
            lambda u, x, y: self._sum(u, tree_map(lambda t: t[None], x), tree_map(lambda t: t[None], y))
        )
        parts = [
            self._vmapped(torch.func.vmap(one, in_dims=(None, 0, 0)), (0, None, None))(w, inputs, targets).detach()
            for inputs, targets, _ in self._slices(len(w))
        ]
        return torch.cat(parts, 1)

    def _sum(self, vector: Tensor, inputs: Batch, targets: Batch) -> Tensor:
        return self._evaluation.losses(inputs, targets, self._named(vector), checked=False).sum()

    def _weighted(self, vector: Tensor, inputs: Batch, targets: Batch, c: Tensor) -> Tensor:
        return (c * self._evaluation.losses(inputs, targets, self._named(vector), checked=False)).sum()

    def _named(self, vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def _slices(self, paths: int) -> Any:
        """Inputs, targets and indices of so many samples as all paths may be worked on at once."""
        size = max(1, BYTES // (paths * self._bytes))
        for chunk in self.problem.chunks(None, size):
            inputs, targets = self._evaluation.place(self.problem.samples.batch(chunk))
            yield inputs, targets, chunk

    def _vmapped(self, function: Callable[..., Tensor], dims: tuple[int | None, ...]) -> Callable[..., Tensor]:
        """One call for all paths; path by path for models that torch.func cannot batch."""

        def call(*given: Any) -> Tensor:
            with warnings.catch_warnings(), quiet():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                try:
                    return torch.func.vmap(function, in_dims=dims)(*given)
                except RuntimeError:
                    rows = range(len(given[0]))
                    return torch.stack(
                        [
                            function(
                                *(
                                    tree_map(lambda t, r=r: t[r], g) if d == 0 else g
                                    for g, d in zip(given, dims, strict=True)
                                )
                            )
                            for r in rows
                        ]
                    )

        return call


def placed(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, momentum: float, sampling: Sampling | None
) -> tuple[Landscape, Setting]:
    """A `Problem` made a landscape, and the setting with its number of samples."""
    place = Network(landscape) if isinstance(landscape, Problem) else landscape
    n = place.problem.n if isinstance(place, Network) else None
    if n is None and sampling is not None:
        raise InputError(f"sampling={sampling!r}: a landscape of functions has no samples to draw; leave it out")
    return place, Setting.of(learning_rate, batch_size, momentum, sampling, n)
