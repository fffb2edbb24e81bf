"""The verb `pac_bayes`: a bound on the error of the randomised classifier, and what makes it vacuous."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, quiet
from shotnoise.losses import Loss, right
from shotnoise.predict.generalization.diagonal import hessian_diagonal as exact_diagonal
from shotnoise.predict.generalization.relative_entropy import (
    CONSTANTS,
    GaussianKL,
    binary_kl,
    gaussian_kl,
    kl_inverse,
    log_constant,
)
from shotnoise.problem import Problem

Array = NDArray[np.float64]
Prior = float | Mapping[str, float] | ArrayLike
ErrorFunction = Callable[[Any, Any], Tensor]
SCALES = ("prior_scale", "curvature_scale")
ASSUMPTIONS = (
    "the samples are independent draws from the distribution that the bound speaks of",
    "the prior was fixed before the data were seen: initial_weights, prior_std and the grid of scales owe them nothing",
    "the loss lies in [0, 1]; it is that of the randomised classifier, not of the trained weights",
)


def pac_bayes(
    problem: Problem,
    weights: ArrayLike | None = None,
    initial_weights: ArrayLike = 0.0,
    prior_std: Prior = 1.0,
    delta: float = 0.05,
    *,
    prior_scales: Sequence[float] = (1.0,),
    curvature_scales: Sequence[float] | None = None,
    draws: int = 500,
    monte_carlo_delta: float = 0.01,
    error: ErrorFunction | None = None,
    hessian_diagonal: ArrayLike | None = None,
    hessian_diagonal_stderr: ArrayLike | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """A PAC-Bayes bound with the posterior N(w, 1/nu), nu_j = max(tau H_jj, 1/s_j^2), around the trained weights w.

    weights: (p,) in the order of the problem's parameters; None for the model's own. initial_weights: the centre of the
    prior, a number or (p,): 0 or the random initial weights, nothing that has seen the data. prior_std: s, one number,
    one per layer by name (`problem.layers`), or (p,). delta: the bound fails with at most this probability over the
    data. prior_scales: factors of prior_std to choose from; delta is shared among them (union bound).
    curvature_scales: tau; the posterior may depend on the data at will, so that they cost nothing but a share of
    monte_carlo_delta; default 1, as published, and n, the scale of Laplace's approximation. draws of the posterior
    estimate its training error, which exceeds its upper limit with probability at most monte_carlo_delta. error:
    (outputs, targets) -> (m,), in [0, 1]; default the 0-1 error of "cross_entropy" and "logistic". hessian_diagonal:
    (p,); None computes it exactly. An estimate leaves the bound valid (the posterior used is the posterior bounded);
    with hessian_diagonal_stderr the result tells how far the relative entropy may be from that of the exact diagonal.

    Returns, by (prior_scale, curvature_scale): `kl_divergence`, exact; its parts `weighted_frobenius`,
    `effective_curvature`, `shrinkage`; `kl_divergence_upper`, the paper's (106); `curved_directions`, where H_jj
    crosses the prior's precision; `posterior_error` with `_stderr` and `posterior_error_bound`; by (constant, ..)
    `kl_budget`, the right-hand side in nats, `risk_bound`, its inversion, and `risk_bound_pinsker`, the cruder closed
    form. `best_risk_bound` with `best_prior_scale`, `best_curvature_scale` holds with probability 1 - delta -
    monte_carlo_delta. Attributes: `vacuity` says whether the bound beats guessing and which term is to blame;
    `assumptions`; `confidence`.

    Costs the diagonal (passes as many as outputs for ReLU chains, else a Hessian-vector product per parameter) and a
    pass over the data per draw and pair of scales. Raises InputError for delta outside (0, 1), deviations that are
    not positive, losses outside [0, 1]; warns where the prior's centre is the trained weights.
    Source: Theorem 4 and Corollary 4 of Li, Gu, Zhou, Chen, Banerjee, with the exact relative entropy, inverted.

    >>> x = torch.tensor([[2.0], [-2.0]] * 50)
    >>> line = torch.nn.Linear(1, 2, bias=False)
    >>> found = pac_bayes(Problem(line, "cross_entropy", x, (x[:, 0] < 0).long()), [3.0, -3.0], curvature_scales=[1.0])
    >>> bool(found["best_risk_bound"] < 0.5), found.attrs["vacuity"].split(":")[0]
    (True, 'not vacuous')
    """
    n, p = problem.n, problem.parameter_count
    own = problem.replica()
    centre = _vector("weights", weights, own)
    if weights is not None:
        own.place(centre)
    start = _broadcast("initial_weights", initial_weights, p)
    std = prior_deviations(own, prior_std)
    taus = [1.0, float(n)] if curvature_scales is None else list(curvature_scales)
    _check(delta, monte_carlo_delta, draws, prior_scales, taus)
    if np.array_equal(start, centre):
        warnings.warn(
            "the prior's mean equals the trained weights: a prior that has seen the data makes the bound meaningless; "
            "pass the weights from before training, or 0",
            UserWarning,
            stacklevel=2,
        )
    diagonal = exact_diagonal(own) if hessian_diagonal is None else _broadcast("hessian_diagonal", hessian_diagonal, p)
    stderr = None
    if hessian_diagonal_stderr is not None:
        stderr = _broadcast("hessian_diagonal_stderr", hessian_diagonal_stderr, p)
    classifier, share = _Classifier.of(own, error), monte_carlo_delta / (len(prior_scales) * len(taus))
    noise = np.random.default_rng(seed).normal(size=(draws, p))
    posteriors = [[_Posterior.of(centre - start, std * s, diagonal, tau, stderr) for tau in taus] for s in prior_scales]
    rows = [[each.tested(classifier, centre, noise, share) for each in row] for row in posteriors]
    found = _variables(rows, n, delta / len(prior_scales), stderr is not None)
    bounds = np.asarray(found["risk_bound"][1])[CONSTANTS.index("exact")]
    i, j = np.unravel_index(int(bounds.argmin()), bounds.shape)
    found |= {
        "best_risk_bound": ((), float(bounds[i, j])),
        "best_prior_scale": ((), float(prior_scales[int(i)])),
        "best_curvature_scale": ((), float(taus[int(j)])),
        "hessian_diagonal": ("parameter", diagonal),
    }
    best = rows[int(i)][int(j)]
    attributes = results.provenance(own) | {
        "theory": "PAC-Bayes, inverted binary relative entropy (Seeger 2002, Maurer 2004), Gaussian posterior",
        "delta": delta,
        "monte_carlo_delta": monte_carlo_delta,
        "confidence": 1 - delta - monte_carlo_delta,
        "draws": draws,
        "seed": seed,
        "assumptions": "; ".join(ASSUMPTIONS),
        "hessian_diagonal_is": "exact" if hessian_diagonal is None else "supplied; the bound holds whatever its error",
        "vacuity": _vacuity(best, n, delta / len(prior_scales), classifier.chance),
    }
    coordinates = {
        "constant": list(CONSTANTS),
        "prior_scale": np.asarray(prior_scales, np.float64),
        "curvature_scale": np.asarray(taus, np.float64),
    }
    return results.dataset(found, coordinates, attributes)


def prior_deviations(problem: Problem, prior_std: Prior) -> Array:
    """s (p,) from one number, one per layer by name, or one per parameter."""
    if isinstance(prior_std, Mapping):
        layers = problem.layers
        if set(prior_std) != set(layers):
            raise InputError(f"prior_std: one deviation for each of the layers {list(layers)}; got {list(prior_std)}")
        of = {name: float(prior_std[layer]) for layer, names in layers.items() for name in names}
        std = np.concatenate([np.full(p.numel(), of[name]) for name, p in problem.parameters.items()])
    else:
        std = _broadcast("prior_std", prior_std, problem.parameter_count)
    if not (std > 0).all():
        raise InputError(f"prior_std: standard deviations must be positive; the smallest is {std.min():g}")
    return std


def posterior_kl(distance: Array, std: Array, diagonal: Array, tau: float) -> GaussianKL:
    """KL of the posterior with nu = max(tau H, 1/s^2) from the prior."""
    return gaussian_kl(distance, std**2, np.maximum(tau * diagonal, std**-2.0))


@dataclass(frozen=True)
class _Classifier:
    """Errors of the network on all samples at given weights."""

    evaluation: Evaluation
    parts: list[tuple[Any, Any]]
    error: ErrorFunction
    problem: Problem
    chance: float  # error of guessing uniformly among the classes; 1 where there are none

    @classmethod
    def of(cls, problem: Problem, error: ErrorFunction | None) -> "_Classifier":
        with quiet():
            evaluation = Evaluation(problem.model, problem.loss_spec)
            parts = [evaluation.place(problem.samples.batch(c)) for c in problem.chunks(None, problem.chunk_size)]
        if error is None and problem.loss_name == "logistic":
            return cls(evaluation, parts, partial(_wrong_label, problem.loss_spec), problem, 0.5)
        if error is None:
            whole = all(isinstance(y, Tensor) and not y.is_floating_point() for _, y in parts)
            if problem.loss_name != "cross_entropy" or not whole:
                raise InputError(
                    f"loss={problem.loss_name!r} has no 0-1 error; pass error=, a function (outputs, targets) -> (m,) "
                    "with values in [0, 1]"
                )
            with quiet(), torch.no_grad():
                classes = evaluation.outputs(parts[0][0]).shape[1]
            return cls(evaluation, parts, _zero_one, problem, 1 - 1 / classes)
        return cls(evaluation, parts, error, problem, 1.0)

    def mean_error(self, weights: Array) -> float:
        leaves = self.problem.unflatten(torch.as_tensor(weights, dtype=self.problem.dtype, device=self.problem.device))
        total = 0.0
        with quiet(), torch.no_grad():
            for x, y in self.parts:
                values = self.error(self.evaluation.outputs(x, leaves), y).double().flatten()
                if not bool(((values >= 0) & (values <= 1)).all()):
                    raise InputError(
                        f"error: values from {float(values.min()):g} to {float(values.max()):g}; the bound needs a "
                        "loss in [0, 1], such as the 0-1 error (cross-entropy is not bounded)"
                    )
                total += float(values.sum())
        return total / self.problem.n


@dataclass(frozen=True)
class _Posterior:
    """One posterior: its relative entropy from the prior, its training error."""

    kl: GaussianKL
    kl_stderr: float
    curvature_stderr: float
    precision: Array
    error: float = 0.0
    error_stderr: float = 0.0
    error_bound: float = 1.0

    @classmethod
    def of(cls, distance: Array, std: Array, diagonal: Array, tau: float, stderr: Array | None) -> "_Posterior":
        precision = np.maximum(tau * diagonal, std**-2.0)
        kl = posterior_kl(distance, std, diagonal, tau)
        if stderr is None:
            return cls(kl, 0.0, 0.0, precision)
        curved = precision * std**2 > 1
        relative = (tau * stderr / precision)[curved]
        slope = 0.5 * (1 - 1 / (precision * std**2)[curved])
        return cls(kl, float(np.linalg.norm(slope * relative)), float(np.linalg.norm(relative)), precision)

    def tested(self, classifier: _Classifier, centre: Array, noise: Array, delta: float) -> "_Posterior":
        errors = np.array([classifier.mean_error(centre + z / np.sqrt(self.precision)) for z in noise])
        mean = float(np.clip(errors.mean(), 0, 1))
        limit = kl_inverse(mean, np.log(1 / delta) / len(noise))
        spread = float(errors.std(ddof=1) / np.sqrt(len(noise)))
        return _Posterior(self.kl, self.kl_stderr, self.curvature_stderr, self.precision, mean, spread, limit)

    def budget(self, n: int, delta: float, constant: str) -> float:
        return (self.kl.value + log_constant(n, constant) - np.log(delta)) / n


def _variables(rows: list[list[_Posterior]], n: int, delta: float, estimated: bool) -> dict[str, Any]:
    def table(of: Callable[[_Posterior], float]) -> tuple[tuple[str, ...], Array]:
        return SCALES, np.array([[of(each) for each in row] for row in rows], np.float64)

    budget = np.array([[[each.budget(n, delta, c) for each in row] for row in rows] for c in CONSTANTS])
    _, limit = table(lambda each: each.error_bound)
    risk = np.array([[kl_inverse(p, b) for p, b in zip(limit.ravel(), one.ravel(), strict=True)] for one in budget])
    found = {
        "kl_divergence": table(lambda each: each.kl.value),
        "kl_divergence_upper": table(lambda each: each.kl.upper),
        "weighted_frobenius": table(lambda each: each.kl.weighted_frobenius),
        "effective_curvature": table(lambda each: each.kl.effective_curvature),
        "shrinkage": table(lambda each: each.kl.shrinkage),
        "curved_directions": table(lambda each: each.kl.curved_directions),
        "posterior_error": table(lambda each: each.error),
        "posterior_error_stderr": table(lambda each: each.error_stderr),
        "posterior_error_bound": table(lambda each: each.error_bound),
        "kl_budget": (("constant", *SCALES), budget),
        "risk_bound": (("constant", *SCALES), risk.reshape(budget.shape)),
        "risk_bound_pinsker": (("constant", *SCALES), np.minimum(1, limit + np.sqrt(budget / 2))),
    }
    if estimated:
        found["kl_divergence_stderr"] = table(lambda each: each.kl_stderr)
        found["effective_curvature_stderr"] = table(lambda each: each.curvature_stderr)
    return found


def _vacuity(best: _Posterior, n: int, delta: float, chance: float) -> str:
    """Does it beat guessing, and if not, which term is to blame."""
    log_term = (log_constant(n) - np.log(delta)) / n
    trivial = "the error of guessing" if chance < 1 else "the largest loss there is"
    parts = {
        "the weighted distance from the prior's mean": best.kl.weighted_frobenius / (2 * n),
        "the effective curvature": best.kl.effective_curvature / (2 * n),
        "the logarithmic term of few samples": log_term,
    }
    budget = best.budget(n, delta, "exact")
    bound = kl_inverse(best.error_bound, budget)
    if bound < chance:
        return f"not vacuous: {bound:.4g} is below {chance:.4g}, {trivial}"
    error = best.error_bound
    beside = error if error < chance else 0.0
    guilty = [name for name, part in parts.items() if kl_inverse(beside, part) >= chance]
    if error >= chance:
        guilty.append("the training error of the randomised classifier")
    if guilty:
        blame = f"enough by {'itself is' if len(guilty) == 1 else 'themselves are'} {' and '.join(guilty)}"
    else:
        blame = f"no term is enough by itself, the largest is {max(parts, key=lambda name: parts[name])}"
    allowed = f"{binary_kl(error, chance):.3g} nats" if error < chance else "no budget"
    listed = ", ".join(f"{part:.3g} from {name}" for name, part in parts.items())
    return (
        f"vacuous: {bound:.4g} is not below {chance:.4g}, {trivial}; {blame}. The budget is {budget:.4g} "
        f"nats per sample ({listed}), where {allowed} would do beside a training error of at most {error:.3g}"
    )


def _zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    wrong = (outputs.argmax(1) != targets).double()
    return wrong.flatten(1).mean(1) if wrong.ndim > 1 else wrong


def _wrong_label(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    return (~right(loss, outputs, targets)).double()


def _vector(name: str, values: ArrayLike | None, problem: Problem) -> Array:
    if values is None:
        return np.asarray(problem.flatten(problem.parameters).detach().double().cpu().numpy())
    found = _broadcast(name, values, problem.parameter_count)
    if np.ndim(values) != 1:
        raise InputError(f"{name}: {problem.parameter_count} numbers, one per parameter; got one")
    return found


def _broadcast(name: str, values: ArrayLike, p: int) -> Array:
    found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    if found.shape not in ((), (p,)) or not np.isfinite(found).all():
        raise InputError(f"{name}: a finite number, or {p} of them, one per parameter; got shape {found.shape}")
    return np.broadcast_to(found, (p,)).copy()


def _check(delta: float, monte_carlo: float, draws: int, scales: Sequence[float], taus: Sequence[float]) -> None:
    for name, value in (("delta", delta), ("monte_carlo_delta", monte_carlo)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value}: a probability between 0 and 1, such as 0.05")
    if draws < 2:
        raise InputError(f"draws={draws}: at least 2 draws of the posterior")
    if not len(scales) or not all(0 < s < np.inf for s in scales):
        raise InputError(f"prior_scales={list(scales)}: at least one, each positive")
    if not len(taus) or not all(0 <= t < np.inf for t in taus):
        raise InputError(f"curvature_scales={list(taus)}: at least one, none negative (0: the prior's own width)")
