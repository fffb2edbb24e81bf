"""A network modulo a prime, at points of its inputs: forward and backward passes for many weights side by side.

Arrays are (rows, columns, runs) for weights, (entries, points, runs) for what depends on inputs as well.
"""

from dataclasses import dataclass

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array
from shotnoise.predict.networks.model import Network
from shotnoise.predict.networks.residues import Residues, product, reduced, residues


@dataclass(frozen=True)
class Sample:
    """Points x (p, n, 1), the teacher's answers y (outputs, n, 1) and the weights of means over them, (n,)."""

    x: Residues
    y: Residues
    shares: Residues

    def mean(self, values: Residues, q: int) -> Residues:
        """Of (..., n, runs)."""
        return reduced(reduced(values * self.shares[:, None], q).sum(-2), q)


@dataclass(frozen=True)
class Modular:
    """The network modulo q."""

    start: list[Residues]
    teacher: list[Residues]
    activation: list[int] | None
    rates: list[int]
    q: int

    @classmethod
    def of(cls, network: Network, q: int) -> "Modular":
        return cls(
            [residues(W, q)[..., None] for W in network.student],
            [residues(W, q)[..., None] for W in network.teacher],
            None if network.activation is None else [int(c) for c in residues(network.activation, q)],
            [int(residues(a, q)) for a in network.rates],
            q,
        )

    def sample(self, points: Array, shares: Residues) -> Sample:
        x = residues(points.T, self.q)[..., None]
        _, _, y = self._forward(self.teacher, x)
        return Sample(x, y, shares)

    def gradients(self, weights: list[Residues], sample: Sample) -> list[Residues]:
        """Of one sample each, (rows, columns, n, runs) for each layer."""
        layers, slopes, output = self._forward(weights, sample.x)
        delta, found = reduced(output + np.uint64(self.q) - sample.y, self.q), []
        for k in range(len(weights) - 1, -1, -1):
            found.append(reduced(delta[:, None] * layers[k][None], self.q))
            if k:
                back = product(weights[k].swapaxes(0, 1), delta, self.q)
                slope = slopes[k - 1]
                delta = back if slope is None else reduced(back * slope, self.q)
        return found[::-1]

    def full_gradient(self, weights: list[Residues], sample: Sample, layer: int) -> Residues:
        """grad L, (rows, columns, runs)."""
        return sample.mean(self.gradients(weights, sample)[layer], self.q)

    def squares(self, weights: list[Residues], sample: Sample, layer: int) -> Residues:
        """||grad L||^2 and E ||g||^2 of one sample, (2, runs)."""
        own = self.gradients(weights, sample)[layer]
        full = sample.mean(own, self.q)
        single = reduced(reduced(own * own, self.q).sum((0, 1)), self.q)
        return np.stack([reduced(reduced(full * full, self.q).sum((0, 1)), self.q), sample.mean(single, self.q)])

    def loss(self, weights: list[Residues], sample: Sample) -> Residues:
        """1/2 E ||f - y||^2, (runs,)."""
        _, _, output = self._forward(weights, sample.x)
        error = reduced(output + np.uint64(self.q) - sample.y, self.q)
        single = reduced(reduced(error * error, self.q).sum(0), self.q)
        return reduced(sample.mean(single, self.q) * np.uint64(pow(2, -1, self.q)), self.q)

    def _forward(self, weights: list[Residues], x: Residues) -> tuple[list[Residues], list[Residues | None], Residues]:
        """Inputs of every layer, slopes of the hidden ones (None: one), and the output."""
        z, layers = x, []
        slopes: list[Residues | None] = []
        for k, W in enumerate(weights):
            layers.append(z)
            h = product(W, z, self.q)
            if k + 1 < len(weights):
                z, slope = self._activated(h)
                slopes.append(slope)
        return layers, slopes, h

    def _activated(self, h: Residues) -> tuple[Residues, Residues | None]:
        if self.activation is None:
            return h, None
        value, slope = np.zeros_like(h), np.zeros_like(h)
        for c in reversed(self.activation):  # Horner's scheme, with its derivative
            slope = reduced(slope * h + value, self.q)
            value = reduced(value * h + np.uint64(c), self.q)
        return value, slope
