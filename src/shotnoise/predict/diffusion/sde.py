"""The stochastic differential equations that stand for SGD, momentum, RMSProp and Adam.

eps = eta s_f; Sigma(theta) is the covariance of one sample's gradient. As eta -> 0 at fixed time k eta SGD tends to
gradient flow: the equations keep eta in their coefficients and are weak approximations, |E f(theta_k) - E f(Theta)| of
order eta or eta^2 at fixed time, not limits. All are read in the sense of Ito: the noise is that at theta_k, before the
step. Source: Li, Tai and E (2019); for momentum sec. 7 of the corrected notes; Malladi et al., "On the SDEs and scaling
rules for adaptive gradient algorithms" (2022), where gradient noise must dominate the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.predict.diffusion.landscape import Landscape
from shotnoise.predict.diffusion.network import Network, placed
from shotnoise.predict.diffusion.settings import Setting
from shotnoise.predict.stationary.arguments import numbers
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling


@dataclass(frozen=True)
class Sde:
    """A state (R, q) that starts with the weights (R, d), and its increments; `time` is that of one update."""

    landscape: Landscape
    setting: Setting
    time: float
    name: str

    def start(self, w: Tensor) -> Tensor:
        return w

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        """drift dt + diffusion sqrt(dt) z, at `state`."""
        raise NotImplementedError

    def advance(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        """One step of Euler's method, in place."""
        return state.add_(self.increment(t, state, dt, z))

    def fastest(self, curvature: float) -> float:
        """The rate that a step dt must resolve, dt * rate < 2, where the largest curvature is this."""
        return curvature


@dataclass(frozen=True)
class FirstOrder(Sde):
    """dtheta = -grad L dt + sqrt(temperature Sigma) dW"""

    temperature: float  # what stands before Sigma

    def advance(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        return self.landscape.push(state, z, -dt, (self.temperature * dt) ** 0.5)

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        return self.landscape.pull(state, z, -dt, (self.temperature * dt) ** 0.5)


@dataclass(frozen=True)
class SecondOrder(Sde):
    """dtheta = -grad (L + eta/4 |grad L|^2) dt + sqrt(eps Sigma) dW"""

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        slope = self.landscape.gradient(state)
        extra = self.landscape.curved(state, slope)
        noise = self.landscape.pull(state, z, -dt, (self.setting.epsilon * dt) ** 0.5)
        return noise - (dt * self.setting.learning_rate / 2) * extra

    def fastest(self, curvature: float) -> float:
        return curvature + self.setting.learning_rate / 2 * curvature**2


@dataclass(frozen=True)
class Underdamped(Sde):
    """dtheta = p dt, dp = -gamma p dt - grad L dt + sqrt(eps / sqrt(eta) Sigma) dW, p = v / sqrt(eta)"""

    @property
    def gamma(self) -> float:
        return (1 - self.setting.momentum) / self.setting.learning_rate**0.5

    def start(self, w: Tensor) -> Tensor:
        return torch.cat([w, torch.zeros_like(w)], 1)

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        w, p = state.chunk(2, 1)
        size = (self.setting.epsilon / self.setting.learning_rate**0.5 * dt) ** 0.5
        return torch.cat([dt * p, self.landscape.pull(w, z, -dt, size) - dt * self.gamma * p], 1)

    def fastest(self, curvature: float) -> float:
        """Euler's method needs dt < gamma / h where it oscillates, dt gamma < 2 where it does not."""
        oscillates = curvature > self.gamma**2 / 4
        return 2 * curvature / self.gamma if oscillates else self.gamma


@dataclass(frozen=True)
class RMSProp(Sde):
    """dtheta = -P^-1 (grad L dt + eta sqrt(s_f Sigma) dW), du = c (diag Sigma - u) dt, P = eta (sqrt(s_f u) +
    epsilon)"""

    rate: float  # c = (1 - beta) / eta^2
    eps: float

    def start(self, w: Tensor) -> Tensor:
        return torch.cat([w, variances(self.landscape, w)], 1)

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        w, u = state.chunk(2, 1)
        eta, s = self.setting.learning_rate, self.setting.factor
        scale = eta * ((s * u).sqrt() + self.eps)
        move = self.landscape.pull(w, z, -dt, eta * (s * dt) ** 0.5) / scale
        return torch.cat([move, dt * self.rate * (variances(self.landscape, w) - u)], 1)

    def fastest(self, curvature: float) -> float:
        return self.rate


@dataclass(frozen=True)
class Adam(Sde):
    """dtheta = -sqrt(g2) / g1 P^-1 m dt, dm = c1 (grad L - m) dt + c1 eta sqrt(s_f Sigma) dW, du as in RMSProp,
    P = eta (sqrt(s_f u) + epsilon sqrt(g2)), g_i = 1 - exp(-c_i t)"""

    rates: tuple[float, float]
    eps: float

    def start(self, w: Tensor) -> Tensor:
        return torch.cat([w, torch.zeros_like(w), torch.zeros_like(w)], 1)

    def increment(self, t: float, state: Tensor, dt: float, z: Tensor) -> Tensor:
        w, m, u = state.chunk(3, 1)
        eta, s, (c1, c2) = self.setting.learning_rate, self.setting.factor, self.rates
        now = torch.tensor(max(t, self.time), dtype=torch.float64)  # at t = 0 there is no average to correct yet
        g1, g2 = (float(-torch.expm1(-c * now)) for c in self.rates)
        scale = eta * ((s * u).sqrt() + self.eps * g2**0.5)
        move = -(g2**0.5 / g1) * dt * m / scale
        average = c1 * self.landscape.pull(w, z, dt, eta * (s * dt) ** 0.5) - dt * c1 * m
        return torch.cat([torch.where(m == 0, 0.0, move), average, dt * c2 * (variances(self.landscape, w) - u)], 1)

    def fastest(self, curvature: float) -> float:
        return max(self.rates)


def first_order(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, momentum: float = 0.0,
    *, sampling: Sampling | None = None,
) -> FirstOrder:  # fmt: skip
    """dtheta = -grad L dt + sqrt(eps Sigma) dW in time t = k eta; weak order 1. eps = eta s_f.

    With momentum mu, the overdamped equation: time t = k eta / (1 - mu), eps / (1 - mu) in the noise; it holds as
    eta -> 0 at fixed mu. landscape: a `Problem`, whose own samples make the noise (then `sampling` counts, default
    WithReplacement()), or a `Landscape`.

    >>> from shotnoise.predict.diffusion.landscape import Quadratic
    >>> first_order(Quadratic([1.0], [2.0]), 0.1, 4).temperature
    0.025
    """
    place, setting = placed(landscape, learning_rate, batch_size, momentum, sampling)
    scale = 1 - setting.momentum
    return FirstOrder(place, setting, setting.learning_rate / scale, "first order", setting.epsilon / scale)


def second_order(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, *, sampling: Sampling | None = None
) -> SecondOrder:
    """The modified equation of Li, Tai and E: drift -grad (L + eta/4 |grad L|^2); weak order 2, for transients.

    Its stationary covariance is worse than that of the first order, see `ornstein_uhlenbeck`. Needs Hessian-vector
    products: gradients written with torch have them.
    """
    place, setting = placed(landscape, learning_rate, batch_size, 0.0, sampling)
    return SecondOrder(place, setting, setting.learning_rate, "second order")


def underdamped(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, momentum: float,
    *, sampling: Sampling | None = None,
) -> Underdamped:  # fmt: skip
    """Momentum with inertia: time t = k sqrt(eta), friction gamma = (1 - mu) / sqrt(eta), p = v / sqrt(eta) from 0."""
    place, setting = placed(landscape, learning_rate, batch_size, momentum, sampling)
    return Underdamped(place, setting, setting.learning_rate**0.5, "underdamped")


def rmsprop(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, alpha: float = 0.99, eps: float = 1e-8,
    *, sampling: Sampling | None = None,
) -> RMSProp:  # fmt: skip
    """RMSProp as a diffusion in time t = k eta^2; u = v / s_f starts at diag Sigma.

    The gradient's own square is left out of u: noise must dominate, s_f diag Sigma >> (grad L)^2. Where its standard
    deviation grows as 1/eta the weak error is O(eta^2).
    """
    place, setting = placed(landscape, learning_rate, batch_size, 0.0, sampling)
    _decay("alpha", alpha)
    rate = (1 - alpha) / setting.learning_rate**2
    return RMSProp(place, setting, setting.learning_rate**2, "rmsprop", rate, eps)


def adam(
    landscape: Landscape | Problem, learning_rate: float, batch_size: int, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, *, sampling: Sampling | None = None,
) -> Adam:  # fmt: skip
    """Adam as a diffusion in time t = k eta^2, moments from 0 with their bias corrections; noise must dominate.

    As for `rmsprop`; the first steps, where the method averages over few gradients, are part of the O(eta^2).
    """
    place, setting = placed(landscape, learning_rate, batch_size, 0.0, sampling)
    for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        _decay(name, beta)
    rates = ((1 - betas[0]) / setting.learning_rate**2, (1 - betas[1]) / setting.learning_rate**2)
    return Adam(place, setting, setting.learning_rate**2, "adam", rates, eps)


def variances(landscape: Landscape, w: Tensor) -> Tensor:
    """diag Sigma, (R, d)."""
    if isinstance(landscape, Network):
        return landscape.variances(w)
    return landscape.covariance(w).diagonal(dim1=1, dim2=2)


def _decay(name: str, value: float) -> None:
    if not 0 < float(numbers(name, value)) < 1:
        raise InputError(f"{name}={value}: between 0 and 1")
