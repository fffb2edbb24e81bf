"""Tiny problems with known answers, and slow twins written from the definitions, for the tests of `measure`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from torch import nn

import shotnoise as sn
from shotnoise.measure.estimate import Products
from shotnoise.measure.moments import PAIR_CHUNK, _PairMoments


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[[], nn.Module]
    loss: str
    shape: tuple[int, ...]
    outputs: int
    l2: float = 0.0

    def problem(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> sn.Problem:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.model().to(dtype)
        inputs = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64).to(dtype)
        if self.loss == "cross_entropy":
            targets = torch.randint(self.outputs, (n,), generator=generator)
        else:
            targets = torch.randn(n, self.outputs, generator=generator, dtype=torch.float64).to(dtype) + 0.5
        return sn.Problem(model, self.loss, inputs, targets, l2=self.l2)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3))


class Custom(nn.Module):
    """A parameter of its own, for which there is no layer rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale * x)


LINE = Case("line", lambda: nn.Linear(2, 1), "mse", (2,), 1)
MLP = Case("mlp", mlp, "mse", (3,), 2)
CASES = [
    LINE,
    MLP,
    Case("mlp-l2", mlp, "cross_entropy", (3,), 2, l2=0.3),
    Case("cnn", cnn, "cross_entropy", (2, 5), 3),
    Case("custom-l2", Custom, "mse", (3,), 2, l2=0.1),
]


def explicit_gradients(problem: sn.Problem) -> dict[str, np.ndarray]:
    """g_i by layer, penalty included, (n, parameters of the layer) each: one backward pass per sample."""
    rows: dict[str, list[np.ndarray]] = {layer: [] for layer in problem.layers}
    for i in range(problem.n):
        problem.model.zero_grad()
        inputs, targets = problem.samples.batch(torch.tensor([i]))
        loss = problem.loss_spec.per_sample(problem.model(inputs), targets).sum()
        penalty = 0.5 * problem.l2 * sum(p.square().sum() for p in problem.parameters.values())
        found = torch.autograd.grad(loss + penalty, list(problem.parameters.values()))
        by_name = dict(zip(problem.parameters, found, strict=True))
        for layer, names in problem.layers.items():
            rows[layer].append(torch.cat([by_name[name].reshape(-1) for name in names]).double().numpy())
    return {layer: np.stack(each) for layer, each in rows.items()}


def all_gradients(problem: sn.Problem) -> np.ndarray:
    """(n, p), in the order of `problem.parameters` (whose layers are contiguous in these cases)."""
    return np.concatenate(list(explicit_gradients(problem).values()), 1)


def covariance(g: np.ndarray) -> np.ndarray:
    centred = g - g.mean(0)
    return centred.T @ centred / len(g)


def variance_over_batches(g: np.ndarray, b: int, *, replacement: bool) -> float:
    """By definition: the variance of the batch mean over all batches that can be drawn."""
    n = len(g)
    drawn = product(range(n), repeat=b) if replacement else combinations(range(n), b)
    means = np.stack([g[list(batch)].mean(0) for batch in drawn])
    return float(((means - means.mean(0)) ** 2).sum(1).mean())


def products_of(g: np.ndarray, population: int | None = None) -> Products:
    """What `estimate` and `noise_scale` take, from written-out gradients (runs, m, p): a run in each column."""
    return products_of_grams((np.asarray(each) @ np.asarray(each).T for each in g), population)


def products_of_grams(grams: Iterable[np.ndarray], population: int | None = None) -> Products:
    """The same from the inner products g_i . g_j, (m, m) for each run."""
    norms, along, traces = [], [], []
    for gram in grams:
        norms.append(gram.diagonal())
        along.append(gram.mean(1))
        traces.append(pair_traces(torch.as_tensor(gram)))
    squared, cubed = np.array(traces).T
    return Products(np.stack(norms, 1), np.stack(along, 1), squared, cubed, population)


def pair_traces(gram: torch.Tensor) -> tuple[float, float]:
    """Tr Sigma^2 and Tr Sigma^3 as `measure` has them, in chunks of so many samples."""
    moments = _PairMoments(2)
    for start in range(0, len(gram), PAIR_CHUNK):
        part = slice(start, start + PAIR_CHUNK)
        moments.add(iter([gram[part, part]]))
    squared, cubed = moments.traces()
    return float(squared[0]), float(cubed[0])
