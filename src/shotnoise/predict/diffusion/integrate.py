"""Many paths of a stochastic differential equation at once, by Euler's or Heun's method.

    euler  x + b(x) dt + sigma(x) dW                                            Ito; weak order 1, strong 1/2
    heun   x + half the sum of that increment here and where it leads           Stratonovich; constant noise: weak 2

Strong orders are 1 for both where the noise does not depend on x. Normal numbers are made in single precision, states
are kept in double: of the normal law this loses what lies beyond 5.7 standard deviations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from shotnoise import results
from shotnoise.errors import InputError, NonFiniteError
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.diffusion.sde import Sde

SCHEMES = ("euler", "heun")
AHEAD = 2**17  # normal numbers drawn at a time: what stays in a core's cache


def integrate(
    sde: Sde,
    steps: int,
    paths: int,
    initial: ArrayLike | Tensor | None = None,
    *,
    substeps: int = 1,
    scheme: str = "euler",
    record: Sequence[int] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """`paths` independent solutions over the time of so many updates of SGD.

    initial: weights (d,) or (paths, d); for a Problem default the model's. substeps: of one update; 1 makes Euler's
    method look exactly like the algorithm with Gaussian noise. scheme: "euler" (Ito) or "heun" (the equation is then
    read in the sense of Stratonovich). record: after which updates, default the last.

    Returns `weights` (run, step, parameter); over the paths `mean_weights` (step, parameter) and `weights_variance`
    (step), the trace of their covariance, with standard errors; `loss`, where the landscape has one. Random numbers
    come from one stream for all paths, in order of time: the same seed and number of paths give the same solutions.
    Raises InputError for steps so long that the method itself diverges, and for covariances that are not positive
    semi-definite on the way; NonFiniteError for paths that run away.

    >>> from shotnoise.predict.diffusion.landscape import Quadratic
    >>> from shotnoise.predict.diffusion.sde import first_order
    >>> r = integrate(first_order(Quadratic([1.0], [0.0]), 0.1, 1), steps=2, paths=3, initial=[1.0])
    >>> [round(w, 12) for w in r["weights"].values.ravel().tolist()]  # (1 - 0.1)^2: no noise, Euler's method
    [0.81, 0.81, 0.81]
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: one of {', '.join(SCHEMES)}")
    for name, value in (("steps", steps), ("paths", paths), ("substeps", substeps)):
        if int(value) != value or value < 1:
            raise InputError(f"{name}={value}: a whole number, at least 1")
    recorded = _recorded(record, steps)
    weights = _initial(sde, initial, paths)
    dt = sde.time / substeps
    _check_step(sde, weights, dt, substeps)
    generator = torch.Generator().manual_seed(seed)
    state, kept, losses = sde.start(weights), [], []
    noise = _Normals(paths, sde.landscape.sources, steps * substeps, generator)
    for k in range(steps + 1):
        if k in recorded:
            here = state[:, : sde.landscape.dimension]
            _check_finite(here, k, dt)
            kept.append(here.clone())
            if sde.landscape.has_loss:
                losses.append(sde.landscape.loss(here))
        if k == steps:
            break
        for j in range(substeps):
            state = advance(sde, (k * substeps + j) * dt, state, dt, noise.next(), scheme)
    found: dict[str, Any] = {"weights": (("run", "step", "parameter"), torch.stack(kept, 1).numpy())}
    found |= _moments(torch.stack(kept, 0).numpy(), torch.stack(losses, 0).numpy() if losses else None)
    attributes = {
        "theory": f"{sde.name} SDE, {scheme}, {substeps} steps per update",
        "seed": seed,
        "draws": paths,
        **sde.setting.attributes,
    }
    return results.dataset(found, {"step": recorded}, attributes)


def advance(sde: Sde, t: float, state: Tensor, dt: float, z: Tensor, scheme: str) -> Tensor:
    """One step with the normal numbers z (R, sources); `state` may be overwritten."""
    if scheme == "euler":
        return sde.advance(t, state, dt, z)
    first = sde.increment(t, state, dt, z)
    return state + (first + sde.increment(t + dt, state + first, dt, z)) / 2


class _Normals:
    """Standard normal numbers (paths, sources) for so many steps, drawn for several of them together."""

    def __init__(self, paths: int, sources: int, steps: int, generator: torch.Generator) -> None:
        ahead = min(steps, max(1, AHEAD // (paths * sources)))
        self.block, self.used, self.left = torch.empty(ahead, paths, sources), ahead, steps
        self.generator = generator

    def next(self) -> Tensor:
        if self.used == len(self.block):
            self.block[: self.left].normal_(generator=self.generator)
            self.used = 0
        self.used, self.left = self.used + 1, self.left - 1
        return self.block[self.used - 1]


def _recorded(record: Sequence[int] | None, steps: int) -> list[int]:
    found = [steps] if record is None else sorted({int(k) for k in record})
    if not found or found[0] < 0 or found[-1] > steps:
        raise InputError(f"record={record}: numbers of updates from 0 to {steps}")
    return found


def _initial(sde: Sde, initial: ArrayLike | Tensor | None, paths: int) -> Tensor:
    d = sde.landscape.dimension
    if initial is None:
        if not isinstance(sde.landscape, Network):
            raise InputError(f"initial: {d} weights to start from are needed, or one row of them per path")
        return sde.landscape.start.repeat(paths, 1)
    given = initial if isinstance(initial, Tensor) else torch.from_numpy(np.array(initial, np.float64))
    given = given.detach().double()
    if given.shape not in ((d,), (paths, d)) or not bool(given.isfinite().all()):
        raise InputError(f"initial has shape {tuple(given.shape)}; expected finite numbers ({d},) or ({paths}, {d})")
    return given.expand(paths, d).contiguous().clone()


def _check_step(sde: Sde, weights: Tensor, dt: float, substeps: int) -> None:
    try:
        curvature = sde.landscape.largest_curvature(weights, close=0.05)
    except (RuntimeError, NotImplementedError):  # a gradient that torch cannot differentiate: found out on the way
        return
    fastest = sde.fastest(curvature)
    if dt * fastest > 2:
        needed = int(np.ceil(substeps * dt * fastest / 2)) + 1
        raise InputError(
            f"a step of {dt:.4g} is too long: the fastest rate at the first weights is {fastest:.4g} (curvature "
            f"{curvature:.4g}), and Euler's method diverges where their product, here {dt * fastest:.3g}, exceeds 2. "
            f"Take substeps={needed} or more; SGD itself diverges where learning rate times curvature does"
        )


def _check_finite(weights: Tensor, step: int, dt: float) -> None:
    lost = int((~weights.isfinite().all(1)).sum())
    if lost:
        raise NonFiniteError(
            f"{lost} of {len(weights)} paths are no longer finite after {step} updates: steps of {dt:.3g} are too long "
            "for the curvature or the noise met on the way, or the equation has no stable solution; take more substeps"
        )


def _moments(kept: np.ndarray, losses: np.ndarray | None) -> dict[str, Any]:
    """kept (steps, paths, d); standard errors by the paths, those of the variance by their squared deviations."""
    paths = kept.shape[1]
    if paths < 2:
        return {}
    mean, root = kept.mean(1), np.sqrt(paths)
    squares = ((kept - mean[:, None]) ** 2).sum(2)
    found = {
        "mean_weights": (("step", "parameter"), mean),
        "mean_weights_stderr": (("step", "parameter"), kept.std(1, ddof=1) / root),
        "weights_variance": (("step",), squares.sum(1) / (paths - 1)),
        "weights_variance_stderr": (("step",), squares.std(1, ddof=1) / root),
    }
    if losses is not None:
        found["loss"] = (("step",), losses.mean(1))
        found["loss_stderr"] = (("step",), losses.std(1, ddof=1) / root)
    return found
