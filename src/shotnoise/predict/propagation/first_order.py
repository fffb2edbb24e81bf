"""What the noise does to the weights to first order: their covariance itself, or deviations that estimate it.

    P_{t+1} = (I - a H) P (I - a H)^T + a^2 Sigma,      shift_{t+1} = (I - a H) shift - a/2 D^3 L [P],

both in units of kappa and from 0: covariance of the weights, and by how much their mean leaves gradient descent. The
expected loss rises by kappa (g . shift + tr(H P) / 2).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shotnoise.predict.propagation.path import Array, Drawn, Path, Row, estimated
from shotnoise.problem import Problem


class Spread(Protocol):
    """What is followed beside the path: `look` at a step, then `move` by that step's learning rate."""

    def look(self, path: Path) -> Row: ...
    def move(self, path: Path, rate: float) -> None: ...


@dataclass
class Covariance:
    """P (p, p), exact to first order; the shift (p,) where the expected loss is asked for."""

    P: Tensor
    shift: Tensor | None
    hessian: Tensor | None = None
    centred: Tensor | None = None  # gradients of the samples at the last move, (n, p)

    @classmethod
    def start(cls, problem: Problem, expected_loss: bool) -> "Covariance":
        size = problem.parameter_count
        zeros = torch.zeros(size, size, dtype=torch.float64)
        return cls(zeros, zeros[0].clone() if expected_loss else None)

    def look(self, path: Path) -> Row:
        """The Hessian is kept for the move that follows."""
        unit = torch.eye(len(self.P), dtype=path.problem.dtype, device=path.problem.device)
        H = path.products(unit).double().cpu()
        self.hessian = H = (H + H.T) / 2
        gradient = path.gradient.double().cpu()
        found = {
            "full_gradient_variance": path.by_layer(((H @ self.P) * H).sum(1)),
            "loss_variance": np.array(float(gradient @ self.P @ gradient)),
        }
        if self.shift is not None:
            found["loss"] = np.array(float(gradient @ self.shift + (H * self.P).sum() / 2))
        return found

    def move(self, path: Path, rate: float) -> None:
        assert self.hessian is not None
        jacobian = torch.eye(len(self.P), dtype=torch.float64) - rate * self.hessian
        if self.shift is not None:
            self.shift = jacobian @ self.shift - rate / 2 * self._third_derivative(path)
        self.centred = centred = path.samples().double().cpu()
        self.P = jacobian @ self.P @ jacobian.T + rate**2 * centred.T @ centred / len(centred)

    def _roots(self) -> Tensor:
        """R (r, p) with R^T R = P."""
        values, vectors = torch.linalg.eigh(self.P)
        kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
        return (vectors[:, kept] * values[kept].sqrt()).T

    def _third_derivative(self, path: Path) -> Tensor:
        """D^3 L [P]"""
        roots = self._roots()
        if not len(roots):
            return torch.zeros(len(self.P), dtype=torch.float64)
        _, third = path.third_derivatives(roots.to(path.gradient))
        return third.double().cpu().sum(0)


@dataclass
class Probes:
    """Deviations delta (k, p), each with its own draws of samples: delta <- (I - a H) delta - a xi.

    shift (k, p), where the expected loss is asked for: what each deviation's own square would shift the weights by,
    without the term that has no mean. One probe's numbers are independent of another's.
    """

    delta: Tensor
    shift: Tensor | None
    rng: np.random.Generator
    products: Tensor | None = None
    bent: Tensor | None = None  # what the shifts move by, in units of the learning rate
    drawn: Drawn = field(init=False, repr=False)  # for the last move

    @classmethod
    def start(cls, problem: Problem, count: int, seed: int, expected_loss: bool) -> "Probes":
        delta = torch.zeros(count, problem.parameter_count, dtype=problem.dtype, device=problem.device)
        return cls(delta, delta.clone() if expected_loss else None, np.random.default_rng(seed))

    def look(self, path: Path) -> Row:
        moved = bool(self.delta.any())
        draws: dict[str, Array] = {}
        self.products = torch.zeros_like(self.delta)
        if self.shift is not None:
            self.bent = torch.zeros_like(self.delta)
            if moved:
                self.products, third = path.third_derivatives(self.delta)
                self.bent = third / 2
                if self.shift.any():
                    self.bent = self.bent + path.products(self.shift)
            rise = self.shift @ path.gradient + (self.delta * self.products).sum(1) / 2
            draws["loss"] = rise.double().cpu().numpy()
        elif moved:
            self.products = path.products(self.delta)
        draws["full_gradient_variance"] = path.squares(self.products)
        draws["loss_variance"] = (self.delta @ path.gradient).double().square().cpu().numpy()
        found: Row = {}
        for name, values in draws.items():
            found[name], found[f"{name}_stderr"] = estimated(values)
        return found

    def move(self, path: Path, rate: float) -> None:
        assert self.products is not None
        if self.shift is not None:
            assert self.bent is not None
            self.shift = self.shift - rate * self.bent
        self.drawn = path.draw(self.rng, len(self.delta))
        self.delta = self.delta - rate * (self.products + path.centred(*self.drawn))
