"""The Fokker-Planck equation of SGD in one and two dimensions: densities, currents, and what they dissipate.

With D = eps Sigma / 2 the three conventions differ where Sigma depends on the weights. SGD's noise is that at theta_k,
before the step: Ito.

    ito                   J = -grad L p - div (D p)
    stratonovich          J = -grad L p - (eps / 2) sigma div (sigma^T p),  Sigma = sigma sigma^T
    hanggi-klimontovich   J = -grad L p - D grad p                          (what the notes print)
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from scipy.sparse import eye
from scipy.sparse.linalg import splu
from scipy.stats import poisson

from shotnoise import results
from shotnoise.errors import InputError, ShotnoiseError
from shotnoise.predict.diffusion.grid_edges import Edges, edges
from shotnoise.predict.diffusion.landscape import ROUNDING, Landscape, derivative_along
from shotnoise.predict.diffusion.network import placed
from shotnoise.predict.diffusion.settings import Array, positive
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling

ITO, STRATONOVICH, KLIMONTOVICH = "ito", "stratonovich", "hanggi-klimontovich"
CONVENTIONS = (ITO, STRATONOVICH, KLIMONTOVICH)
AXES = ("x", "y")
SHIFT = 1e-9  # of the largest rate
SETTLED = 1e-12
MOST_PRODUCTS = 10**6
VISIBLE = 1e-10  # of the largest density: below it the mean velocity J / p is not reported


class FokkerPlanck:
    """The equation on a grid, for one landscape (or `Problem`, drawn by `sampling`), learning rate and batch size.

    bounds: (low, high) for each weight, one or two of them. cells: how many per weight, a number or one for each.
    convention: "ito" (SGD), "stratonovich" or "hanggi-klimontovich". leak: the mass that may lie outside, estimated by
    continuing the outermost two layers of cells geometrically: right for exponential tails, too much for Gaussian and
    too little for algebraic ones; leak=1 says that the bounds are meant as walls. Mass is kept to rounding and
    densities are never negative, whatever the covariance.

    Raises InputError where the covariance is not positive definite on the grid (where, by how much), and, from its
    methods, where the grid does not contain the mass (how much is outside, and on which side).

    >>> from shotnoise.predict.diffusion.landscape import Quadratic
    >>> s = FokkerPlanck(Quadratic([1.0], [2.0]), 0.1, 1, [(-2, 2)], 400).stationary()
    >>> abs(float(s["weight_covariance"].item()) - 0.1) < 1e-4, float(s["entropy_production"]) < 1e-20
    (True, True)
    """

    def __init__(
        self,
        landscape: Landscape | Problem,
        learning_rate: float,
        batch_size: int,
        bounds: Sequence[tuple[float, float]],
        cells: int | Sequence[int],
        *,
        convention: str = ITO,
        leak: float = 1e-3,
        sampling: Sampling | None = None,
    ) -> None:
        if convention not in CONVENTIONS:
            raise InputError(f"convention={convention!r}: one of {', '.join(CONVENTIONS)}")
        self.landscape, self.setting = placed(landscape, learning_rate, batch_size, 0.0, sampling)
        d = self.landscape.dimension
        if d > 2:
            raise InputError(
                f"{d} weights: a grid is for one or two; simulate with `integrate`, or `ornstein_uhlenbeck`"
            )
        self.convention, self.leak = convention, positive("leak", leak)
        self.shape = _cells(cells, d)
        limits = np.asarray(bounds, np.float64)
        if limits.shape != (d, 2) or not (limits[:, 1] > limits[:, 0]).all():
            raise InputError(f"bounds={bounds}: one pair (low, high) for each of the {d} weights")
        self.bounds = limits
        self.widths: Array = (limits[:, 1] - limits[:, 0]) / self.shape
        self.centres = [
            low + width * (np.arange(m) + 0.5)
            for (low, _), width, m in zip(limits, self.widths, self.shape, strict=True)
        ]

    @property
    def points(self) -> Array:
        """Centres of the cells in row-major order, (cells, d)."""
        return np.stack([x.ravel() for x in np.meshgrid(*self.centres, indexing="ij")], 1)

    @cached_property
    def edges(self) -> Edges:
        points = self.points
        w = torch.from_numpy(points)
        sigma = self.landscape.covariance(w).numpy()
        _require_definite(sigma, points)
        drift = -self.landscape.gradient(w).numpy()
        if self.convention == STRATONOVICH:
            drift = drift + self.setting.epsilon / 2 * _along_itself(self.landscape, w).numpy()
        diffusion = self.setting.epsilon / 2 * sigma
        return edges(self.shape, self.widths, diffusion, drift, self.convention == KLIMONTOVICH)

    @cached_property
    def generator(self) -> Any:
        """A, sparse, with dm/dt = A m for the masses m of the cells; its columns sum to zero."""
        return self.edges.generator()

    def stationary(self) -> xr.Dataset:
        """The stationary law.

        Returns `density` over the grid; `mean_weights` and `weight_covariance`; `probability_current` (component, ..)
        and, in two dimensions, `current_curl` and `velocity_curl`, the curl of J / p (NaN where there is nearly no
        mass); `entropy_production` per unit time t = k eta; `largest_net_flux`, over cells' edges, as a share of the
        largest flux one way: zero in detailed balance; `leak`, the mass estimated outside.
        """
        A, size = self.generator, SHIFT * float(np.abs(self.generator.diagonal()).max())
        # Without pivots the factors of this M-matrix keep their signs, and every solution is a sum of positive terms.
        solver = splu(
            (eye(A.shape[0], format="csc") * size - A).tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )  # fmt: skip
        masses = np.full(A.shape[0], 1 / A.shape[0])
        for _ in range(100):
            after = solver.solve(masses)
            after /= after.sum()
            if np.abs(after - masses).sum() < SETTLED:
                break
            masses = after
        else:
            raise ShotnoiseError(
                "the stationary law did not settle: parts of the landscape hardly exchange mass; raise the noise, or "
                "look at `evolve`"
            )
        return self._described(after)

    def evolve(self, initial: ArrayLike, steps: Sequence[float]) -> xr.Dataset:
        """The density after so many updates' time, k eta, from the law `initial`: masses or densities over the grid.

        By uniformisation: a Poisson mixture of powers of a stochastic matrix, exact for the grid to 1e-14, positive and
        of constant mass. Returns `density` (step, ..), `mean_weights`, `weight_covariance` and `leak` by step.
        """
        masses = np.asarray(initial, np.float64).reshape(-1)
        if masses.shape != (int(np.prod(self.shape)),) or (masses < 0).any() or not masses.sum() > 0:
            raise InputError(f"initial has shape {np.shape(initial)}; expected masses {self.shape}, none negative")
        masses = masses / masses.sum()
        A = self.generator
        rate = float(np.abs(A.diagonal()).max())
        when = np.asarray(steps, np.float64)
        if when.ndim != 1 or not when.size or (np.diff(when) < 0).any() or (when < 0).any():
            raise InputError(f"steps={steps}: numbers of updates that rise from 0 on")
        products = rate * when[-1] * self.setting.learning_rate
        if products > MOST_PRODUCTS:
            raise InputError(
                f"{when[-1]:g} updates on these cells take {products:.2g} products with the generator (limit "
                f"{MOST_PRODUCTS:g}); take wider cells, fewer updates, or `stationary`"
            )
        chain = (A / rate + eye(A.shape[0], format="csc")).tocsr()
        parts, before = [], 0.0
        for step in when:
            masses = _mixture(chain, masses, rate * (step - before) * self.setting.learning_rate)
            before = step
            parts.append(self._moments(masses) | {"density": (self._names, self._density(masses))})
            self._check_leak(masses)
        found = {name: (("step", *parts[0][name][0]), np.array([part[name][1] for part in parts])) for name in parts[0]}
        return results.dataset(found, {"step": when, **self._coordinates}, self._attributes)

    @property
    def _names(self) -> tuple[str, ...]:
        return AXES[: len(self.shape)]

    @property
    def _coordinates(self) -> dict[str, Any]:
        return dict(zip(self._names, self.centres, strict=True))

    @property
    def _attributes(self) -> dict[str, Any]:
        return {"theory": f"Fokker-Planck, {self.convention}, {' x '.join(map(str, self.shape))} cells",
                "convention": self.convention, **self.setting.attributes}  # fmt: skip

    def _density(self, masses: Array) -> Array:
        found: Array = masses.reshape(self.shape) / np.prod(self.widths)
        return found

    def _moments(self, masses: Array) -> dict[str, tuple[tuple[str, ...], Any]]:
        points = self.points
        mean = masses @ points
        centred = points - mean
        return {
            "mean_weights": (("parameter",), mean),
            "weight_covariance": (("parameter", "parameter_"), (centred * masses[:, None]).T @ centred),
            "leak": ((), sum(self._outside(masses).values())),
        }

    def _described(self, masses: Array) -> xr.Dataset:
        self._check_leak(masses)
        links = self.edges
        fluxes = links.fluxes(masses)
        current = np.zeros((len(masses), len(self.shape)))
        kept = links.inside
        half = fluxes[kept, None] * links.offset[kept] / 2 / np.prod(self.widths)
        np.add.at(current, links.tail[kept], half)
        np.add.at(current, links.head[kept], half)
        one_way = links.forth[kept] * masses[links.tail[kept]], links.back[kept] * masses[links.head[kept]]
        with np.errstate(divide="ignore", invalid="ignore"):
            produced = np.where(
                (one_way[0] > 0) & (one_way[1] > 0), fluxes[kept] * np.log(one_way[0] / one_way[1]), 0.0
            )
        field = current.T.reshape(len(self.shape), *self.shape)
        density = self._density(masses)
        found: dict[str, Any] = self._moments(masses) | {
            "density": (self._names, density),
            "probability_current": (("component", *self._names), field),
            "entropy_production": ((), float(produced.sum())),
            "largest_net_flux": ((), float(np.abs(fluxes).max() / max(one_way[0].max(), one_way[1].max()))),
        }
        if len(self.shape) == 2:
            with np.errstate(divide="ignore", invalid="ignore"):
                velocity = np.where(density > VISIBLE * density.max(), field / density, np.nan)
            found["current_curl"] = (self._names, self._curl(field))
            found["velocity_curl"] = (self._names, self._curl(velocity))
        coordinates = {**self._coordinates, "component": list(self._names)}
        return results.dataset(found, coordinates, self._attributes)

    def _curl(self, field: Array) -> Array:
        found: Array = np.gradient(field[1], self.centres[0], axis=0) - np.gradient(field[0], self.centres[1], axis=1)
        return found

    def _outside(self, masses: Array) -> dict[str, float]:
        """The mass beyond each side, the outermost two layers continued geometrically; 1 where they do not fall."""
        table, found = masses.reshape(self.shape), {}
        for axis, name in enumerate(self._names):
            layers = table.sum(tuple(k for k in range(table.ndim) if k != axis))
            for side, last, inner in (("<", layers[0], layers[1]), (">", layers[-1], layers[-2])):
                bound = self.bounds[axis, 0 if side == "<" else 1]
                found[f"{name} {side} {bound:g}"] = float(last**2 / (inner - last)) if inner > last else float(last > 0)
        return found

    def _check_leak(self, masses: Array) -> None:
        outside = self._outside(masses)
        total = min(sum(outside.values()), 1.0)
        if total > self.leak:
            worst = max(outside, key=lambda side: outside[side])
            words = "the density does not fall there" if outside[worst] >= 1 else f"about {outside[worst]:.2g} of it"
            raise InputError(
                f"the grid does not contain the mass: {total:.2g} of it would lie outside (the limit is leak="
                f"{self.leak:g}), most where {worst} ({words}); widen the bounds {self.bounds.tolist()}"
            )


def _mixture(chain: Any, masses: Array, mean: float) -> Array:
    """sum_k Poisson(k; mean) chain^k masses, the weights that are left out less than 1e-14 in all."""
    if not mean:
        return masses
    first, last = int(poisson.ppf(5e-15, mean)), int(poisson.isf(5e-15, mean)) + 1
    weights = poisson.pmf(np.arange(first, last + 1), mean)
    weights /= weights.sum()
    total, power = np.zeros_like(masses), masses
    for k in range(last + 1):
        if k >= first:
            total += weights[k - first] * power
        power = chain @ power
    return total


def _along_itself(landscape: Landscape, w: torch.Tensor) -> torch.Tensor:
    """sum_jk sigma_jk d_j sigma_ik, the drift that Stratonovich's reading adds over eps / 2, (cells, d)."""
    if landscape.constant is not None:
        return torch.zeros_like(w)
    sigma = landscape.factor(w)
    columns = [
        derivative_along(lambda here, k=k: landscape.factor(here)[:, :, k], w, sigma[:, :, k])  # type: ignore[misc]
        for k in range(sigma.shape[2])
    ]
    return torch.stack(columns).sum(0)


def _require_definite(sigma: Array, points: Array) -> None:
    values = np.linalg.eigvalsh(sigma)
    worst = int((values[:, 0] / np.maximum(np.abs(values[:, -1]), np.finfo(float).tiny)).argmin())
    lowest, largest = values[worst, 0], values[worst, -1]
    if not lowest > ROUNDING * abs(largest):
        place = ", ".join(f"{x:.4g}" for x in points[worst])
        words = "not positive semi-definite" if lowest < -ROUNDING * abs(largest) else "singular"
        raise InputError(
            f"the covariance is {words} at weights ({place}): eigenvalue {lowest:.4g} beside {largest:.4g}, in "
            f"{int((values[:, 0] <= ROUNDING * np.abs(values[:, -1])).sum())} of {len(values)} cells. A density on the "
            "whole grid needs noise in every direction; for singular noise see `ornstein_uhlenbeck` and `integrate`"
        )


def _cells(cells: int | Sequence[int], d: int) -> tuple[int, ...]:
    found = tuple(int(m) for m in (np.atleast_1d(np.asarray(cells)) * np.ones(d, int)))
    if min(found) < 3:
        raise InputError(f"cells={cells}: at least three for each weight")
    return found
