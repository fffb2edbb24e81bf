"""Where a diffusion moves: a gradient, and the noise of one sample's gradient, for many paths at once.

Paths are rows: weights (R, d), double precision. What a landscape is asked for is `pull`, a grad L(w) + b xi(w, z), xi
the noise of ONE sample made from standard normal z (R, sources): covariance Sigma(w). For data this is one weighted
backward pass and no square root of a d x d matrix is ever taken, see `network`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.predict.diffusion.settings import Array, matrices

Function = Callable[[Tensor], Tensor]
ROUNDING = 1e-9  # of the largest eigenvalue: a covariance's negative eigenvalues below it are rounding
STEP = 1e-3  # of a difference, where weights are of size one
ITERATIONS = 100  # of the power method for the largest curvature, at most


class Landscape:
    """A gradient and a covariance as functions of the weights, written with torch operations.

    gradient: (R, d) -> (R, d). covariance: (R, d) -> (R, d, d), of one sample's gradient, or a constant (d, d). factor:
    instead of it sigma(w) (R, d, sources) or (d, sources) with Sigma = sigma sigma^T; Stratonovich's reading depends on
    which factor is meant, and takes the lower Cholesky factor of `covariance` otherwise (in one dimension the root).
    loss: (R, d) -> (R,), if you want it recorded.

    Raises InputError for shapes that do not fit, and when asked for noise where the covariance is not positive
    semi-definite: which path, where, by how much.

    >>> well = Landscape(1, lambda w: w**3 - w, covariance=lambda w: (1 + w**2)[:, :, None])
    >>> well.pull(torch.tensor([[2.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 1.0, 1.0).item()
    8.23606797749979
    """

    def __init__(
        self,
        dimension: int,
        gradient: Function,
        covariance: Function | ArrayLike | None = None,
        *,
        factor: Function | ArrayLike | None = None,
        loss: Function | None = None,
    ) -> None:
        if (covariance is None) == (factor is None):
            raise InputError("covariance, factor: give the one or the other")
        self.dimension, self._gradient, self._loss = dimension, gradient, loss
        self._covariance: Function | None = covariance if callable(covariance) else None
        self._factor: Function | None = factor if callable(factor) else None
        self.constant: Tensor | None = None  # the factor, where it does not depend on the weights
        self._last: tuple[tuple[float, torch.dtype], Tensor] | None = None
        if covariance is not None and not callable(covariance):
            self.constant = _constant(root_of(matrices(np.eye(dimension), covariance)[1]), dimension)
        if factor is not None and not callable(factor):
            self.constant = _constant(np.atleast_2d(np.asarray(factor, np.float64)), dimension)
        probe = torch.zeros(2, dimension, dtype=torch.float64)
        if self.gradient(probe).shape != probe.shape:
            raise InputError(
                f"gradient: for weights (2, {dimension}) it gave {tuple(self.gradient(probe).shape)}; it takes the "
                "weights of many paths, one per row, and returns as many gradients"
            )
        self.sources = int(self.constant.shape[1]) if self.constant is not None else self._sources(probe)

    @property
    def has_loss(self) -> bool:
        return self._loss is not None

    def loss(self, w: Tensor) -> Tensor:
        assert self._loss is not None
        return self._loss(w)

    def gradient(self, w: Tensor) -> Tensor:
        return self._gradient(w)

    def factor(self, w: Tensor) -> Tensor:
        """sigma (R, d, sources) or (d, sources)."""
        if self.constant is not None:
            return self.constant
        if self._factor is not None:
            return self._factor(w)
        assert self._covariance is not None
        return _roots(self._covariance(w), w)

    def covariance(self, w: Tensor) -> Tensor:
        """Sigma (R, d, d)."""
        if self._covariance is not None:
            return self._covariance(w)
        sigma = self.factor(w)
        return (sigma @ sigma.mT).expand(len(w), -1, -1)

    def pull(self, w: Tensor, z: Tensor, a: float, b: float) -> Tensor:
        """a grad L(w) + b xi(w, z), (R, d); z in single precision will do."""
        found = a * self.gradient(w)
        if self.constant is not None:
            return found.add_(z @ self._scaled(b, z.dtype))
        sigma = self.factor(w)
        return found.add_((sigma @ z.to(w.dtype).unsqueeze(2)).squeeze(2), alpha=b)

    def push(self, w: Tensor, z: Tensor, a: float, b: float) -> Tensor:
        """w += `pull`, in place: new memory for every step is what costs most where weights are few."""
        if self.constant is None:
            return w.add_(self.pull(w, z, a, b))
        return w.add_(self.gradient(w), alpha=a).add_(z @ self._scaled(b, z.dtype))

    def curved(self, w: Tensor, v: Tensor) -> Tensor:
        """The Hessian times v, row by row."""
        with torch.enable_grad():
            here = w.detach().requires_grad_()
            slope = self.gradient(here)
            if slope.requires_grad:
                return torch.autograd.grad((slope * v).sum(), here)[0]
        return derivative_along(self.gradient, w, v)

    def largest_curvature(self, w: Tensor, close: float = 1e-6) -> float:
        """max |eigenvalue| of the Hessian at the first row, by the power method; a lower bound, mostly a close one.

        close: the relative gain of an iteration at which it stops.
        """
        here = w[:1]
        v = torch.randn(here.shape, dtype=here.dtype, generator=torch.Generator().manual_seed(0))
        size = 0.0
        for _ in range(ITERATIONS):
            v = self.curved(here, v / v.norm())
            before, size = size, float(v.norm())
            if not 0 < size < float("inf") or abs(size - before) < close * size:
                break
        return size

    def _scaled(self, b: float, dtype: torch.dtype) -> Tensor:
        """b sigma^T, kept from one step to the next."""
        if self._last is None or self._last[0] != (b, dtype):
            assert self.constant is not None
            self._last = (b, dtype), (b * self.constant.T).to(dtype).contiguous()
        return self._last[1]

    def _sources(self, probe: Tensor) -> int:
        if self._factor is not None:
            found = tuple(self._factor(probe).shape)
            if len(found) != 3 or found[:2] != tuple(probe.shape):
                raise InputError(f"factor: for weights {tuple(probe.shape)} it gave {found}; expected (2, d, sources)")
            return found[2]
        assert self._covariance is not None
        found, expected = tuple(self._covariance(probe).shape), (*probe.shape, probe.shape[1])
        if found != expected:
            raise InputError(f"covariance: for weights {tuple(probe.shape)} it gave {found}; expected {expected}")
        return self.dimension


class Quadratic(Landscape):
    """L = 1/2 theta^T H theta with constant noise: hessian H (d, d), covariance C (d, d) of one sample's gradient.

    >>> Quadratic([2.0, 1.0], [1.0, 0.0]).largest_curvature(torch.zeros(1, 2))
    2.0
    """

    def __init__(self, hessian: ArrayLike, covariance: ArrayLike) -> None:
        H, C = matrices(hessian, covariance)
        self.hessian = torch.from_numpy(H)
        super().__init__(len(H), self._linear, C, loss=lambda w: 0.5 * (w * (w @ self.hessian)).sum(1))

    def _linear(self, w: Tensor) -> Tensor:
        return w @ self.hessian

    def curved(self, w: Tensor, v: Tensor) -> Tensor:
        return v @ self.hessian

    def largest_curvature(self, w: Tensor, close: float = 0.0) -> float:
        return float(torch.linalg.eigvalsh(self.hessian).abs().max())


def derivative_along(function: Function, w: Tensor, v: Tensor) -> Tensor:
    """The derivative of function(w) along v, row by row, by central differences of fourth order.

    Not by autograd: a function that leaves torch on the way would count as constant, without a word.
    """
    length = v.norm(dim=1, keepdim=True)
    step = STEP * w.abs().amax(1, keepdim=True).clamp(min=1.0)
    u = step * v / length.clamp(min=torch.finfo(v.dtype).tiny)
    near, far = function(w + u) - function(w - u), function(w + 2 * u) - function(w - 2 * u)
    slope = (8 * near - far) / 12
    return slope * (length / step).reshape(-1, *(1,) * (slope.ndim - 1))


def root_of(C: Array) -> Array:
    """A factor with as many columns as C has rank."""
    values, vectors = np.linalg.eigh(C)
    kept = values > ROUNDING * max(float(values[-1]), 0.0)
    found: Array = vectors[:, kept] * np.sqrt(values[kept])
    return found if kept.any() else np.zeros((len(C), 1))


def _constant(sigma: Array, dimension: int) -> Tensor:
    if sigma.ndim != 2 or len(sigma) != dimension:
        raise InputError(
            f"the noise has shape {sigma.shape}; expected ({dimension}, ...) as there are that many weights"
        )
    return torch.from_numpy(np.ascontiguousarray(sigma))


def _roots(sigma: Tensor, w: Tensor) -> Tensor:
    """Cholesky factors; where that fails, symmetric roots of what is singular, and an error for the rest."""
    factors, info = torch.linalg.cholesky_ex(sigma)
    bad = torch.nonzero(info).flatten()
    if len(bad):
        values, vectors = torch.linalg.eigh(sigma[bad])
        limit = -ROUNDING * values.abs().amax(1)
        wrong = torch.nonzero(~(values[:, 0] >= limit)).flatten()  # NaN too
        if len(wrong):
            row = int(wrong[values[wrong, 0].argmin()])
            path = int(bad[row])
            raise InputError(
                f"the covariance is not positive semi-definite: at weights {_place(w[path])} (path {path}; "
                f"{len(wrong)} of {len(w)} paths) it has the eigenvalue {float(values[row, 0]):.4g} beside "
                f"{float(values[row, -1]):.4g}. A covariance has none below 0: check its formula, or where it is used"
            )
        factors[bad] = vectors @ torch.diag_embed(values.clamp(min=0).sqrt())
    return factors


def _place(w: Any) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in w[:4].tolist()) + (", ...)" if len(w) > 4 else ")")
