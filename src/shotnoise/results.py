"""What every verb returns: an xarray.Dataset in the glossary's names, with its provenance, saved without loss."""

import hashlib
import json
import math
import os
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from zarr.storage import ZipStore

from shotnoise.errors import DataError, InputError
from shotnoise.problem import Problem

DIGEST = "shotnoise_digest"  # of the values in a store

# What noise_scale_status can say.
EXACT, ESTIMATED, UNRESOLVED = "exact", "estimated", "not resolvable with this budget"

# Every variable of a result: what it is, and its unit ("" is that of the squared gradient or none).
GLOSSARY: dict[str, tuple[str, str]] = {
    "loss": ("mean training loss", ""),
    "gradient_norm_sq": ("squared norm of the full gradient", ""),
    "second_moment_trace": ("mean squared norm of the per-sample gradients", ""),
    "noise_trace": ("trace of the per-sample gradient covariance (divisor n)", ""),
    "conditional_gradient_variance": ("variance of the minibatch gradient at these weights", ""),
    "noise_share": ("noise in the expected squared length of the minibatch gradient", ""),
    "signal_to_noise": ("squared gradient norm over variance of the minibatch gradient", ""),
    "noise_scale": ("gradient noise scale", "samples"),
    "noise_scale_low": ("gradient noise scale, lower confidence limit", "samples"),
    "noise_scale_high": ("gradient noise scale, upper confidence limit", "samples"),
    "noise_scale_status": ("how the noise scale was had", ""),
    "noise_scale_samples_needed": ("samples that would bound the noise scale, roughly", "samples"),
    "noise_eigenvalues": ("largest eigenvalues of the per-sample gradient covariance", ""),
    "noise_eigenvalue_residuals": ("residual norms of the eigenpairs", ""),
    "noise_frobenius_norm": ("Frobenius norm of the per-sample gradient covariance", ""),
    "noise_effective_rank": ("participation ratio of the noise eigenvalues", ""),
    "parameter_noise_variance": ("variance over samples of a gradient entry", ""),
    "hessian_noise_scale": ("curvature-weighted noise scale Tr(H Sigma) / g^T H g", "samples"),
    "gradient_variance": ("variance of the minibatch gradient over runs", ""),
    "full_gradient_variance": ("variance of the full gradient over runs", ""),
    "minibatch_loss": ("loss of the minibatch", ""),
    "gradient_norm": ("norm of the full gradient", ""),
    "minibatch_gradient_norm": ("norm of the minibatch gradient", ""),
    "gradient_cosine": ("cosine between successive minibatch gradients", ""),
    "accuracy": ("share of the training data classified right", ""),
    "weights": ("weights", ""),
    "loss_change": ("change of the full loss by one update on a redrawn batch", ""),
    "conditional_loss_change_variance": ("variance over batches of the change of the loss, at these weights", ""),
    "loss_change_spread": ("geometric mean over runs of the standard deviation of the change of the loss", ""),
    "window_runs": ("runs near this quantile of the loss", "runs"),
    "phase_kind": ("whether the spread rises or falls", ""),
    "phase_start": ("step at which the phase begins", "steps"),
    "phase_end": ("step at which the phase ends", "steps"),
    "phase_factor": ("spread at the end of the phase over that at its start", ""),
    "phase_t": ("paired t statistic of the change over the phase", ""),
    "phase_count": ("phases seen", ""),
    "phase_runs": ("runs of which the phases are", "runs"),
    "divergence_step": ("step at which the run diverged (-1: never)", "steps"),
    "runs_excluded": ("runs diverged at or before this step", "runs"),
    "pairs": ("pairs of runs compared", "runs"),
    "weights_variance": ("trace of the covariance of the weights", ""),
    "mean_weights": ("mean of the weights", ""),
    "gradient_variance_leading": ("gradient variance in units of kappa, to first order", ""),
    "combined_gradient_norm_sq": ("mean squared norm of the combination of per-sample gradients", ""),
    "loss_variance": ("variance of the loss over runs", ""),
    "critical_learning_rate": ("learning rate from which on second moments grow without limit", ""),
    "mean_critical_learning_rate": ("learning rate from which on the mean diverges", ""),
    "weight_covariance": ("stationary covariance of the weights", ""),
    "noise_covariance": ("covariance of the minibatch gradient at fixed weights", ""),
    "train_loss": ("mean training loss in the stationary state, with the penalty", ""),
    "test_loss": ("mean loss on clean inputs and labels in the stationary state", ""),
    "kappa": ("isotropic enhancement of the fluctuation, S tr(K Sigma) over the label variance", ""),
    "critical_batch_size": ("batch size above which second moments stay bounded", "samples"),
    "second_moment_rate": ("factor per step by which second moments approach their limit", ""),
    "feature_fluctuation": ("trace of feature covariance times weight covariance", ""),
    "feature_fluctuation_exact": ("trace of feature covariance times weight covariance, exactly", ""),
    "relative_error": ("relative error of an approximation", ""),
    "critical_width": ("number of features from which on second moments diverge", ""),
    "scaled_learning_rate": ("learning rate scaled with the batch size", ""),
    "fluctuation_ratio": ("fluctuation after scaling the learning rate with the batch size, over that before", ""),
    "proposed_learning_rate": ("learning rate that keeps the fluctuation as it was", ""),
    "optimal_l2": ("weight decay of least test loss", ""),
    "lowest_l2": ("weight decay down to which second moments exist", ""),
    "highest_l2": ("weight decay up to which second moments exist", ""),
    "test_loss_undecayed": ("mean loss on clean inputs and labels without weight decay", ""),
    "multiplicative_share": ("part of the gradient noise that the fluctuation itself makes", ""),
    "newton_learning_rate": ("learning rate of the Newton method that the method amounts to", ""),
    "tail_index": ("index of the power law in the tail of the stationary law", ""),
    "tail_index_paper": ("tail index by 2 S / (a lambda) - S", ""),
    "tail_index_continuous": ("tail index by 2 S / (a lambda) + 1, in continuous time", ""),
    "tail_index_low": ("tail index, lower confidence limit", ""),
    "tail_index_high": ("tail index, upper confidence limit", ""),
    "highest_moment": ("largest whole order of a moment that exists", ""),
    "lyapunov_exponent": ("mean logarithmic growth of a perturbation, per step", ""),
    "tail_threshold": ("value beyond which the tail was taken", ""),
    "kolmogorov_distance": ("largest distance between the tail and the power law", ""),
    "dissipation": ("mean inner product of weights and gradient", ""),
    "fluctuation": ("mean squared velocity times (learning rate / 2) (1 + momentum)", ""),
    "dissipation_ratio": ("dissipation over fluctuation, one in a stationary state", ""),
    "drift_z": ("change between the halves of the run, in standard errors", ""),
    "batch_correlation": ("correlation of successive batch means", ""),
    "kind": ("kind of minimum", ""),
    "mode_curvature": ("eigenvalue of the Hessian", ""),
    "mode_vectors": ("eigenvectors of the Hessian", ""),
    "mode_noise": ("covariance of the minibatch gradient at the minimum, between modes of the Hessian", ""),
    "mode_fluctuation": ("stationary covariance of the weights, between modes of the Hessian", ""),
    "noise_error": ("relative error of the rule for the noise at a minimum", ""),
    "fluctuation_error": ("relative error of the fluctuation by that rule", ""),
    "loss_spread": ("standard deviation over mean of the losses of the samples", ""),
    "gauss_newton_error": ("relative error of the Gauss-Newton matrix against the Hessian", ""),
    "rule_status": ("how far the rule for the noise at a minimum holds", ""),
    "held_out_loss": ("mean loss on data that was not trained on", ""),
    "held_out_error": ("share of wrong answers on data that was not trained on", ""),
    "loss_advantage": ("mean training loss less that of another method, run by run", ""),
    "chosen_learning_rate": ("learning rate, or 1/L, that was best in other runs", ""),
    "chosen_at_edge": ("whether the best rate was at the end of the grid", ""),
    "relative_cost": ("CPU time per step over that of the first method", ""),
    "status": ("whether a stationary state exists", ""),
    "hessian_eigenvalues": ("largest eigenvalues of the Hessian", ""),
    "hessian_lowest_eigenvalues": ("smallest eigenvalues of the Hessian", ""),
    "second_moment_eigenvalues": ("largest eigenvalues of the second moment of the per-sample gradients", ""),
    "residual_eigenvalues": ("largest eigenvalues of second moment minus Hessian", ""),
    "residual_lowest_eigenvalues": ("smallest eigenvalues of second moment minus Hessian", ""),
    "gauss_newton_eigenvalues": ("largest eigenvalues of the Gauss-Newton matrix", ""),
    "subnetwork_hessian_eigenvalues": ("largest eigenvalues of the Hessian from this layer on", ""),
    "eigenpair_residuals": ("residual norms of the eigenpairs", ""),
    "eigenpair_converged": ("whether the eigenpairs have converged", ""),
    "hessian_spectrum": ("all eigenvalues of the Hessian", ""),
    "second_moment_spectrum": ("all eigenvalues of the second moment of the per-sample gradients", ""),
    "residual_spectrum": ("all eigenvalues of second moment minus Hessian", ""),
    "gauss_newton_spectrum": ("all eigenvalues of the Gauss-Newton matrix", ""),
    "hessian_vectors": ("leading eigenvectors of the Hessian", ""),
    "second_moment_vectors": ("leading eigenvectors of the second moment of the per-sample gradients", ""),
    "hessian_trace": ("trace of the Hessian", ""),
    "hessian_frobenius_norm": ("Frobenius norm of the Hessian", ""),
    "second_moment_frobenius_norm": ("Frobenius norm of the second moment of the per-sample gradients", ""),
    "residual_frobenius_norm": ("Frobenius norm of second moment minus Hessian", ""),
    "residual_norm": ("largest modulus of an eigenvalue of second moment minus Hessian", ""),
    "gauss_newton_trace": ("trace of the Gauss-Newton matrix", ""),
    "second_moment_ratio": ("Frobenius norm of the second moment over that of the Hessian", ""),
    "second_moment_top_share": ("share of the trace of the second moment in its leading eigenvalues", ""),
    "hessian_diagonal": ("diagonal of the Hessian", ""),
    "spectral_density": ("density of the eigenvalues of the Hessian", ""),
    "principal_angle_cosines": ("cosines of the principal angles between the leading eigenspaces", ""),
    "principal_angle_sines": ("sines of the principal angles between the leading eigenspaces", ""),
    "subspace_overlap": ("overlap of the leading eigenspaces of this many dimensions", ""),
    "subspace_overlap_chance": ("overlap that random spaces would have", ""),
    "subspace_distance": ("Frobenius norm of the sines between the leading eigenspaces", ""),
    "hessian_gap_ratio": ("eigenvalue of the Hessian over the next one", ""),
    "eigenvector_sines": ("sine of the angle between an eigenvector of the Hessian and of the second moment", ""),
    "davis_kahan_bound": ("Davis-Kahan bound on the sine between two eigenvectors", ""),
    "yu_wang_samworth_bound": ("Yu-Wang-Samworth bound on the distance of the leading eigenspaces", ""),
    "scaled_bound": ("Yu-Wang-Samworth bound after the best rescaling of the second moment", ""),
    "residual_bound": ("residual bound on the distance of the leading eigenspaces", ""),
    "davis_kahan_status": ("what the Davis-Kahan bound says", ""),
    "subspace_bound_status": ("which bound on the distance of the leading eigenspaces says anything", ""),
    "gradient_share": ("share of the gradient in the leading eigenspace of the Hessian", ""),
    "eigenpair_error": ("largest residual of the eigenpairs, relative to the largest eigenvalue", ""),
    "loading": ("share of an eigenvector of the Hessian in the layer over the layer's share of the parameters", ""),
    "is_decreasing": ("whether a larger batch never makes it larger", ""),
    "largest_increase": ("largest relative increase from one batch size to the next", ""),
    "doubling_ratio": ("value at twice the batch size over the value", ""),
    "law_ratio": ("gradient variance over its law for large batches", ""),
    "law_holds_from": ("batch size from which on the law for large batches holds", "samples"),
    "noise_floor": ("M in var <= M + M_V ||grad L||^2", ""),
    "noise_slope": ("M_V in var <= M + M_V ||grad L||^2", ""),
    "full_gradient_variance_leading": ("variance of the full gradient in units of kappa, to first order", ""),
    "loss_variance_leading": ("variance of the loss in units of kappa, to first order", ""),
    "gradient_variance_second": ("gradient variance, coefficient of kappa^2", ""),
    "full_gradient_variance_second": ("variance of the full gradient, coefficient of kappa^2", ""),
    "gradient_variance_skewness": ("gradient variance, coefficient of the factor for third moments", ""),
    "full_gradient_variance_skewness": ("variance of the full gradient, coefficient of that for third moments", ""),
    "loss_leading": ("mean training loss above gradient descent's in units of kappa, to first order", ""),
    "gradient_descent_loss": ("training loss along gradient descent", ""),
    "batch_coefficient": ("coefficient of a power of 1/b", ""),
    "one_over_b_law": ("first coefficient over the batch size", ""),
    "batch_exponent": ("exponent of the fall with the batch size", ""),
    "local_exponent": ("that exponent between neighbouring batch sizes", ""),
    "surrogate_gap": ("distance of the layer's gradient from that of the polynomial network", ""),
    "surrogate_gap_bound": ("what that distance can be at most", ""),
    "activation_error": ("largest error of the polynomial for the activation", ""),
    "slope_error": ("largest error of the polynomial for the activation's derivative", ""),
    "next_order": ("next order of small noise relative to the first", ""),
    "smoothness": ("Lipschitz constant of the full gradient along a step", ""),
    "loss_change_lower": ("lower end of the interval of the expected change of the loss", ""),
    "loss_change_upper": ("upper end of the interval of the expected change of the loss", ""),
    "loss_change_bound": ("change of the loss that is exceeded with at most this probability", ""),
    "loss_change_mean": ("mean change of the loss over batches", ""),
    "loss_change_variance": ("variance of the change of the loss over batches", ""),
    "loss_change_quantile": ("quantile of the change of the loss over batches", ""),
    "noise_law_quantile": ("quantile of the change of the loss to second order under Gaussian noise", ""),
    "second_order_mean": ("mean change of the loss to second order", ""),
    "second_order_variance": ("variance of the change of the loss to second order", ""),
    "second_order_error": ("root mean square error of the second order over the spread of the change", ""),
    "exceedance": ("share of batches beyond the bound", ""),
    "bound_slack": ("distance of the bound from the quantile, in standard deviations", ""),
    "smoothness_violations": ("share of batches that break the smoothness inequality", ""),
    "loss_change_limit": ("change of the loss that no batch exceeds", ""),
    "learning_rate": ("learning rate", ""),
    "martingale": ("loss less its first value and the expected changes up to here", ""),
    "martingale_bound": ("size that the martingale part of the loss exceeds with at most this probability", ""),
    "martingale_exceedance": ("share of runs whose martingale part lies beyond the bound", ""),
    "loss_excess": ("loss less its first value and the upper ends of the expected changes", ""),
    "loss_excess_bound": ("excess of the loss that is exceeded with at most this probability", ""),
    "lipschitz": ("Lipschitz constant of the loss", ""),
    "noise_norm": ("largest eigenvalue of the per-sample gradient covariance", ""),
    "gradient_diameter": ("largest distance of two per-sample gradients", ""),
    "loss_deviation": ("loss less its mean over runs", ""),
    "deviation_rate": ("loss less its mean, over learning rate times steps by two", ""),
    "largest_constant": ("largest constant with which the printed bound would hold", ""),
    "kl_divergence": ("relative entropy of the posterior from the prior", "nats"),
    "kl_divergence_upper": ("upper bound of the relative entropy of the posterior from the prior", "nats"),
    "weighted_frobenius": ("squared distance from the prior's mean in units of its variance", ""),
    "effective_curvature": ("sum of ln(posterior over prior precision)", "nats"),
    "shrinkage": ("sum of prior over posterior precision less one", ""),
    "curved_directions": ("directions whose curvature crosses the prior's precision", ""),
    "posterior_error": ("training error of the randomised classifier", ""),
    "posterior_error_bound": ("upper confidence limit of the training error of the randomised classifier", ""),
    "kl_budget": ("right-hand side of the PAC-Bayes bound", "nats per sample"),
    "risk_bound": ("bound on the error of the randomised classifier on new data", ""),
    "risk_bound_pinsker": ("the same by Pinsker's inequality", ""),
    "best_risk_bound": ("smallest bound on the error of the randomised classifier", ""),
    "best_prior_scale": ("factor of the prior's deviations in the smallest bound", ""),
    "best_curvature_scale": ("factor of the curvature in the smallest bound", ""),
    "output_change": ("largest change of an output", ""),
    "advice_value": ("number that the advice is about", ""),
    "advice_low": ("number that the advice is about, lower confidence limit", ""),
    "advice_high": ("number that the advice is about, upper confidence limit", ""),
    "settled_covariance": ("the part of the covariance of the weights that has a limit", ""),
    "covariance_growth": ("covariance of the weights gained along noisy flat directions", "per update"),
    "position_momentum_covariance": ("stationary covariance of weights and momenta", ""),
    "momentum_covariance": ("stationary covariance of the momenta", ""),
    "weight_autocovariance": ("covariance of later weights with earlier ones", ""),
    "drift_matrix": ("matrix A of the linear drift -A theta", ""),
    "diffusion_matrix": ("covariance of the noise per unit time", ""),
    "rotation": ("antisymmetric part of the stationary flow", ""),
    "circulation": ("matrix of the mean velocity J / p", ""),
    "velocity_curl": ("curl of the mean velocity J / p", ""),
    "rotation_rates": ("angular velocities of the circulation", ""),
    "entropy_production": ("entropy produced per unit time", ""),
    "entropy_per_step": ("entropy produced per update of the discrete chain", ""),
    "modified_hessian": ("Hessian of the loss whose Gibbs state the stationary law is", ""),
    "temperature": ("temperature of the modified loss", ""),
    "commutator": ("commutator of Hessian and noise, relative", ""),
    "density": ("probability density of the weights", ""),
    "probability_current": ("probability current", ""),
    "current_curl": ("curl of the probability current", ""),
    "largest_net_flux": ("largest net flux between cells over the largest flux one way", ""),
    "leak": ("mass estimated outside the grid", ""),
    "log_loss": ("mean logarithm of the training loss", ""),
    "distance": ("difference from the largest amplification", "standard errors"),
    "noise_factor": ("noise in units of the population's per-sample covariance", ""),
    "per_sample_covariance": ("covariance of one sample's gradient (divisor n)", ""),
    "noise_correlation": ("correlation of the gradient noise of two updates", ""),
    "weight_covariance_fresh": ("stationary covariance of the weights under fresh batches", ""),
    "variance_ratio": ("variance of the weights over that under fresh batches, by mode of the Hessian", ""),
    "mean_variance_ratio": ("variance of the weights over that under fresh batches, mean over an epoch", ""),
    "total_variation": ("largest error of a probability", ""),
    "asymmetry": ("antisymmetric part of the field that must be a gradient, relative", ""),
    "reversible": ("whether there is a stationary density without current", ""),
    "posterior_covariance": ("covariance of the Laplace posterior", ""),
    "posterior_divergence": ("divergence of the stationary law from the posterior", "nats"),
    "least_divergence": ("divergence of the stationary law from the posterior at the best learning rate", "nats"),
    "optimal_learning_rate": ("learning rate of least divergence from the posterior", ""),
    "tempered_divergence": ("divergence of the stationary law from the nearest tempered posterior", "nats"),
    "inverse_temperature": ("inverse temperature of the nearest tempered posterior", ""),
    "value": ("what a check found", ""),
    "threshold": ("what a check allows", ""),
    "passed": ("whether a check is passed", ""),
    "reason": ("what a check looks at", ""),
    "overflow_step": ("step from which second moments overflow (-1: never)", "steps"),
}

# What follows the name of a quantity, and what it makes of its meaning.
SUFFIXES = {
    "_stderr": "{}, standard error",
    "_variance": "{}, variance over runs",
    "_quantile": "{}, quantiles over runs",
    "_difference": "{}, difference between paired runs",
    "_top_share": "{}, share that the largest 1 % of runs carry",
}


def dataset(variables: Mapping[str, Any], coordinates: Mapping[str, Any], attributes: Mapping[str, Any]) -> xr.Dataset:
    """A result whose variables carry their meaning and unit from the glossary."""
    for name in variables:
        _ = GLOSSARY[name.removesuffix("_stderr").removeprefix("layer_")]  # a word that is not there is a KeyError
    return describe(xr.Dataset(dict(variables), dict(coordinates), dict(attributes)))


def describe(result: xr.Dataset) -> xr.Dataset:
    """`result` with a meaning and a unit on every variable: those of the glossary, or the bare name of a user's own."""
    for name, variable in result.data_vars.items():
        meaning, unit = meaning_of(str(name))
        variable.attrs |= {"long_name": meaning, "units": unit}
    return result


def meaning_of(name: str) -> tuple[str, str]:
    """Meaning and unit of a variable.

    >>> meaning_of("loss_stderr")
    ('mean training loss, standard error', '')
    """
    if name in GLOSSARY:
        return GLOSSARY[name]
    if name.startswith("layer_") and not name.endswith("_stderr"):
        meaning, unit = meaning_of(name.removeprefix("layer_"))
        return f"{meaning}, by layer", unit
    for suffix, words in SUFFIXES.items():
        if name.endswith(suffix):
            meaning, unit = meaning_of(name.removesuffix(suffix))
            return words.format(meaning), unit
    return name, ""


def provenance(problem: Problem) -> dict[str, Any]:
    """Where a result comes from: versions, fingerprints of weights and data, precision, sizes, time."""
    return {
        "model": type(problem.model).__name__,
        "parameters": problem.parameter_count,
        "loss_name": problem.loss_name,
        "l2": problem.l2,
        "n_samples": problem.n,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": str(problem.device),
        **problem.fingerprints(),
        "shotnoise_version": _own_version(),
        "torch_version": torch.__version__,
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache  # reading the package's metadata takes a millisecond
def _own_version() -> str:
    return version("shotnoise")


def along_steps(parts: Sequence[tuple[int, xr.Dataset]], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Results at several steps of a training joined along `step`, the fingerprint of each step's weights kept."""
    steps = [step for step, _ in parts]
    whole = xr.concat([part for _, part in parts], xr.Variable("step", steps), data_vars="all", coords="minimal",
                      compat="override", join="exact", combine_attrs="drop_conflicts")  # fmt: skip
    fingerprints = [str(part.attrs["model_fingerprint"]) for _, part in parts]
    whole = whole.assign_coords(model_fingerprint=("step", np.array(fingerprints, dtype=str)))
    whole.attrs |= {"created": parts[-1][1].attrs["created"], **attributes}
    return whole


def save(result: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a result as a Zarr store: a folder, or one file if `path` ends in .zip. Overwrites another store whole.

    xarray opens it without shotnoise (`xarray.open_zarr`); `load` gives it back equal and with equal attributes.
    The store has one more attribute, a digest by which `load` finds damage.
    """
    path = Path(path)
    if path.exists() and not _is_store(path):
        raise InputError(f"{path} exists and is not a Zarr store; choose another path, nothing was overwritten")
    try:
        with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=f".{path.name}.") as folder:
            fresh = Path(folder) / path.name
            _write(result, fresh if path.suffix != ".zip" else fresh.with_suffix(".zarr"))
            if path.suffix == ".zip":
                _pack(fresh.with_suffix(".zarr"), fresh)
            _exchange(fresh, path, Path(folder) / "before")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose a folder you may write to") from error
    return path


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what `save` wrote, into memory. Raises DataError where there is no such store, or a damaged one."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a Zarr store written by shotnoise.save")
    try:
        if path.is_file():
            with ZipStore(path, mode="r") as store:
                result = xr.open_zarr(store, consolidated=False, chunks=None).load()
        else:
            result = xr.open_zarr(path, consolidated=False, chunks=None).load()
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a Zarr store ({error}); it may be damaged or something else"
        ) from error
    written = result.attrs.pop(DIGEST, None)
    if written is not None and written != _digest(result):  # a chunk that is gone reads as if it were empty
        raise DataError(f"{path} is damaged: its values are not those that were saved; make the result again")
    return result


def to_json(result: xr.Dataset) -> str:
    """A result for machines: variables with dimensions and values, coordinates, attributes.

    Strict JSON: numbers that are not finite are the strings "NaN", "Infinity", "-Infinity".
    """

    def entry(array: xr.DataArray) -> dict[str, Any]:
        return {
            "dims": list(array.dims),
            "values": _plain(array.values.tolist()),
            "attrs": _plain(dict(array.attrs)),
        }

    content = {
        "coordinates": {str(name): entry(c) for name, c in result.coords.items()},
        "variables": {str(name): entry(v) for name, v in result.data_vars.items()},
        "attributes": _plain(dict(result.attrs)),
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _write(result: xr.Dataset, path: Path) -> None:
    with warnings.catch_warnings():
        # Text has no final form in Zarr 3 yet; xarray and zarr read back what they wrote.
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        result.assign_attrs({DIGEST: _digest(result)}).to_zarr(path, mode="w", consolidated=False)


def _digest(result: xr.Dataset) -> str:
    digest = hashlib.sha256()
    for name in sorted(map(str, result.variables)):
        values = result.variables[name].values
        content = values.tobytes() if values.dtype.kind in "fiub" else json.dumps(values.astype(str).tolist()).encode()
        digest.update(f"{name}{values.shape}".encode() + content)
    return digest.hexdigest()


def _exchange(fresh: Path, path: Path, before: Path) -> None:
    """Put `fresh` in the place of `path`, and what was there at `before`; undone if it cannot be finished."""
    if path.exists():
        os.replace(path, before)
    try:
        os.replace(fresh, path)
    except OSError:
        if before.exists():
            os.replace(before, path)
        raise


def _pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:  # the chunks inside are compressed already
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder))


def _is_store(path: Path) -> bool:
    if path.is_dir():
        return (path / "zarr.json").is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "zarr.json" in archive.namelist()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
