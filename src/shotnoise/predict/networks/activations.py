"""Polynomials that stand for an activation and its derivative on an interval, and how fast they get better.

The derivative is interpolated at Chebyshev points and the result integrated: a polynomial that is close to the
activation alone need not have a derivative close to the activation's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shotnoise.errors import InputError

Array = NDArray[np.float64]
Elementwise = Callable[[Tensor], Tensor]
GRID = 20_001  # points on which maxima over the interval are taken
NARROW = 1e-6  # of the interval: a jump of the derivative that lasts down to there is a kink
KINK = 1e-3  # of the derivative's range


def _singularity(imaginary: float) -> Callable[[float], float]:
    """rho of the largest ellipse round [-R, R] without the poles at +-i times `imaginary`: a + sqrt(1 + a^2)."""
    return lambda radius: imaginary / radius + math.hypot(1.0, imaginary / radius)


NAMED: dict[str, tuple[Elementwise, Callable[[float], float] | None]] = {
    "tanh": (torch.tanh, _singularity(math.pi / 2)),
    "sigmoid": (torch.sigmoid, _singularity(math.pi)),
    "softplus": (F.softplus, _singularity(math.pi)),
    "silu": (F.silu, _singularity(math.pi)),
    "gelu": (F.gelu, lambda radius: math.inf),  # entire: faster than any power
    "elu": (F.elu, lambda radius: 1.0),  # the second derivative jumps: a power of the degree only
    "relu": (F.relu, None),
    "leaky_relu": (F.leaky_relu, None),
}


@dataclass(frozen=True)
class Smooth:
    """An activation with a continuous derivative on [-radius, radius], and the constants of its error bounds.

    steepest: the largest |s'|, bend: the largest slope of s', both over a grid of the interval. rate: what an error
    shrinks by for each further degree, as far as theory knows (inf for entire functions, 1 for algebraic decay).
    """

    name: str
    function: Elementwise
    radius: float
    steepest: float
    bend: float
    rate: float | None

    @classmethod
    def on(cls, activation: str | Elementwise, radius: float) -> "Smooth":
        """Raises InputError for kinks: no polynomial is close to a derivative that jumps."""
        name, function, rate = _known(activation)
        if not 0 < radius < math.inf:
            raise InputError(f"radius={radius}: pre-activations must stay in a finite interval")
        grid = np.linspace(-radius, radius, GRID)
        slopes = derivative(function, grid)
        if not np.isfinite(slopes).all():
            raise InputError(f"activation {name}: its derivative on [-{radius:g}, {radius:g}] is not finite")
        _refuse_kink(name, function, grid, slopes)
        bend = float(np.abs(np.diff(slopes)).max() / (grid[1] - grid[0]))
        return cls(name, function, radius, float(np.abs(slopes).max()), bend, None if rate is None else rate(radius))

    def polynomial(self, degree: int) -> "Fit":
        if degree < 1:
            raise InputError(f"degree={degree}: at least 1")
        slope = Chebyshev.interpolate(
            lambda x: derivative(self.function, x), degree - 1, domain=[-self.radius, self.radius]
        )
        raw = slope.integ()
        value = raw + (float(self.function(torch.zeros((), dtype=torch.float64))) - raw(0.0))
        grid = np.linspace(-self.radius, self.radius, GRID)
        exact = self.function(torch.from_numpy(grid)).numpy()
        off = float(np.abs(value(grid) - exact).max())
        off_slope = float(np.abs(slope(grid) - derivative(self.function, grid)).max())
        return Fit(value, slope, off, off_slope)


@dataclass(frozen=True)
class Fit:
    """A polynomial and its derivative, and by how much each is off on the interval (maxima over a grid)."""

    value: Any  # numpy's Chebyshev, whose methods numpy does not type
    slope: Any
    off: float
    off_slope: float


def derivative(function: Elementwise, x: Array) -> Array:
    points = torch.from_numpy(np.asarray(x, np.float64)).requires_grad_()
    (found,) = torch.autograd.grad(function(points).sum(), points)
    return np.asarray(found.numpy())


def _known(activation: str | Elementwise) -> tuple[str, Elementwise, Callable[[float], float] | None]:
    if isinstance(activation, str):
        if activation not in NAMED:
            raise InputError(
                f"activation={activation!r}: one of {', '.join(NAMED)}, or an elementwise function of a tensor"
            )
        return activation, *NAMED[activation]
    name = str(getattr(activation, "__name__", type(activation).__name__))
    probe = torch.linspace(-1, 1, 5, dtype=torch.float64)
    values = activation(probe)
    if values.shape != probe.shape:
        raise InputError(
            f"activation {name}: elementwise functions keep the shape (5,), this gave {tuple(values.shape)}"
        )
    return name, activation, None


def _refuse_kink(name: str, function: Elementwise, grid: Array, slopes: Array) -> None:
    """Follow the largest jump of the derivative into ever narrower intervals, and see whether it stays."""
    reach = float(slopes.max() - slopes.min())
    k = int(np.abs(np.diff(slopes)).argmax())
    low, high, jump = grid[k], grid[k + 1], abs(slopes[k + 1] - slopes[k])
    while high - low > NARROW * (grid[-1] - grid[0]) * 1e-3:
        inner = np.linspace(low, high, 11)
        found = np.abs(np.diff(derivative(function, inner)))
        j = int(found.argmax())
        low, high, jump = inner[j], inner[j + 1], found[j]
    if jump > KINK * reach > 0:
        raise InputError(
            f"activation {name} has a kink: its derivative jumps by {jump:.3g} at {(low + high) / 2:.3g}, and no "
            f"polynomial comes closer to it than half of that, whatever its degree; for the variance of this network "
            "use predict.propagation, which needs no polynomial, or simulate"
        )
