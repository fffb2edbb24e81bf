"""From which batch size on the first order tells the whole: a few trainings beside it that leave nothing out.

A pair of trainings moves along grad L(w) +- sqrt(kappa) xi(w), each at its own weights, where the noise xi has the
second cumulants of one sample's: that of a sample drawn, or the samples' weighted normally. A linearised deviation
delta goes with each pair, by the same draws. What the pairs show beyond kappa ||H delta||^2 and the noise on the path
is what the law misses, free of most of the chance in either.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shotnoise.errors import NonFiniteError
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.propagation.first_order import Covariance, Probes, Spread
from shotnoise.predict.propagation.path import Array, Path, Row, estimated

PAIRS = 6  # one by one
PAIRS_TOGETHER = 32  # of small models, in whose few directions chance is larger
SMALL = 0.1  # next order up to which the law counts as valid
SIGNS = (1.0, -1.0)


@dataclass
class Trainings(ABC):
    """Weights (kappas, pairs, 2, p), and the noise that deviations and pairs move by."""

    kappas: Array
    weights: Tensor

    def look(self, path: Path) -> Row:
        return {}

    @abstractmethod
    def move(self, path: Path, rate: float) -> None:
        """After the law, which has drawn or found what the noise is made of."""

    @abstractmethod
    def linear(self, path: Path) -> Array:
        """||H delta||^2 by pair."""

    @abstractmethod
    def seen(self, path: Path, weights: Tensor, seed: int) -> tuple[Array, Tensor]:
        """tr Sigma and the full gradient at some weights, (pairs, 2) and (pairs, 2, p). Raises NonFiniteError."""

    def missed(self, path: Path, leading: float, seed: int) -> tuple[Array, Array]:
        """var(g) of these trainings at the weights they have come to, less kappa leading, relative to it, by kappa.

        With its standard error over the pairs. Infinite where the loss has not remained finite.
        """
        change, error = np.zeros_like(self.kappas), np.zeros_like(self.kappas)
        if not leading > 0:
            return change, error
        here, noise, linear = path.weights, noise_trace(path, path.gradient, seed), self.linear(path)
        for i in np.flatnonzero(self.kappas):
            try:
                traces, gradients = self.seen(path, self.weights[i], seed)
                beyond = traces.mean(1) - noise + _variances(gradients) / self.kappas[i] - linear
                change[i], error[i] = estimated(beyond / leading)
            except NonFiniteError:
                change[i] = error[i] = np.inf
        path.problem.place(here)
        return change, error


def beside(path: Path, spread: Spread, kappas: Array, seed: int) -> Trainings:
    """Trainings that keep company with the law's own deviations, or with some where it follows the covariance."""

    def start(pairs: int) -> Tensor:
        return path.weights.expand(len(kappas), pairs, len(SIGNS), -1).clone()

    if isinstance(spread, Probes):
        return OneByOne(kappas, start(PAIRS), spread)
    assert isinstance(spread, Covariance)
    weights, network = start(PAIRS_TOGETHER).double(), Network(path.problem)
    if not _side_by_side(network, weights.flatten(0, 2)[:2]):
        return OneByOne(kappas, start(PAIRS), Probes.start(path.problem, PAIRS, seed, False), shared=False)
    delta = torch.zeros(PAIRS_TOGETHER, len(spread.P), dtype=torch.float64)
    return Together(kappas, weights, spread, network, np.random.default_rng([seed, 1]), delta)


def _side_by_side(network: Network, weights: Tensor) -> bool:
    """Whether torch.func takes the model: not with autograd functions of the old kind, nor all recurrent ones."""
    try:
        network.gradient(weights)
        network.variances(weights)
    except RuntimeError:
        return False
    return True


@dataclass
class OneByOne(Trainings):
    """For large models and populations: the noise is that of the samples that probes draw, the law's or some beside."""

    probes: Probes
    shared: bool = True

    def look(self, path: Path) -> Row:
        if not self.shared:
            self.probes.look(path)
        return {}

    def move(self, path: Path, rate: float) -> None:
        if not self.shared:
            self.probes.move(path, rate)
        drawn, which = self.probes.drawn
        here = path.weights
        for kappa, pairs in zip(self.kappas, self.weights, strict=True):
            if not kappa or not bool(pairs.isfinite().all()):
                continue
            try:
                for own, sample in zip(pairs, which.split(1), strict=False):
                    for w, sign in zip(own, SIGNS, strict=True):
                        path.problem.place(w)
                        share = sign * float(np.sqrt(kappa))
                        full, single = path.problem.gradient(), drawn.gradient(sample)
                        for g, part in ((full, 1 - share), (single, share)):
                            w -= rate * part * path.problem.flatten(g)
            except NonFiniteError:
                pairs.fill_(torch.nan)
        path.problem.place(here)

    def linear(self, path: Path) -> Array:
        assert self.probes.products is not None
        return path.squares(self.probes.products[:PAIRS])[:, -1]

    def seen(self, path: Path, weights: Tensor, seed: int) -> tuple[Array, Tensor]:
        traces, gradients = np.empty(weights.shape[:2]), []
        for place in np.ndindex(*traces.shape):
            path.problem.place(weights[place])
            gradient = path.problem.flatten(path.problem.gradient())
            traces[place] = noise_trace(path, gradient, seed)
            gradients.append(gradient.double())
        return traces, torch.stack(gradients).view(*weights.shape[:2], -1)


@dataclass
class Together(Trainings):
    """For small models, in float64: the samples weighted normally, z in R^n, and all trainings in one pass."""

    law: Covariance
    network: Network
    rng: np.random.Generator
    delta: Tensor  # (pairs, p)

    def move(self, path: Path, rate: float) -> None:
        assert self.law.hessian is not None and self.law.centred is not None
        n = self.network.sources
        z = torch.from_numpy(self.rng.normal(size=(len(self.delta), n))) / n**0.5
        self.delta = self.delta - rate * (self.delta @ self.law.hessian + z @ self.law.centred)
        amplitudes = torch.from_numpy(np.outer(np.sqrt(self.kappas), SIGNS))
        shares = 1 / n + torch.einsum("ks,pn->kpsn", amplitudes, z - z.mean(1, keepdim=True))
        flat = self.weights.flatten(0, 2)
        slopes = self.network.weighted(flat, shares.flatten(0, 2).to(flat.device), 1.0)
        self.weights = (flat - rate * slopes).view_as(self.weights)

    def linear(self, path: Path) -> Array:
        assert self.law.hessian is not None
        found: Array = (self.delta @ self.law.hessian).square().sum(1).numpy()
        return found

    def seen(self, path: Path, weights: Tensor, seed: int) -> tuple[Array, Tensor]:
        flat = weights.flatten(0, 1)
        gradients = self.network.gradient(flat)
        if not bool(gradients.isfinite().all()):
            raise NonFiniteError("a training beside the law has diverged")
        traces = self.network.variances(flat).sum(1).view(weights.shape[:2])
        return traces.cpu().numpy(), gradients.view_as(weights)


def _variances(gradients: Tensor) -> Array:
    """Of the full gradient, by pair, from (pairs, 2, p): odd parts are 0 on average, even ones have some mean."""
    odd, even = (gradients[:, 0] - gradients[:, 1]) / 2, gradients.mean(1)
    about = (even - even.mean(0)).square().sum(1) * (len(even) / (len(even) - 1))
    found: Array = (odd.square().sum(1) + about).cpu().numpy()
    return found


def noise_trace(path: Path, gradient: Tensor, seed: int) -> float:
    """tr Sigma where the path's problem is; of a population from the same samples everywhere."""
    return float(path.noise(np.random.default_rng([seed, 2]), gradient)[0][-1])


def valid_from(sizes: Array, change: Array, error: Array) -> int:
    """The smallest batch size from which on the next order, two standard errors included, is small; 0 for none."""
    order = np.argsort(sizes)[::-1]
    valid = 0
    for k in order:
        if not abs(change[k]) + 2 * error[k] <= SMALL:
            break
        valid = int(sizes[k])
    return valid
