"""Tiny problems with known answers, and slow twins written from the definitions, for the tests of `measure`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from torch import nn

import shotnoise as sn
from shotnoise.measure.estimate import Products


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
    g = np.asarray(g)
    norms, along = (g**2).sum(2).T, np.einsum("rmp,rp->mr", g, g.mean(1))
    differences = g[:, 0 : g.shape[1] // 2 * 2 : 2] - g[:, 1::2][:, : g.shape[1] // 2]
    inner = np.einsum("rkp,rlp->rkl", differences, differences)
    k = inner.shape[1]
    inner[:, range(k), range(k)] = 0
    squared = (inner**2).sum((1, 2)) / (4 * k * (k - 1))
    cubed = ((inner @ inner) * inner).sum((1, 2)) / (8 * k * (k - 1) * (k - 2))
    return Products(norms, along, squared, cubed, population)
