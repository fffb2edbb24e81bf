"""Gradients whose noise scale is known, to see how often its interval covers it; run as a script: the table of the docs.

OMP_NUM_THREADS=1 python tests/measure/coverage_families.py [repeats]
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from measure_cases import all_gradients, covariance, products_of, products_of_grams
from scipy import stats

import shotnoise as sn
from shotnoise.measure.estimate import Products, estimate
from shotnoise.measure.scale import NoiseScale, noise_scale

ALARM = 1e-4
TAILS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy": lambda rng, size: rng.standard_t(5, size=size) / np.sqrt(5 / 3),
    "skew": lambda rng, size: rng.exponential(size=size) - 1,
    # each sample with a scale of its own, whose square is chi-square with one degree of freedom
    "uneven": lambda rng, size: rng.normal(size=size) * np.abs(rng.normal(size=(*size[:-1], 1))),
}


@dataclass(frozen=True)
class Setting:
    """m gradients whose noise has `spectrum`, their mean along the unit vector `towards`; B in units of m.

    share: m/n; 0 for an unlimited population.
    """

    m: int
    spectrum: np.ndarray
    towards: np.ndarray
    b_over_m: float
    tails: str = "normal"
    share: float = 0.0

    @property
    def name(self) -> str:
        part = f" {self.share:g} of all" if self.share else ""
        return f"m={self.m} p={len(self.spectrum)} B/m={self.b_over_m:g} {self.tails}{part}"

    def draw(self, rng: np.random.Generator, runs: int) -> tuple[Products, float]:
        """Products with a run in each column, and the true noise scale."""
        p, noise = len(self.spectrum), TAILS[self.tails]
        true = self.b_over_m * self.m
        mean = np.sqrt(self.spectrum.sum() / true) * self.towards
        if not self.share:
            one_by_one = (noise(rng, (self.m, p)) * np.sqrt(self.spectrum) + mean for _ in range(runs))
            return products_of(one_by_one), true
        n = round(self.m / self.share)
        whole = noise(rng, (n, p)) * np.sqrt(self.spectrum)
        whole += mean - whole.mean(0)
        drawn = (whole[rng.choice(n, self.m, replace=False)] for _ in range(runs))
        return products_of(drawn, n), float(np.trace(covariance(whole)) / (mean @ mean))


def flat(p: int) -> np.ndarray:
    return np.ones(p)


def decaying(p: int, power: float = 1.0) -> np.ndarray:
    return np.arange(1.0, p + 1) ** -power


def along(p: int, *coordinates: int) -> np.ndarray:
    unit = np.zeros(p)
    unit[list(coordinates) or range(p)] = 1
    return unit / np.linalg.norm(unit)


def at_random(seed: int) -> Setting:
    """A setting that nobody chose: spectrum, direction, noise scale, samples and tails."""
    rng = np.random.default_rng([20, seed])
    p, m, true = (int(np.exp(rng.uniform(*np.log(ends)))) for ends in ((3, 150), (16, 300), (5, 500)))
    spectrum = decaying(p, rng.uniform(0, 2.5))
    tails = list(TAILS)[rng.integers(len(TAILS))]
    towards = spectrum ** rng.uniform(-1, 1) * rng.normal(size=p)
    if rng.random() < 1 / 3:
        towards = along(p, int(rng.integers(p)))
    return Setting(m, spectrum, towards / np.linalg.norm(towards), true / m, tails)


@dataclass(frozen=True)
class Network:
    """A network on digits after so many steps of gradient descent; "cnn" after so many of SGD."""

    kind: str
    steps: int

    def draw(self, m: int, rng: np.random.Generator, runs: int) -> tuple[Products, float]:
        """Products of m distinct samples, a run in each column, and the noise scale of them all."""
        gram, n = gram_of_all(self), len(gram_of_all(self))
        square = gram.mean()
        chosen = (rng.choice(n, m, replace=False) for _ in range(runs))
        return products_of_grams((gram[np.ix_(i, i)] for i in chosen), n), (gram.trace() / n - square) / square


def trained(network: Network) -> sn.Problem:
    data = sn.datasets.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(network.kind, data.inputs[0].numel(), data.classes)
    generator = torch.Generator().manual_seed(0)
    everything = torch.arange(len(data.targets))
    for _ in range(network.steps):
        i = torch.randint(len(everything), (64,), generator=generator) if network.kind == "cnn" else everything
        loss = torch.nn.functional.cross_entropy(model(data.inputs[i]), data.targets[i])
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= 0.1 * g
    return sn.Problem(model, "cross_entropy", data.inputs, data.targets)


def build(kind: str, inputs: int, classes: int) -> torch.nn.Module:
    if kind == "cnn":
        body = [torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
        return torch.nn.Sequential(*body, torch.nn.Flatten(), torch.nn.Linear(128, classes))
    sizes = (inputs, *{"linear": (), "mlp": (16,)}[kind], classes)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    return torch.nn.Sequential(torch.nn.Flatten(), *[part for x in layers for part in (x, torch.nn.Tanh())][:-1])


@cache
def gram_of_all(network: Network) -> np.ndarray:
    g = all_gradients(trained(network))
    return g @ g.T


def covers(found: NoiseScale, true: float) -> np.ndarray:
    return (found.low <= true) & (true <= found.high)


def within(hits: np.ndarray, low: float = 0.92, high: float = 0.98) -> bool:
    """Is this number of hits compatible with a coverage between `low` and `high`?"""
    count, runs = int(hits.sum()), len(hits)
    too_few = stats.binom.cdf(count, runs, low) < ALARM / 2
    too_many = stats.binom.sf(count - 1, runs, high) < ALARM / 2
    return not (too_few or too_many)


FAMILIES = {
    "rank 10, along one": (flat(10), along(10, 0), "normal"),
    "rank 100, along one": (flat(100), along(100, 0), "normal"),
    "1/k, along the leading": (decaying(50), along(50, 0), "normal"),
    "1/k, along all": (decaying(50), along(50), "normal"),
    "1/k, along the last": (decaying(50), along(50, 49), "normal"),
    "1/k^2, along the leading": (decaying(50, 2), along(50, 0), "normal"),
    "1/k^2, along the second": (decaying(50, 2), along(50, 1), "normal"),
    "1/k^2, along the 21st": (decaying(50, 2), along(50, 20), "normal"),
    "1/k^2, along all": (decaying(50, 2), along(50), "normal"),
    "1/k, along all, t with 5 degrees of freedom": (decaying(50), along(50), "heavy"),
    "1/k, along all, exponential": (decaying(50), along(50), "skew"),
    "1/k, along all, samples of uneven scale": (decaying(50), along(50), "uneven"),
    "1/k^2, along the 21st, uneven": (decaying(50, 2), along(50, 20), "uneven"),
}
NETWORKS = [Network(kind, steps) for kind in ("linear", "mlp") for steps in (0, 30, 300, 3000)]
NETWORKS += [Network("cnn", steps) for steps in (0, 300, 1500)]
BUDGETS = (32, 64, 256)


def rows() -> Iterator[tuple[str, Callable[[int, np.random.Generator, int], tuple[Products, float]]]]:
    for name, (spectrum, towards, tails) in FAMILIES.items():
        for true in (30, 200):
            yield (
                name,
                lambda m, rng, runs, s=spectrum, v=towards, t=tails, b=true: Setting(m, s, v, b / m, t).draw(rng, runs),
            )
    for network in NETWORKS:
        yield f"digits, {network.kind}, {network.steps} steps", network.draw


def table(repeats: int) -> None:
    for row, (name, draw) in enumerate(rows()):
        cells, true = [], 0.0
        for m in BUDGETS:
            products, true = draw(m, np.random.default_rng([row, m]), repeats)
            found = noise_scale(products, estimate(products), 0.95)
            hits, unbounded = covers(found, true), np.isinf(found.high).mean()
            too_high = (found.low > true).mean()
            cells.append(f"{hits.mean():.3f}" + (f" ({unbounded:.0%})" if unbounded > 0.005 else ""))
            print(f"    {m} above {too_high:.3f} below {(found.high < true).mean():.3f}", file=sys.stderr)
        print(f"| {name} | {true:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    table(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
