"""The eigenvalues, norms and products that `curvature` reports, from whole matrices or from products alone.

Both ways give the same record. Whole matrices hide nothing; products find what Lanczos finds, and say how well.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from shotnoise.measure.covariance import SecondMoment
from shotnoise.measure.curvature.operators import GaussNewton, Hessian, Residual
from shotnoise.measure.products import GRAM_LIMIT
from shotnoise.measure.spectra.lanczos import End
from shotnoise.measure.spectra.operator import Array, Eigenpairs, Symmetric, Value
from shotnoise.measure.spectra.subspaces import best_scale
from shotnoise.measure.spectra.traces import frobenius_norm, trace
from shotnoise.problem import Problem

ERRORS = 3  # standard errors added to an estimated norm where it enters a bound


@dataclass(frozen=True)
class Settings:
    """What `curvature` was asked for and its parts need to know."""

    top: int
    tolerance: float | None
    memory: int
    probes: int
    seed: int
    gauss_newton: bool


@dataclass(frozen=True)
class Pair:
    """Both ends of a spectrum."""

    largest: Eigenpairs
    lowest: Eigenpairs

    @property
    def norm(self) -> float:
        """Not less than the modulus of any eigenvalue, as far as the outermost were found."""
        ends = [(abs(e.values[0]) + e.residuals[0]) for e in (self.largest, self.lowest)]
        return float(max(ends))


@dataclass(frozen=True)
class Difference:
    """Delta = c M - H: its norms as they enter bounds."""

    norm: float
    frobenius: Value

    @property
    def frobenius_bound(self) -> float:
        return self.frobenius.value + ERRORS * self.frobenius.stderr


@dataclass(frozen=True)
class SpectraOf:
    """H, M, H_p = M - H and F of a problem at its weights.

    hessian: one pair more than asked for, where there is one, for its gap. moment: as many pairs as M has directions,
    at most those asked for; moment_values: all that are known of its eigenvalues; the others lie in moment_rest (None:
    there are none). image: H times the eigenvectors of M, moved: H_p times those of H.
    """

    hessian: Pair
    moment: Eigenpairs
    moment_values: Array
    moment_rest: tuple[float, float] | None
    residual: Pair
    gauss_newton: Eigenpairs | None
    hessian_trace: Value
    hessian_frobenius: Value
    moment_trace: float
    moment_frobenius: Value
    gauss_newton_trace: Value | None
    difference: Difference
    scaled: Difference | None
    image: Array
    moved: Array
    full: dict[str, Array] = field(default_factory=dict)
    matrices: dict[str, Array] = field(default_factory=dict)


def dense(problem: Problem, settings: Settings) -> SpectraOf:
    """From the (p, p) matrices."""
    H, M = Hessian(problem).to_dense(), SecondMoment(problem).to_dense()
    matrices = {"hessian": H, "second_moment": M, "residual": M - H}
    if settings.gauss_newton:
        matrices["gauss_newton"] = GaussNewton(problem).to_dense()
    eigen = {name: np.linalg.eigh(matrix) for name, matrix in matrices.items()}
    full = {name: values[::-1] for name, (values, _) in eigen.items()}
    p, rounding = len(H), _rounding(problem)

    def pairs(name: str, k: int, lowest: bool = False) -> Eigenpairs:
        values, vectors = eigen[name]
        some = slice(0, k) if lowest else slice(p - 1, p - 1 - k if k < p else None, -1)
        residuals = np.linalg.norm(matrices[name] @ vectors[:, some] - vectors[:, some] * values[some], axis=0)
        scale = float(np.abs(values).max())
        return Eigenpairs(values[some], vectors[:, some], residuals, rounding, scale)

    def ends(name: str, more: int = 0) -> Pair:
        return Pair(pairs(name, min(p, settings.top + more)), pairs(name, settings.top, lowest=True))

    rank = _rank(full["second_moment"], rounding)
    moment = pairs("second_moment", max(1, min(settings.top, rank)))
    hessian = ends("hessian", more=1)
    scale = best_scale(float((H * M).sum()), float((M * M).sum()))
    return SpectraOf(
        hessian=hessian,
        moment=moment,
        moment_values=full["second_moment"],
        moment_rest=None,
        residual=ends("residual"),
        gauss_newton=pairs("gauss_newton", settings.top) if settings.gauss_newton else None,
        hessian_trace=Value(float(np.trace(H)), 0.0),
        hessian_frobenius=Value(float(np.linalg.norm(H)), 0.0),
        moment_trace=float(np.trace(M)),
        moment_frobenius=Value(float(np.linalg.norm(M)), 0.0),
        gauss_newton_trace=Value(float(np.trace(matrices["gauss_newton"])), 0.0) if settings.gauss_newton else None,
        difference=_exactly(full["residual"]),
        scaled=None if np.isnan(scale) else _exactly(np.asarray(np.linalg.eigvalsh(scale * M - H))),
        image=H @ moment.vectors,
        moved=(M - H) @ hessian.largest.vectors,
        full=full,
        matrices=matrices,
    )


def by_products(problem: Problem, settings: Settings) -> SpectraOf:
    """From products with vectors."""
    H, M = Hessian(problem, memory=settings.memory), SecondMoment(problem)
    R = Residual(problem, memory=settings.memory)
    p = problem.parameter_count

    def pairs(operator: Symmetric, k: int) -> Pair:
        found = _top(operator, min(k, p // 2), settings, "both")
        half = len(found.values) // 2
        return Pair(_part(found, slice(0, half)), _part(found, slice(half, None)))

    gram = problem.n <= GRAM_LIMIT
    if gram:
        known = M.spectrum()
        rank = _rank(known, _rounding(problem))
        moment = M.top(max(1, min(settings.top, rank)), settings.tolerance)
        rest = (0.0, 0.0) if len(known) < p else None
    else:
        moment = M.top(settings.top, settings.tolerance, memory=settings.memory, seed=settings.seed)
        known, rest = moment.values, (0.0, float(moment.values[-1]))
    hessian, residual = pairs(H, settings.top + 1), pairs(R, settings.top)
    image = H @ moment.vectors
    frobenius = frobenius_norm(R, settings.probes, seed=settings.seed)
    newton = GaussNewton(problem, memory=settings.memory) if settings.gauss_newton else None
    scale = best_scale(float((moment.values * (moment.vectors * image).sum(0)).sum()), float((moment.values**2).sum()))
    return SpectraOf(
        hessian=hessian,
        moment=moment,
        moment_values=known,
        moment_rest=rest,
        residual=residual,
        gauss_newton=None if newton is None else _top(newton, settings.top, settings, "largest"),
        hessian_trace=trace(H, settings.probes, seed=settings.seed),
        hessian_frobenius=frobenius_norm(H, settings.probes, seed=settings.seed),
        moment_trace=M.trace(),
        moment_frobenius=M.frobenius_norm(settings.probes, settings.seed),
        gauss_newton_trace=None if newton is None else trace(newton, settings.probes, seed=settings.seed),
        difference=Difference(residual.norm, frobenius),
        scaled=None if np.isnan(scale) else _scaled(problem, scale, settings),
        image=image,
        moved=R @ hessian.largest.vectors,
    )


def _scaled(problem: Problem, scale: float, settings: Settings) -> Difference:
    operator = Residual(problem, scale, memory=settings.memory)
    found = _top(operator, 1, settings, "both")
    norm = float((np.abs(found.values) + found.residuals).max())
    return Difference(norm, frobenius_norm(operator, settings.probes, seed=settings.seed))


def _exactly(values: Array) -> Difference:
    return Difference(float(np.abs(values).max()), Value(float(np.linalg.norm(values)), 0.0))


def _top(operator: Symmetric, k: int, settings: Settings, end: End) -> Eigenpairs:
    return operator.top(k, settings.tolerance, end=end, memory=settings.memory, seed=settings.seed)


def _part(pairs: Eigenpairs, some: slice) -> Eigenpairs:
    return Eigenpairs(pairs.values[some], pairs.vectors[:, some], pairs.residuals[some], pairs.tolerance, pairs.scale)


def _rounding(problem: Problem) -> float:
    """Relative size of what rounding leaves of an eigenvalue that is zero."""
    return problem.parameter_count * float(torch.finfo(problem.dtype).eps)


def _rank(values: Array, rounding: float) -> int:
    """How many eigenvalues of M stand out from rounding; the eigenvectors of the others are arbitrary."""
    return int((values > rounding * values[0]).sum()) if values[0] > 0 else 0
