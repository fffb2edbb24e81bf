"""What is trained, and how long: Gauss-10 and Gauss-2 with two batch sizes and two shares of random labels.

The recipe that works has inputs divided by 5 and all weights and biases from 0.1 N(0, I); the printed one has raw
inputs and weights from N(0, I). Both: ReLU networks 50-10-30-k with biases (1,150 and 902 parameters), one data set of
100 samples, batches with replacement, independent first weights and batches by run. Networks for images start from
PyTorch's default, which the text does not say; their learning rate is 0.1.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from shotnoise.datasets import load
from shotnoise.problem import Problem

DIMENSION, HIDDEN = 50, (10, 30)


@dataclass(frozen=True)
class Recipe:
    """How Gauss-k is scaled, and the standard deviation of the first weights."""

    scale: float
    spread: float


WORKING, PRINTED = Recipe(5.0, 0.1), Recipe(1.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """Runs: of the training, of its curvature, of that by layer, of whole spectra; redrawn batches; of images.

    images: samples used, runs, steps, samples of the curvature.
    """

    path: int
    curvature: int
    layers: int
    spectra: int
    redraws: int
    images: tuple[int, int, int, int]
    recipe: Recipe = WORKING


QUICK = Preset(100, 16, 6, 8, 24, (2000, 2, 200, 128))
PRESETS = {
    "quick": QUICK,
    "paper": Preset(10_000, 10_000, 10_000, 10_000, 50, (60_000, 10, 4000, 1024)),
    "printed": Preset(100, 8, 4, 2, 24, (2000, 2, 200, 256), PRINTED),
}


@dataclass(frozen=True)
class Setting:
    """One problem with its batch size, learning rate and number of updates."""

    classes: int
    batch_size: int
    random_labels: float
    learning_rate: float
    steps: int

    @property
    def name(self) -> str:
        return f"gauss{self.classes}_{self.batch_size}_{round(100 * self.random_labels)}"

    @property
    def title(self) -> str:
        return f"Gauss-{self.classes}, batch size {self.batch_size}, {round(100 * self.random_labels)} % random labels"

    @property
    def short(self) -> str:
        return f"$m$ = {self.batch_size}, {round(100 * self.random_labels)} % random"

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """The eight steps at which the curvature is taken, closer at the start."""
        return tuple(round(self.steps * share) for share in LOOKS[self.classes, self.random_labels > 0])

    @property
    def every(self) -> int:
        """Between two records of the training, about 500 of them."""
        return max(1, self.steps // 500)

    @cached_property
    def redrawn(self) -> tuple[int, ...]:
        """Recorded steps at which batches are redrawn: closer at the start."""
        wanted = np.concatenate([[0], np.geomspace(self.every, self.steps, 22), np.linspace(0, self.steps, 11)])
        return tuple(sorted({round(t / self.every) * self.every for t in wanted}))

    def problem(self, recipe: Recipe, seed: int) -> Problem:
        data = load(f"gauss-{self.classes}", random_labels=self.random_labels, scale=recipe.scale, seed=seed)
        return Problem(network(DIMENSION, HIDDEN, self.classes), "cross_entropy", data.inputs, data.targets)

    def initial(self, recipe: Recipe) -> Any:
        count = sum(p.numel() for p in network(DIMENSION, HIDDEN, self.classes).parameters())

        def normal_weights(rng: np.random.Generator) -> Any:
            return recipe.spread * rng.normal(size=count)

        return normal_weights


# Shares of the training; hard labels take long, so that most looks are early.
LOOKS = {
    (10, False): (0, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.625, 1),
    (10, True): (0, 0.005, 0.015, 0.03, 0.05, 0.1, 0.4, 1),
    (2, False): (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1),
    (2, True): (0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1),
}


def network(inputs: int, hidden: tuple[int, ...], classes: int) -> nn.Sequential:
    """ReLU layers with biases everywhere; the same weights every time, for they are part of a store's identity."""
    parts: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for before, after in pairwise((inputs, *hidden)):
            parts += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear((inputs, *hidden)[-1], classes))


def settings(classes: int, batch_sizes: tuple[int, ...] = (5, 50)) -> list[Setting]:
    """Those of the paper's Table 2, easy labels before hard ones."""
    hard = 0.15 if classes == 10 else 0.2
    length = {(10, False): (0.1, 400), (10, True): (0.1, 10_000), (2, False): (0.1, 100), (2, True): (0.05, 3000)}
    return [Setting(classes, m, share, *length[classes, share > 0]) for m in batch_sizes for share in (0.0, hard)]
