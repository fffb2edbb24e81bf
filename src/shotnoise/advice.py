"""The verb `advise`: what a measurement and the theory say about the learning rate and the batch size, with reasons.

Every line has a number, the formula it comes from, what that assumes, and how sure it is. Four of them:

    stability     learning rate beyond which fluctuations grow     2 (1 - mu) h / (((1 - mu)/(1 + mu)) h^2 + kappa s^2)
    noise         batch size at which noise and signal are equal   kappa(b) Tr Sigma = |grad L|^2
    scaling       fluctuation with batch and rate doubled          kappa' a' / (kappa a), the same with curvature
    half, double  variance of the gradient                         kappa(b') / kappa(b)

h is the largest curvature v^T H v and s^2 the variance over samples of their own v^T H_i v.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, gradient, quiet
from shotnoise.measure import measure
from shotnoise.measure.curvature import Hessian, extreme
from shotnoise.named import dot
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.predict import regression_stability
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, Online, ReshuffledEpochs, Sampling, WithoutReplacement

Array = NDArray[np.float64]
EXACT, LIMIT, ESTIMATE, UNKNOWN = "exact", "at most this", "estimate", "unknown"
CHUNK = 256  # samples whose curvatures are taken at a time
CLOSE = 1e-3  # residual of the largest curvature, relative


def advise(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    sampling: Sampling | None = None,
    samples: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Advice about SGD with this learning rate and batch size at the problem's present weights.

    momentum as in PyTorch; sampling default WithoutReplacement(), fresh batches (epochs count as such, at one step).
    samples: how many to spend on the noise; None is all, and the noise lines are exact. confidence of the intervals.

    Returns, by `advice`: `advice_value`, with `advice_low` and `advice_high` where it is an estimate (equal to the
    value where exact; NaN where there is no interval); and the coordinates `formula`, `assumptions`, `certainty`
    ("exact", "at most this", "estimate" or "unknown" and why) and `sentence`. The lines:
    "stability limit": of the learning rate at this batch size. For one linear layer with squared loss exact, for second
        moments; else the limit of the sharpest direction alone, which the true one cannot exceed at this curvature.
    "mean stability limit": that of gradient descent, 2 (1 + mu) / h.
    "critical batch size": beyond it the gradient is longer than its noise; infinite where no batch is enough.
    "scaling, flat directions" and "scaling, sharpest direction": the fluctuation of the weights with batch size and
        learning rate both doubled over that now; infinite where the doubled rate is unstable.
    "variance, half the batch" and "variance, double the batch": of the minibatch gradient at these weights.

    Costs a measurement, some Hessian-vector products and a pass of second derivatives. The model is left as it was.
    Raises InputError for what does not fit.

    >>> line = torch.nn.Linear(1, 1, bias=False).double()
    >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> found = advise(Problem(line, "mse", x, 0 * x), 0.1, 1)
    >>> round(float(found["advice_value"].sel(advice="stability limit")), 6)  # 2 C / E x^4
    0.243902
    """
    sampling = WithoutReplacement() if sampling is None else sampling
    _check(problem, learning_rate, batch_size, momentum, sampling)
    n = problem.n
    sizes = [b for b in (batch_size // 2, batch_size, 2 * batch_size) if b >= 1 and _drawable(sampling, b, n)]
    measured = measure(problem, sizes, sampling, samples=samples, seed=seed, confidence=confidence)
    kappa = {b: sampling.variance_factor(b, n) for b in sizes}
    h, s2 = _sharpest(problem)
    lines = [
        *_stability(problem, batch_size, momentum, sampling, h, s2, kappa[batch_size], learning_rate),
        _critical_batch_size(measured, sampling, n, batch_size, confidence),
        *_scaling(learning_rate, batch_size, momentum, h, s2, kappa),
        *(_variance(measured, name, b, batch_size, kappa, samples is None) for name, b in
          (("half", batch_size // 2), ("double", 2 * batch_size))),
    ]  # fmt: skip
    attributes = results.provenance(problem) | {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "momentum": momentum,
        "sampling": str(sampling),
        "samples_used": n if samples is None else samples,
        "confidence": confidence,
        "seed": seed,
    }
    found = {
        f"advice_{name}": ("advice", np.array([line[name] for line in lines])) for name in ("value", "low", "high")
    }
    words = ("formula", "assumptions", "certainty", "sentence")
    coordinates = {name: ("advice", np.array([line[name] for line in lines], dtype=str)) for name in words}
    names = {"advice": np.array([line["advice"] for line in lines], dtype=str)}
    return results.dataset(found, names | coordinates, attributes)


def _line(
    advice: str,
    value: float,
    sentence: str,
    formula: str,
    assumptions: str,
    certainty: str,
    interval: Sequence[float] = (),
) -> dict[str, Any]:
    low, high = interval or ((value, value) if certainty.startswith(EXACT) else (np.nan, np.nan))
    return {
        "advice": advice,
        "value": value,
        "low": low,
        "high": high,
        "sentence": sentence,
        "formula": formula,
        "assumptions": assumptions,
        "certainty": certainty,
    }


def _stability(
    problem: Problem, b: int, mu: float, sampling: Sampling, h: float, s2: float, kappa: float, rate: float
) -> list[dict[str, Any]]:
    exact = _linear_limit(problem, b, mu, sampling)
    mean = 2 * (1 + mu) / h if h > 0 else np.inf
    if exact is not None:
        limit, formula = exact, "largest rate with bounded second moments: an eigenvalue (predict.regression_stability)"
        assumptions = "one linear layer, squared loss, constant rate, a fresh batch at every step"
        certainty = f"{EXACT}: holds at any weights"
    else:
        limit = _limit(h, s2, kappa, mu)
        formula = (
            "2 (1 - mu) h / (((1 - mu)/(1 + mu)) h^2 + kappa s^2), h = v^T H v largest, s^2 the variance of v^T H_i v"
        )
        assumptions = "the curvature of each sample stays as it is here; constant rate, a fresh batch at every step"
        certainty = f"{LIMIT}: the test vector v bounds the critical rate from above; training may move the curvature"
    if h <= 0:
        certainty = f"{UNKNOWN}: the largest curvature is not positive here, and nothing limits the rate"
    below = "stable" if exact is not None else "below it"
    verdict = below if rate < limit else "unstable: beyond it"
    sentence = f"Keep the learning rate below {limit:.4g} at batch size {b:,}; {rate:g} is {verdict}."
    gradient_descent = f"Gradient descent without noise diverges from a learning rate of {mean:.4g}."
    return [
        _line("stability limit", limit, sentence, formula, assumptions, certainty),
        _line("mean stability limit", mean, gradient_descent, "2 (1 + mu) / h", "quadratic loss of this curvature",
              f"{ESTIMATE}: exact for a quadratic loss (h to 0.1 %)"),
    ]  # fmt: skip


def _limit(h: float, s2: float, kappa: float, mu: float) -> float:
    if h <= 0:
        return float("inf")
    return 2 * (1 - mu) * h / ((1 - mu) / (1 + mu) * h**2 + kappa * s2)


def _linear_limit(problem: Problem, b: int, mu: float, sampling: Sampling) -> float | None:
    """The exact limit for one linear layer with squared loss; None for anything else."""
    parts = list(problem.model) if isinstance(problem.model, nn.Sequential) else [problem.model]
    layers = [part for part in parts if not isinstance(part, nn.Flatten)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or problem.loss_name != "mse" or problem.l2 < 0:
        return None
    bias, x = layers[0].bias is not None, problem.samples.batch(torch.arange(problem.n))[0]
    if (
        len(problem.parameters) < 1 + bias
        or not isinstance(x, Tensor)
        or x.flatten(1).shape[1] != layers[0].in_features
    ):
        return None
    fresh = WithoutReplacement() if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)) else sampling
    found = regression_stability(
        x.flatten(1).double().cpu().numpy(), [b], sampling=fresh, intercept=bias, l2=problem.l2, momentum=mu
    )
    return float(found["critical_learning_rate"][0])


def _critical_batch_size(measured: xr.Dataset, sampling: Sampling, n: int, b: int, confidence: float) -> dict[str, Any]:
    scale = float(measured["noise_scale"])
    low, high = float(measured["noise_scale_low"]), float(measured["noise_scale_high"])
    whole = sampling.variance_factor(2, n) == 0.5  # with replacement

    def batch(B: float) -> float:
        return B if whole or np.isinf(B) else n * B / (n - 1 + B)

    value = float(n) if np.isinf(scale) and not whole else batch(scale)
    status = str(measured["noise_scale_status"].values)
    certainty = EXACT if status == results.EXACT else f"{ESTIMATE}: {100 * confidence:g} % interval; {status}"
    side = "noise dominates" if b < value else "the gradient dominates, a larger batch buys little"
    return _line(
        "critical batch size", value,
        f"Up to a batch size of {value:,.4g} noise is the longer part of a step; at {b:,} {side}.",
        "kappa(b) Tr Sigma = |grad L|^2", "at these weights; along training it mostly grows", certainty,
        (value, value) if status == results.EXACT else (batch(low), batch(high)),
    )  # fmt: skip


def _scaling(a: float, b: int, mu: float, h: float, s2: float, kappa: dict[int, float]) -> list[dict[str, Any]]:
    if 2 * b not in kappa or not kappa[b] > 0:
        why = f"there is no batch of {2 * b:,} distinct samples" if kappa[b] > 0 else "the batch is all data: no noise"
        return [
            _line(f"scaling, {where}", float("nan"), f"Batch and rate cannot be doubled: {why}.", "", "", UNKNOWN)
            for where in ("flat directions", "sharpest direction")
        ]
    flat = 2 * kappa[2 * b] / kappa[b]
    before, after = _fluctuation(a, h, s2, kappa[b], mu), _fluctuation(2 * a, h, s2, kappa[2 * b], mu)
    sharp = float("inf") if np.isinf(after) else after / before if np.isfinite(before) else float("nan")
    if np.isinf(sharp):
        told = "is unstable"
    else:
        told = "says nothing, it is unstable now" if np.isnan(sharp) else f"is {sharp:.3g} times that of now"
    doubled = f"Doubling batch size and learning rate makes the fluctuation of the weights {flat:.3g} times that of now"
    formula = "kappa a / (2 (1 - mu) h - a (((1 - mu)/(1 + mu)) h^2 + kappa s^2)), after over before"
    common = "additive noise that stays as it is, a stationary state in a quadratic bowl, fresh batches"
    return [
        _line("scaling, flat directions", flat, f"{doubled} in flat directions.",
              "2 kappa(2b) / kappa(b)", f"{common}; a h small", f"{EXACT} to first order in a h"),
        _line("scaling, sharpest direction", sharp,
              f"In the sharpest direction the fluctuation with both doubled {told}.",
              formula, common, f"{ESTIMATE}: the curvature is that of here, and no stationary state is assured"),
    ]  # fmt: skip


def _fluctuation(a: float, h: float, s2: float, kappa: float, mu: float) -> float:
    """Along a direction of curvature h, per unit of noise; infinite beyond the limit."""
    below = 2 * (1 - mu) * h / a - (1 - mu) / (1 + mu) * h**2 - kappa * s2
    return kappa / below if below > 0 else float("inf")


def _variance(
    measured: xr.Dataset, name: str, other: int, b: int, kappa: dict[int, float], exact: bool
) -> dict[str, Any]:
    advice = f"variance, {name} the batch"
    if other not in kappa:
        return _line(advice, float("nan"), f"There is no batch of {other:,} samples to draw.", "", "", UNKNOWN)
    variance = measured["conditional_gradient_variance"]
    value = float(variance.sel(batch_size=other))
    ratio = f"{kappa[other] / kappa[b]:.4g} times that of now" if kappa[b] > 0 else "now it is 0"
    interval: tuple[float, ...] = ()
    if not exact:
        reach = NormalDist().inv_cdf(0.5 + float(measured.attrs["confidence"]) / 2)
        error = reach * float(measured["conditional_gradient_variance_stderr"].sel(batch_size=other))
        interval = (value - error, value + error)
    return _line(
        advice, value, f"With a batch of {other:,} the variance of the gradient is {value:.4g}, {ratio}.",
        "kappa(b) Tr Sigma", "at these weights", EXACT if exact else f"{ESTIMATE}, the ratio exact", interval,
    )  # fmt: skip


def _sharpest(problem: Problem) -> tuple[float, float]:
    """The largest curvature h = v^T H v, penalty included, and the variance over samples of v^T H_i v."""
    found = extreme(Hessian(problem, trial=False), tolerance=CLOSE)
    if not found.converged:
        raise InputError(
            f"the largest curvature did not converge: {found.value:.4g} or more, with a residual of "
            f"{found.residual:.2g}; measure at other weights"
        )
    return found.value, float(_curvatures(problem, found.vector).var())


def _curvatures(problem: Problem, direction: Array) -> Array:
    """v^T H_i v of every sample's loss, without the penalty, (n,): v^T (sum_i q_i H_i) v differentiated by q."""
    found = []
    vector = problem.unflatten(torch.as_tensor(direction, dtype=problem.dtype, device=problem.device))
    with quiet(), elementary_kernels():
        evaluation = Evaluation(problem.model, problem.loss_spec)
        for chunk in problem.chunks(None, min(CHUNK, problem.chunk_size)):
            own = evaluation.losses(*evaluation.place(problem.samples.batch(chunk)))
            probe = torch.ones_like(own, requires_grad=True)
            slope = gradient((own * probe).sum(), evaluation.leaves, create_graph=True)
            along = dot(slope, vector)
            if not along.requires_grad:
                found.append(np.zeros(len(chunk)))
                continue
            second = dot(gradient(along, evaluation.leaves, create_graph=True), vector)
            curved = torch.autograd.grad(second, probe, allow_unused=True)[0] if second.requires_grad else None
            found.append(np.zeros(len(chunk)) if curved is None else curved.double().cpu().numpy())
    return np.concatenate(found)


def _drawable(sampling: Sampling, b: int, n: int) -> bool:
    try:
        sampling.check(b, n)
    except InputError:
        return False
    return True


def _check(problem: Problem, rate: float, b: int, mu: float, sampling: Sampling) -> None:
    if isinstance(sampling, Online):
        raise InputError("Online(): advice is for a data set; use WithReplacement() where it stands for a population")
    sampling.check(b, problem.n)
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"learning_rate={rate}: a positive number, such as 0.1")
    if not 0 <= mu < 1:
        raise InputError(f"momentum={mu}: at least 0 and below 1")
