"""The verb `one_step`: what is promised of one update of SGD, beside what it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.bounds import batches as batching
from shotnoise.predict.bounds import tails
from shotnoise.predict.bounds.second_order import SecondOrder
from shotnoise.predict.bounds.smoothness import STEPS, smoothness_on_steps
from shotnoise.predict.bounds.step import BatchDeviation, Step, batch_tails
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling, WithReplacement

Array = NDArray[np.float64]
MOST_NUMBERS = 2**27  # of the matrix of per-sample gradients: 1 GiB
MOST_PRODUCTS = 600  # Hessian-vector products that the second order may cost
ROUNDING = 1e-9  # of the spread of the changes: less is no violation
NOISE_FORMS = (tails.SUB_GAMMA, tails.BERNSTEIN, tails.CHERNOFF, tails.PRINTED)
BATCH_FORMS = {"batches, bernstein": tails.BERNSTEIN, "batches, chernoff": tails.CHERNOFF}
BOUNDS = (*NOISE_FORMS, *BATCH_FORMS, "batches, talagrand")
SIDES = ("upper", "lower")
NOISES = ("batches", "gaussian", "sphere")


def one_step(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    *,
    smoothness: float | None = None,
    sampling: Sampling | None = None,
    tail_probabilities: Sequence[float] = (0.1, 0.05, 0.01, 0.001),
    draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Bounds on the change of the full loss by one update w <- w - learning_rate g_batch, over its distribution.

    smoothness: a Lipschitz constant of the full gradient on every segment a step can take; what follows holds if it is
    one. None takes the largest curvature found on the longest of the steps drawn, an estimate from below that certifies
    nothing (with kinks, as of ReLU, there may be no such constant). sampling: default WithReplacement().
    draws: real batches to take if there are more than 5,000 of them; else all are enumerated, and nothing is random.

    Returns, at the problem's weights:

    - `loss_change_lower`, `loss_change_upper` (form): the interval of the expected change, form "batch" with Tr M of
      the batch's gradient, "printed" with that of one sample.
    - `loss_change_bound` (side, bound, tail_probability): a change that is exceeded with at most this probability.
      "sub-gamma", "bernstein", "chernoff" and "printed, c = 1/10" hold under Gaussian or spherical noise of covariance
      kappa Sigma and say nothing about real batches; "batches, bernstein", "batches, chernoff" and "batches, talagrand"
      hold for those. `loss_change_limit` (side): no batch exceeds it, so that a bound for batches beyond is vacuous.
    - `loss_change` (draw) with `probability`; its `loss_change_mean`, `loss_change_variance`, `loss_change_quantile`;
      `exceedance`, how often real batches go beyond each bound, and `bound_slack`, by how many standard deviations the
      bound lies beyond the quantile (both as the bound); `smoothness_violations` (side), the share of real batches
      that break the inequality the bounds start from: not 0 means that the smoothness constant is none.
    - `second_order_mean`, `second_order_variance` (noise): exact for a quadratic loss, else to second order, with the
      root mean square error over these batches relative to their spread in `second_order_error`; `noise_law_quantile`
      (side, tail_probability), of the exact law of that under Gaussian noise. Up to 600 samples or parameters,
      whichever is fewer.

    The attributes `expectation_says`, `tails_say`, `smoothness_is` put it into words, and what is vacuous.

    Costs a pass for the gradients, `draws` evaluations of the loss, and the Hessian-vector products. Gradients are
    taken in the model's own precision. Raises InputError for what does not fit.
    Source: Theorem 1 of Li, Gu, Zhou, Chen, Banerjee, "Hessian based analysis of SGD for deep nets", corrected.

    >>> line = torch.nn.Linear(1, 1, bias=False).double()
    >>> _ = torch.nn.init.ones_(line.weight)
    >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> found = one_step(Problem(line, "mse", x, 0 * x), 0.1, 2, smoothness=14 / 3)
    >>> float((found["second_order_mean"] - found["loss_change_mean"]).round(12).sum())  # a quadratic loss: both exact
    0.0
    >>> float(found["exceedance"].sel(bound="batches, chernoff", side="upper").max())
    0.0
    """
    sampling = batching.check_sampling(sampling)
    _check(problem, learning_rate, batch_size, sampling, smoothness, tail_probabilities, draws)
    gradients = per_sample_gradients(problem)
    drawn = _Drawn.of(problem, gradients, learning_rate, batch_size, sampling, draws, seed)
    kappa = sampling.variance_factor(batch_size, problem.n)
    L = smoothness
    if L is None:
        lengths = [np.linalg.norm(gradients[batch].mean(0)) for batch in drawn.batches]
        longest = drawn.batches[np.argsort(lengths)[-STEPS:]]
        L = smoothness_on_steps(problem, -learning_rate * gradients[longest].mean(1))
    step = Step.of_gradients(gradients)
    interval = [step.expectation(learning_rate, L, k) for k in (kappa, 1.0)]
    bounds, limits, models = _bounds(step, gradients, learning_rate, L, kappa, batch_size, tail_probabilities)
    violations = _violations(drawn, gradients, learning_rate, L)
    quantile = np.array([drawn.quantiles(side, tail_probabilities) for side in SIDES])
    beyond = np.array([[[drawn.beyond(s, x) for x in row] for row in bounds[k]] for k, s in enumerate(SIDES)])
    spread = np.sqrt(drawn.variance)
    sign = np.array([1.0, -1.0])[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slack = sign * (bounds - quantile[:, None, :]) / spread
    found: dict[str, Any] = {
        "gradient_norm_sq": ((), step.gradient_norm_sq),
        "noise_trace": ((), step.noise_trace),
        "second_moment_trace": ((), step.second_moment_trace()),
        "smoothness": ((), L),
        "loss_change_lower": ("form", np.array([low for low, _ in interval])),
        "loss_change_upper": ("form", np.array([high for _, high in interval])),
        "loss_change_bound": (("side", "bound", "tail_probability"), bounds),
        "loss_change_limit": ("side", np.array(limits)),
        "exceedance": (("side", "bound", "tail_probability"), beyond),
        "bound_slack": (("side", "bound", "tail_probability"), slack),
        "loss_change": ("draw", drawn.changes),
        "loss_change_mean": ((), drawn.mean),
        "loss_change_variance": ((), drawn.variance),
        "loss_change_quantile": (("side", "tail_probability"), quantile),
        "smoothness_violations": ("side", violations),
    }
    if not drawn.all:
        k = len(drawn.changes)
        found |= {
            "loss_change_mean_stderr": ((), spread / np.sqrt(k)),
            "loss_change_variance_stderr": ((), np.sqrt(max(0.0, drawn.moment(4) - drawn.variance**2) / k)),
            "exceedance_stderr": (("side", "bound", "tail_probability"), np.sqrt(beyond * (1 - beyond) / k)),
        }
    second = _second_order(problem, gradients, learning_rate)
    if second is not None:
        found |= _of_second_order(second, drawn, kappa, sampling, batch_size, tail_probabilities)
    attributes = results.provenance(problem) | {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "sampling": str(sampling),
        "batches": "all" if drawn.all else f"{len(drawn.changes)} drawn",
        "seed": seed,
        **_words(step, interval[0], learning_rate, L, kappa, smoothness is None, violations, bounds, found),
    }
    coordinates = {
        "form": ["batch", "printed"],
        "side": list(SIDES),
        "bound": list(BOUNDS),
        "bound_model": ("bound", models),
        "tail_probability": np.asarray(tail_probabilities, np.float64),
        "noise": list(NOISES),
        "probability": ("draw", drawn.probabilities),
    }
    return results.dataset(found, coordinates, attributes)


def per_sample_gradients(problem: Problem) -> Array:
    """Of all samples, penalty included, in double precision, (n, p)."""
    if problem.n * problem.parameter_count > MOST_NUMBERS:
        raise InputError(
            f"{problem.n} samples x {problem.parameter_count} parameters: the bounds need all per-sample gradients at "
            f"once, at most {MOST_NUMBERS} numbers; take a Problem made of fewer samples"
        )
    named = problem.per_sample_gradients()
    rows = torch.cat([named[name].flatten(1) for name in problem.parameters], 1)
    return np.asarray(rows.double().cpu().numpy())


@dataclass(frozen=True)
class _Drawn:
    """Batches (k, m), their probabilities and the changes of the loss that they make (k,)."""

    batches: NDArray[np.int64]
    probabilities: Array
    changes: Array
    all: bool

    @classmethod
    def of(
        cls, problem: Problem, gradients: Array, rate: float, m: int, sampling: Sampling, draws: int, seed: int
    ) -> "_Drawn":
        few = batching.count(sampling, problem.n, m) <= batching.MOST_ENUMERATED
        if few:
            batches, probabilities = batching.enumerated(sampling, problem.n, m)
        else:
            batches = batching.drawn(sampling, problem.n, m, draws, seed)
            probabilities = np.full(draws, 1 / draws)
        return cls(batches, probabilities, batching.loss_changes(problem, gradients, batches, rate), few)

    @property
    def mean(self) -> float:
        return float(self.probabilities @ self.changes)

    def moment(self, order: int) -> float:
        return float(self.probabilities @ (self.changes - self.mean) ** order)

    @property
    def variance(self) -> float:
        k = len(self.changes)
        return self.moment(2) * (1.0 if self.all else k / (k - 1))

    def quantiles(self, side: str, tail: Sequence[float]) -> list[float]:
        """For each probability the smallest value that at most this share exceeds, or its mirror image."""
        sign = 1.0 if side == "upper" else -1.0
        order = np.argsort(sign * self.changes)
        values, cumulated = self.changes[order], np.cumsum(self.probabilities[order])
        last = len(values) - 1
        return [float(values[min(last, int(np.searchsorted(cumulated, 1 - p - 1e-12)))]) for p in tail]

    def beyond(self, side: str, bound: float) -> float:
        """How often a change reaches the bound, by more than rounding."""
        sign, rounding = (1.0 if side == "upper" else -1.0), ROUNDING * np.sqrt(self.variance)
        return float(self.probabilities @ (sign * (self.changes - bound) > rounding))


def _bounds(
    step: Step, gradients: Array, rate: float, L: float, kappa: float, m: int, probabilities: Sequence[float]
) -> tuple[Array, list[float], list[str]]:
    """Absolute bounds (side, bound, probability), what no batch exceeds (side,), and what each bound is about."""
    mu = gradients.mean(0)
    ends = step.expectation(rate, L, kappa)[::-1]
    along = gradients @ mu
    real = batch_tails((gradients**2).sum(1), along, rate, L, m)
    rows, limits = [], []
    for sign, end, noise, batch in zip((1.0, -1.0), ends, step.tails(rate, L, kappa), real, strict=True):
        length = BatchDeviation.of(gradients - mu, step, along, rate, L, m, sign)
        own = [[end + sign * noise.threshold(p, form) for p in probabilities] for form in NOISE_FORMS]
        own += [[sign * (batch.mean + batch.threshold(p, f)) for p in probabilities] for f in BATCH_FORMS.values()]
        own.append([sign * length.bound(p) for p in probabilities])
        rows.append(own)
        limits.append(sign * (batch.mean + batch.largest))
    return np.array(rows), limits, ["noise model"] * len(NOISE_FORMS) + ["real batches"] * (len(BATCH_FORMS) + 1)


def _violations(drawn: _Drawn, gradients: Array, rate: float, L: float) -> Array:
    """The share of batches beyond -eta <g, mu> +- (eta^2 L / 2) |g|^2, their own g in it."""
    mu, slack = gradients.mean(0), ROUNDING * np.sqrt(drawn.variance)
    means = (gradients[batch].mean(0) for batch in drawn.batches)
    lines, squares = np.array([(g @ mu, g @ g) for g in means]).T
    line, noise = -rate * lines, 0.5 * rate**2 * L * squares
    scale = np.abs(line) + noise + np.abs(drawn.changes)
    over = drawn.changes - (line + noise) > slack + 1e-12 * scale
    under = (line - noise) - drawn.changes > slack + 1e-12 * scale
    return np.array([drawn.probabilities @ over, drawn.probabilities @ under])


def _second_order(problem: Problem, gradients: Array, rate: float) -> SecondOrder | None:
    n, p = gradients.shape
    if min(n, p) > MOST_PRODUCTS:
        return None
    if p <= n:
        H = hessian_products(problem, np.eye(p))
        return SecondOrder.of(gradients, gradients @ ((H + H.T) / 2), rate)
    return SecondOrder.of(gradients, hessian_products(problem, gradients), rate)


def hessian_products(problem: Problem, rows: Array) -> Array:
    """H v for the rows v of (k, p)."""
    vectors = torch.as_tensor(rows, dtype=problem.dtype, device=problem.device)
    found = []
    for part in vectors.split(64):
        products = problem.hessian_vector_products([problem.unflatten(v) for v in part])
        found += [problem.flatten(product).double().cpu().numpy() for product in products]
    return np.array(found)


def _of_second_order(
    second: SecondOrder, drawn: _Drawn, kappa: float, sampling: Sampling, m: int, probabilities: Sequence[float]
) -> dict[str, Any]:
    replaced = isinstance(sampling, WithReplacement)
    real = second.variance_with_replacement(m) if replaced else second.variance_without_replacement(m)
    gaussian, sphere = (second.variance_of_noise(kappa, sphere=s) for s in (False, True))
    law, gap = second.law(kappa), second.changes(drawn.batches) - drawn.changes
    spread, error = np.sqrt(drawn.variance), np.sqrt(drawn.probabilities @ gap**2)
    still = law.variance <= 1e-24 * law.mean**2
    quantiles = [
        [law.mean if still else law.isf(p if side == "upper" else 1 - p) for p in probabilities] for side in SIDES
    ]
    return {
        "second_order_mean": ((), second.mean(kappa)),
        "second_order_variance": ("noise", np.array([real, gaussian, sphere])),
        "second_order_error": ((), error / spread if spread > 0 else 0.0),
        "noise_law_quantile": (("side", "tail_probability"), np.array(quantiles)),
    }


def _words(
    step: Step,
    interval: tuple[float, float],
    rate: float,
    L: float,
    kappa: float,
    estimated: bool,
    violations: Array,
    bounds: Array,
    found: dict[str, Any],
) -> dict[str, str]:
    """What the numbers say, and what is vacuous."""
    gain = rate * step.gradient_norm_sq
    noise = 0.5 * rate**2 * L * step.second_moment_trace(kappa)
    if interval[1] < 0:
        expectation = f"descent on average: the loss falls by at least {-interval[1]:.4g} in expectation"
    else:
        reason = "the gradient is zero" if gain == 0 else f"its noise term is {noise / gain:.3g} times the gain"
        expectation = f"vacuous as a promise of descent, U+ = {interval[1]:.4g} >= 0: {reason}"
    slack = found["bound_slack"][1][0]
    finite = np.isfinite(slack)
    spread = f"{slack[finite].min():.2g} to {slack[finite].max():.2g}" if finite.any() else "no"
    noisy = (bounds[0] < 0).any(1)
    promising = ", ".join(name for name, some in zip(BOUNDS, noisy, strict=True) if some)
    promise = (
        f"descent is promised with a probability by: {promising}" if promising else "vacuous as a promise of descent"
    )
    trivial = bounds[0][len(NOISE_FORMS) :] >= found["loss_change_limit"][1][0]
    if trivial.any():
        promise += (
            f"; {int(trivial.sum())} of {trivial.size} bounds for batches allow what no batch reaches, and are vacuous"
        )
    words = f"upper bounds lie {spread} standard deviations beyond the quantiles of real batches; {promise}"
    kind = "an estimate from below, no certificate" if estimated else "supplied"
    broken = f"; {100 * violations.max():.3g} % of the batches break the inequality" if violations.any() else ""
    if broken:
        broken += ": it is no Lipschitz constant here, and the bounds need not hold"
    return {"expectation_says": expectation, "tails_say": words, "smoothness_is": kind + broken}


def _check(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    sampling: Sampling,
    smoothness: float | None,
    probabilities: Sequence[float],
    draws: int,
) -> None:
    sampling.check(batch_size, problem.n)
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate={learning_rate}: a positive number, such as 0.1")
    if smoothness is not None and not (np.isfinite(smoothness) and smoothness >= 0):
        raise InputError(f"smoothness={smoothness}: a finite number, not negative; None to have it estimated")
    check_probabilities(probabilities)
    if draws < 2:
        raise InputError(f"draws={draws}: at least 2 batches")


def check_probabilities(probabilities: Sequence[float]) -> None:
    if not len(probabilities) or not all(0 < p < 1 for p in probabilities):
        raise InputError(f"tail_probabilities={list(probabilities)}: at least one, each between 0 and 1, such as 0.05")
