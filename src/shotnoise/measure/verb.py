"""The verb `measure`: the moments and estimates of this package dressed as one labelled result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.measure import scale
from shotnoise.measure.covariance import NoiseCovariance
from shotnoise.measure.estimate import FEWEST_SAMPLES, Array, Estimates, estimate
from shotnoise.measure.hessian_scale import hessian_noise_scale
from shotnoise.measure.moments import Progress, of_all, of_sample
from shotnoise.measure.products import parameter_variance, sampled_parameter_variance
from shotnoise.named import Named
from shotnoise.problem import Problem
from shotnoise.sampling import Online, Sampling, WithoutReplacement

COMMON_BATCH_SIZES = (1, 8, 64, 512)
Variables = dict[str, tuple[tuple[str, ...], Any]]


def measure(
    problem: Problem,
    batch_sizes: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    top: int = 0,
    per_parameter: bool = False,
    hessian: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The minibatch noise at the problem's present weights, in total and per layer.

    batch_sizes: those to predict for; default 1, 8, 64, 512 as far as they can be drawn.
    sampling: how batches are drawn, default WithoutReplacement(). With Online() the data counts as a sample of an
        unlimited population, and everything is estimated for the population.
    samples: how many randomly chosen samples to spend; None is all of them. With all of a finite data set the results
        are exact; otherwise they are estimates, each with a `_stderr` beside it, at twice the work per sample: the
        moments and variances are unbiased, shares and ratios of them are not.
    seed: of the choice of samples and of random probes.
    confidence: of noise_scale_low and noise_scale_high.
    top: how many eigenpairs of the noise covariance to add, with Frobenius norm and effective rank.
    per_parameter: add the variance of every gradient entry.
    hessian: add the noise scale with curvature, Tr(H Sigma) / g^T H g. It and `top` need all samples of a data set.
    progress: called with (samples done, samples in all); see `shotnoise.show.progress`.

    Returns an xarray.Dataset in the names of `shotnoise.results.GLOSSARY`; covariances have divisor n; squared norms
    are in units of the squared gradient, noise scales in samples. Costs about one forward and backward pass over the
    samples. The model is left as it was. Raises InputError, PerSampleGradientError or NonFiniteError.

    >>> problem = Problem(torch.nn.Linear(1, 1), "mse", torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1))
    >>> result = measure(problem, batch_sizes=[1, 3])
    >>> float(result["conditional_gradient_variance"].sel(batch_size=3))     # the batch is all the data
    0.0
    >>> str(result["noise_scale_status"].values)
    'exact'
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    sizes = check(problem, batch_sizes, sampling, samples=samples, confidence=confidence, top=top, hessian=hessian)
    population = None if isinstance(sampling, Online) else problem.n
    factors = np.array([sampling.variance_factor(b, population) for b in sizes])
    used = problem.n if samples is None else samples
    indices = None if population is not None and samples is None else _choose(problem.n, used, seed)
    if indices is None:
        variables, paths = _exact(problem, factors, progress)
    else:
        variables, paths = _estimated(problem, factors, indices, population, confidence, progress)
    coordinates: dict[str, Any] = {
        "batch_size": np.array(sizes, dtype=np.int64),
        "layer": np.array(list(problem.layers), dtype=str),
        **_layer_coordinates(problem, paths),
    }
    _add_spectrum(variables, problem, top, seed)
    if per_parameter:
        _add_parameters(variables, coordinates, problem, indices, population)
    if hessian:
        found = hessian_noise_scale(problem, seed=seed)
        variables["hessian_noise_scale"] = ((), found.value)
        variables["hessian_noise_scale_stderr"] = ((), found.stderr)
    attributes = results.provenance(problem) | {
        "sampling": str(sampling),
        "samples_used": used,
        "seed": seed,
        "confidence": confidence,
    }
    return results.dataset(variables, coordinates, attributes)


def check(
    problem: Problem,
    batch_sizes: Sequence[int] | None,
    sampling: Sampling,
    *,
    samples: int | None = None,
    confidence: float = 0.95,
    top: int = 0,
    hessian: bool = False,
) -> list[int]:
    """The batch sizes that `measure` would use; raises InputError for whatever it would refuse."""
    population = None if isinstance(sampling, Online) else problem.n
    default = [b for b in COMMON_BATCH_SIZES if population is None or b <= problem.n]
    sizes = default if batch_sizes is None else list(batch_sizes)
    sampling.check_all(sizes, population)
    whole = samples is None or isinstance(samples, (int, np.integer))
    if not whole or (samples is not None and not FEWEST_SAMPLES <= samples <= problem.n):
        limits = f"between {FEWEST_SAMPLES} and n={problem.n} samples"
        raise InputError(f"samples={samples}: a budget is a whole number {limits}, or None for all")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}: a probability between 0 and 1, such as 0.95")
    if top < 0:
        raise InputError(f"top={top}: the number of eigenpairs, 0 for none")
    if (top or hessian) and (samples is not None or population is None):
        raise InputError(
            "top and hessian speak of all samples of a data set, and have no unbiased estimate from some; "
            "leave samples out and use a sampling scheme for finite data, or measure a Problem made of a subset"
        )
    return sizes


def noise_scale(
    problem: Problem,
    batch_size: int = 64,
    batches: int = 20,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The gradient noise scale from a handful of batches: `batches` batches of `batch_size` distinct samples.

    noise_scale with its interval and status, what it would take to resolve it if it is not, and the
    moments it is made of. For a full pass ask `measure`. Raises InputError if the data set is smaller than the budget.
    """
    if batch_size * batches > problem.n:
        raise InputError(
            f"{batches} batches of {batch_size} are {batch_size * batches} samples, but there are n={problem.n}; "
            "take fewer batches, or a full pass with shotnoise.measure(problem)"
        )
    return measure(
        problem,
        [batch_size],
        samples=batch_size * batches,
        seed=seed,
        confidence=confidence,
        progress=progress,
    )


def _exact(problem: Problem, factors: Array, progress: Progress | None) -> tuple[Variables, dict[str, str]]:
    found = of_all(problem, progress)
    noise, square = found.noise_trace, found.gradient_norm_sq
    scales = scale.ratio(noise, square)
    variables: Variables = {"loss": ((), found.loss)}
    _add_moments(variables, found.second_moment, noise, square, scales, factors)
    variables["noise_scale_low"] = variables["noise_scale_high"] = ((), scales[-1])
    variables["noise_scale_status"] = ((), results.EXACT)
    return variables, found.paths


def _estimated(
    problem: Problem,
    factors: Array,
    indices: torch.Tensor,
    population: int | None,
    confidence: float,
    progress: Progress | None,
) -> tuple[Variables, dict[str, str]]:
    found = of_sample(problem, indices, population, progress)
    estimates = estimate(found.products)
    scales = scale.noise_scale(found.products, estimates, confidence)
    second, noise, square = estimates.values
    variables: Variables = {"loss": ((), float(found.losses.mean()))}
    _add_moments(variables, second, noise, square, scales.value, factors)
    _add_errors(variables, estimates, scales, factors)
    unseen = found.products.unseen
    variables["loss_stderr"] = ((), float(found.losses.std(ddof=1) * np.sqrt(max(0, unseen) / len(indices))))
    variables["noise_scale_low"], variables["noise_scale_high"] = ((), scales.low[-1]), ((), scales.high[-1])
    variables["noise_scale_status"] = ((), str(scales.status[-1]))
    needed = scale.samples_to_resolve(found.products, estimates, confidence)[-1]
    variables["noise_scale_samples_needed"] = (
        (),
        needed if np.isinf(scales.high[-1]) else float(len(indices)),
    )
    return variables, found.paths


def _add_moments(
    variables: Variables, second: Array, noise: Array, square: Array, scales: Array, factors: Array
) -> None:
    """Totals and layers of everything that has both; the last column is the total."""
    variance = noise[:, None] * factors
    by_column = {
        "gradient_norm_sq": square,
        "second_moment_trace": second,
        "noise_trace": noise,
        "noise_scale": scales,
        "conditional_gradient_variance": variance,
        "noise_share": _share(variance, square[:, None]),
        "signal_to_noise": scale.ratio(square[:, None] + 0 * variance, variance),
    }
    _spread(variables, by_column, "")


def _add_errors(variables: Variables, estimates: Estimates, scales: scale.NoiseScale, factors: Array) -> None:
    """Standard errors, by the delta method for what is not linear in the estimates."""
    _, noise, square = estimates.values[:, :, None]
    second_error, noise_error, square_error = estimates.stderr
    covariance = estimates.covariance[:, :, :, None]
    variance = noise * factors
    total = (variance + square) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        by_noise, by_square = square * factors / total, -variance / total
        share = _linear_error(covariance, by_noise, by_square)
        snr = _linear_error(covariance, -square / (noise * variance), 1 / variance)
    by_column = {
        "gradient_norm_sq": square_error,
        "second_moment_trace": second_error,
        "noise_trace": noise_error,
        "noise_scale": scales.stderr,
        "conditional_gradient_variance": noise_error[:, None] * factors,
        "noise_share": share,
        "signal_to_noise": snr,
    }
    _spread(variables, by_column, "_stderr")


def _linear_error(covariance: Array, by_noise: Array, by_square: Array) -> Array:
    """Standard error of a function of T and A with these derivatives."""
    squared = (
        by_noise**2 * covariance[1, 1] + 2 * by_noise * by_square * covariance[1, 2] + by_square**2 * covariance[2, 2]
    )
    return np.sqrt(np.maximum(squared, 0))


def _spread(variables: Variables, by_column: dict[str, Array], suffix: str) -> None:
    for name, columns in by_column.items():
        extra = ("batch_size",) if columns.ndim == 2 else ()
        variables[f"{name}{suffix}"] = (extra, columns[-1])
        variables[f"layer_{name}{suffix}"] = (("layer", *extra), columns[:-1])


def _share(variance: Array, square: Array) -> Array:
    """Noise in the expected squared length of a step; NaN where there is neither noise nor gradient."""
    signal = np.maximum(square, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return variance / (variance + signal)


def _add_spectrum(variables: Variables, problem: Problem, top: int, seed: int) -> None:
    if not top:
        return
    covariance = NoiseCovariance(problem)
    pairs = covariance.top(top)
    norm, rank = covariance.frobenius_norm(seed=seed), covariance.effective_rank(seed=seed)
    variables["noise_eigenvalues"] = (("mode",), pairs.values)
    variables["noise_eigenvalue_residuals"] = (("mode",), pairs.residuals)
    variables["noise_frobenius_norm"] = ((), norm.value)
    variables["noise_effective_rank"] = ((), rank.value)
    if norm.stderr:
        variables["noise_frobenius_norm_stderr"] = ((), norm.stderr)
        variables["noise_effective_rank_stderr"] = ((), rank.stderr)


def _add_parameters(
    variables: Variables,
    coordinates: dict[str, Any],
    problem: Problem,
    indices: torch.Tensor | None,
    population: int | None,
) -> None:
    if indices is None:
        variance = parameter_variance(problem)
    else:
        variance, stderr = sampled_parameter_variance(problem, indices, population)
        variables["parameter_noise_variance_stderr"] = (("parameter",), _vector(problem, stderr))
    variables["parameter_noise_variance"] = (("parameter",), _vector(problem, variance))
    names = [name for name, p in problem.parameters.items() for _ in range(p.numel())]
    coordinates["parameter_name"] = ("parameter", np.array(names, dtype=str))


def _vector(problem: Problem, named: Named) -> Array:
    return problem.flatten(named).double().cpu().numpy()


def _layer_coordinates(problem: Problem, paths: dict[str, str]) -> dict[str, Any]:
    counts = [sum(problem.parameters[name].numel() for name in names) for names in problem.layers.values()]
    ways = ["; ".join(dict.fromkeys(paths[name] for name in names)) for names in problem.layers.values()]
    return {
        "layer_parameters": ("layer", np.array(counts, dtype=np.int64)),
        "layer_path": ("layer", np.array(ways, dtype=str)),
    }


def _choose(n: int, samples: int, seed: int) -> torch.Tensor:
    chosen = np.random.default_rng(seed).choice(n, size=samples, replace=False)
    return torch.as_tensor(np.sort(chosen))
