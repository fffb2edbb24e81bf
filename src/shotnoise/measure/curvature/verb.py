"""`measure.curvature`: Hessian, second moment of the gradients, and how they lie to each other, as one result."""

from typing import Any

import numpy as np
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.measure.curvature import spectra_of
from shotnoise.measure.curvature.layers import from_layer_on, layer_block, layer_loading, positions, subnetwork
from shotnoise.measure.curvature.operators import Hessian
from shotnoise.measure.curvature.spectra_of import Settings, SpectraOf
from shotnoise.measure.spectra import subspaces
from shotnoise.measure.spectra.density import spectral_density
from shotnoise.measure.spectra.operator import MEMORY, Array, Eigenpairs, Symmetric, Value
from shotnoise.measure.spectra.traces import PROBES
from shotnoise.problem import Problem

DENSE_LIMIT = 2000  # parameters up to which whole matrices are taken
VACUOUS, BOUNDS = "vacuous", "bounds"
Variables = dict[str, tuple[tuple[str, ...], Any]]


def curvature(
    problem: Problem,
    top: int = 15,
    *,
    layers: bool = False,
    dense: bool | None = None,
    gauss_newton: bool = True,
    diagonal: bool = False,
    density: bool = False,
    vectors: bool = False,
    tolerance: float | None = None,
    memory: int = MEMORY,
    probes: int = PROBES,
    seed: int = 0,
) -> xr.Dataset:
    """Hessian H, second moment M = (1/n) sum_i g_i g_i^T and H_p = M - H at the problem's present weights.

    top: how many leading eigenpairs, and the dimension of the spaces that are compared.
    layers: add the spectra of the diagonal blocks of H by layer and of the sub-networks from each layer on.
    dense: whole (p, p) matrices, with all eigenvalues, or products alone; default whole up to 2,000 parameters.
    gauss_newton: add the Gauss-Newton matrix, for models that return one tensor and losses that have one.
    diagonal, density, vectors: add diag H exactly (p products), the density of the spectrum by stochastic Lanczos
        quadrature, the eigenvectors.
    tolerance: of residuals relative to the largest eigenvalue, default 1e-6 in double and 1e-4 in single precision
        (for M 1e-8 and 1e-4). memory: bytes that a basis, and again what is kept between products, may take.
    probes: random vectors for traces and norms where there are no whole matrices. seed: of these and of Lanczos.

    Returns by `mode`, descending, `hessian_eigenvalues`, `second_moment_eigenvalues`, `residual_eigenvalues` (H_p),
    `gauss_newton_eigenvalues`, ascending `hessian_lowest_eigenvalues` and `residual_lowest_eigenvalues`; for each of
    them (dimension `spectrum`) `eigenpair_residuals` and `eigenpair_converged`. With whole matrices also
    `hessian_spectrum` and so on, by `index`. Traces and norms, with `_stderr` where estimated; `second_moment_ratio`,
    ||M||_F / ||H||_F, which is ||H + H_p||_F / ||H||_F.

    Of the leading eigenspaces of H and M: `principal_angle_cosines` and `_sines` between those of `top` dimensions (of
    attribute `subspace_dimensions`, where M has no more); by `mode` d the literal `subspace_overlap` of the leading d,
    its chance level, `subspace_distance` ||sin Theta||_F; the ratio of eigenvalue d of H to the next; the sines between
    single eigenvectors; bounds on these (`davis_kahan_bound`) and on the distance (`yu_wang_samworth_bound`,
    `scaled_bound`, `residual_bound`), with what they say: "vacuous" where a sine is bounded by one or a distance by
    sqrt(d). `gradient_share` of the leading d eigenvectors of H, `layer_loading`.

    The loss is a mean over the samples, the penalty in H and in every g_i; the Gauss-Newton matrix is without it. On
    ReLU networks H is that of the linear piece at hand; see `curvature.hessian`.
    Source: Li, Gu, Zhou, Chen, Banerjee, sections 4 and B; H = M - H_p holds by definition here, and is their
    Proposition 1 for log-likelihood losses. Raises InputError for more pairs than parameters, a loss without a second
    derivative, or too little memory.

    >>> import torch
    >>> x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> line = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    >>> c = curvature(Problem(line, "mse", x, torch.zeros(30, 1, dtype=torch.float64)), top=2)
    >>> bool(np.allclose(c["hessian_spectrum"], np.linalg.eigvalsh(x.T @ x / 30)[::-1]))
    True
    """
    p = problem.parameter_count
    if not isinstance(top, (int, np.integer)) or not 1 <= top <= p:
        raise InputError(f"top={top}: eigenpairs of matrices of {p} parameters; ask for 1 to {p}")
    whole = p <= DENSE_LIMIT if dense is None else dense
    if not whole and top + 1 > p // 2:
        raise InputError(
            f"top={top}: products give at most {p // 2 - 1} at both ends of {p} eigenvalues, and one for the gap; "
            "ask for fewer, or for dense=True"
        )
    settings = Settings(int(top), tolerance, memory, probes, seed, gauss_newton)
    found = spectra_of.dense(problem, settings) if whole else spectra_of.by_products(problem, settings)
    gradient = _vector(problem, problem.gradient())
    variables: Variables = {"loss": ((), problem.loss())}
    spectra = _spectra(variables, found, settings)
    _moments(variables, found, gradient)
    q = _compare(variables, found, p)
    variables["gradient_share"] = (
        ("mode",),
        subspaces.gradient_share(found.hessian.largest.vectors[:, :top], gradient),
    )
    variables["layer_loading"] = (("layer", "mode"), layer_loading(problem, found.hessian.largest.vectors[:, :top]))
    coordinates: dict[str, Any] = {"layer": np.array(list(problem.layers), dtype=str), "spectrum": spectra}
    operator = Hessian(problem, memory=memory)
    if layers:
        _add_layers(variables, problem, found, operator, settings)
    if diagonal:
        exact = np.diag(found.matrices["hessian"]) if found.matrices else operator.diagonal()
        variables["hessian_diagonal"] = (("parameter",), exact)
    if vectors:
        variables["hessian_vectors"] = (("parameter", "mode"), found.hessian.largest.vectors[:, :top])
        variables["second_moment_vectors"] = (("parameter", "mode"), _padded(found.moment.vectors, top))
    if diagonal or vectors:
        names = [name for name, value in problem.parameters.items() for _ in range(value.numel())]
        coordinates["parameter_name"] = ("parameter", np.array(names, dtype=str))
    if density:
        smooth = spectral_density(operator, seed=seed)
        variables["spectral_density"] = (("eigenvalue",), smooth.density)
        variables["spectral_density_stderr"] = (("eigenvalue",), smooth.stderr)
        coordinates["eigenvalue"] = smooth.points
    attributes = results.provenance(problem) | {
        "method": "whole matrices" if whole else "products",
        "subspace_dimensions": q,
        "chance_cosine": subspaces.chance_cosine(q, q, p),
        "probes": 0 if whole else probes,
        "seed": seed,
        "statement": _statement(variables, q),
    }
    return results.dataset(variables, coordinates, attributes)


def _spectra(variables: Variables, found: SpectraOf, settings: Settings) -> list[str]:
    """The leading eigenvalues of everything, and how good they are; returns the names along `spectrum`."""
    top = settings.top
    listed: dict[str, Eigenpairs] = {
        "hessian_eigenvalues": found.hessian.largest,
        "hessian_lowest_eigenvalues": found.hessian.lowest,
        "second_moment_eigenvalues": found.moment,
        "residual_eigenvalues": found.residual.largest,
        "residual_lowest_eigenvalues": found.residual.lowest,
    }
    if found.gauss_newton is not None:
        listed["gauss_newton_eigenvalues"] = found.gauss_newton
    for name, pairs in listed.items():
        variables[name] = (("mode",), _padded(pairs.values, top))
    if len(found.moment_values) >= top:  # beyond its rank, too: zero but for rounding, without eigenvectors
        variables["second_moment_eigenvalues"] = (("mode",), np.maximum(found.moment_values[:top], 0))
    variables["eigenpair_residuals"] = (
        ("spectrum", "mode"),
        np.stack([_padded(e.residuals, top) for e in listed.values()]),
    )
    flags = [np.pad(e.converged[:top], (0, max(0, top - len(e.values)))) for e in listed.values()]
    variables["eigenpair_converged"] = (("spectrum", "mode"), np.stack(flags))
    for name, values in found.full.items():
        variables[f"{name}_spectrum"] = (("index",), values)
    return list(listed)


def _moments(variables: Variables, found: SpectraOf, gradient: Array) -> None:
    norm = found.hessian_frobenius
    scalars: dict[str, Value] = {
        "hessian_trace": found.hessian_trace,
        "hessian_frobenius_norm": norm,
        "second_moment_trace": Value(found.moment_trace, 0.0),
        "second_moment_frobenius_norm": found.moment_frobenius,
        "residual_frobenius_norm": found.difference.frobenius,
        "residual_norm": Value(found.difference.norm, 0.0),
        "gradient_norm_sq": Value(float(gradient @ gradient), 0.0),
    }
    if found.gauss_newton_trace is not None:
        scalars["gauss_newton_trace"] = found.gauss_newton_trace
    if norm.value > 0:
        ratio = found.moment_frobenius.value / norm.value
        relative = np.hypot(_relative(found.moment_frobenius), _relative(norm))
        scalars["second_moment_ratio"] = Value(ratio, float(ratio * relative))
    for name, value in scalars.items():
        variables[name] = ((), value.value)
        if value.stderr:
            variables[f"{name}_stderr"] = ((), value.stderr)
    if found.moment_trace > 0:
        share = np.cumsum(variables["second_moment_eigenvalues"][1]) / found.moment_trace
        variables["second_moment_top_share"] = (("mode",), share)


def _compare(variables: Variables, found: SpectraOf, p: int) -> int:
    """Angles, overlaps and bounds; returns the dimension of the spaces."""
    top, values = len(variables["hessian_eigenvalues"][1]), found.hessian.largest.values
    V, U = found.moment.vectors, found.hessian.largest.vectors[:, :top]
    q = V.shape[1]
    U = U[:, :q]
    whole = subspaces.principal_angles(U, V)
    literal = [subspaces.principal_angles(U[:, :d], V[:, :d]) for d in range(1, q + 1)]
    following = np.append(values, -np.inf)[1 : top + 1]
    gaps = values[:top] - following
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.isfinite(following), values[:top] / following, np.nan)
    mixed = subspaces.mixed_gaps(values[:q], found.moment_values, rest=found.moment_rest)
    moved = np.linalg.norm(found.moved, axis=0)[:q]
    single = subspaces.davis_kahan(moved, mixed)
    distance = np.array([one.distance for one in literal])
    bounds = {
        "yu_wang_samworth_bound": _yu_wang_samworth(gaps, found.difference)[:q],
        "scaled_bound": np.full(q, np.nan) if found.scaled is None else _yu_wang_samworth(gaps, found.scaled)[:q],
        "residual_bound": subspaces.residual_bounds(V, found.image, values),
    }
    by_mode = {
        "principal_angle_cosines": whole.cosines,
        "principal_angle_sines": whole.sines,
        "subspace_overlap": np.array([one.overlap for one in literal]),
        "subspace_overlap_chance": np.arange(1, q + 1) / p,
        "subspace_distance": distance,
        "hessian_gap_ratio": ratio,
        "eigenvector_sines": subspaces.vector_angles(U, V),
        "davis_kahan_bound": single,
        **bounds,
    }
    for name, numbers in by_mode.items():
        variables[name] = (("mode",), _padded(numbers, top))
    words = np.where(single < 1, BOUNDS, VACUOUS)
    variables["davis_kahan_status"] = (("mode",), _padded_words(words, top))
    named = np.stack(list(bounds.values()))
    named = np.where(np.isnan(named), np.inf, named)
    best = np.array([name.removesuffix("_bound").replace("_", " ") for name in bounds])[named.argmin(0)]
    words = np.where(named.min(0) < np.sqrt(np.arange(1, q + 1)), best, VACUOUS)
    variables["subspace_bound_status"] = (("mode",), _padded_words(words, top))
    return q


def _yu_wang_samworth(gaps: Array, difference: spectra_of.Difference) -> Array:
    return subspaces.yu_wang_samworth(gaps, difference.norm, difference.frobenius_bound)


def _statement(variables: Variables, q: int) -> str:
    """What the bounds amount to, in words."""
    single, whole = (variables[f"{name}_status"][1][:q] for name in ("davis_kahan", "subspace_bound"))
    lost = int((single == VACUOUS).sum())
    about = (
        f"the Davis-Kahan bound says nothing of {lost} of {q} eigenvectors" if lost else "it bounds every eigenvector"
    )
    told = [d + 1 for d in range(q) if whole[d] != VACUOUS]
    if not told:
        return f"{about}; no bound says anything of the leading spaces: all are vacuous"
    return f"{about}; of the leading spaces there are bounds for dimensions {', '.join(map(str, told))}"


def _add_layers(
    variables: Variables, problem: Problem, found: SpectraOf, operator: Hessian, settings: Settings
) -> None:
    blocks, whole = [], []
    for layer, where in positions(problem).items():
        rest = from_layer_on(problem, layer)
        if found.matrices:
            H, here, on = found.matrices["hessian"], where.numpy(), rest.numpy()
            blocks.append(np.linalg.eigvalsh(H[np.ix_(here, here)])[::-1])
            whole.append(np.linalg.eigvalsh(H[np.ix_(on, on)])[::-1])
        else:
            blocks.append(_leading(layer_block(problem, operator, layer), settings))
            whole.append(_leading(subnetwork(problem, operator, layer), settings))
    variables["layer_hessian_eigenvalues"] = (("layer", "mode"), np.stack([_padded(b, settings.top) for b in blocks]))
    variables["subnetwork_hessian_eigenvalues"] = (
        ("layer", "mode"),
        np.stack([_padded(w, settings.top) for w in whole]),
    )


def _leading(operator: Symmetric, settings: Settings) -> Array:
    """Eigenvalues; NaN where one has not converged."""
    k = min(settings.top, operator.shape[0])
    pairs = operator.top(k, settings.tolerance, memory=settings.memory, seed=settings.seed)
    return np.where(pairs.converged, pairs.values, np.nan)


def _padded(values: Array, length: int) -> Array:
    """NaN behind, to `length` along the last axis, and cut to it."""
    values = np.asarray(values, float)[..., :length]
    missing = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, missing, constant_values=np.nan)


def _padded_words(words: Any, length: int) -> Any:
    return np.array([*words, *[""] * (length - len(words))], dtype=str)


def _relative(value: Value) -> float:
    return value.stderr / value.value if value.value else 0.0


def _vector(problem: Problem, named: Any) -> Array:
    return problem.flatten(named).double().cpu().numpy()
