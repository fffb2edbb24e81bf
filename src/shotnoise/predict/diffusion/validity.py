"""May I think of my SGD as a diffusion? A number, a threshold and a reason for each way in which one may not."""

import numpy as np
import torch
import xarray as xr

from shotnoise import results
from shotnoise.predict.diffusion.epochs import epoch_covariance
from shotnoise.predict.diffusion.linear import DISCRETE, FIRST
from shotnoise.predict.diffusion.moments import MOST, LinearModel
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.diffusion.settings import Array, Setting, positive
from shotnoise.predict.diffusion.svag import svag
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithoutReplacement, WithReplacement

TOLERABLE = 0.1  # relative error of a second moment
SHAPE = 0.5  # skewness or excess kurtosis of the batch noise
LOSS = 0.05  # relative change of the mean loss under amplification
DIRECTIONS = 5  # leading ones of the noise in which its shape is looked at
FIT, BULK, UNFIT = "diffusion", "diffusion, but for its tails", "not a diffusion"
REASONS = {
    "step size": "eta h / (2 (1 + mu)) for the largest curvature h: the relative error of the first-order diffusion in "
    "the variance along that direction; SGD diverges at 1",
    "stationary moments": "relative difference of the stationary covariances of the diffusion and of SGD, both exact",
    "amplification": "change of the mean log loss from SGD to its diffusion, by amplified-variance SGD; beyond "
    "three standard errors of chance",
    "normality": "largest |skewness| and |excess kurtosis| of the batch noise along its leading directions, with b "
    "samples: the diffusion's moments do not need it, its tails and rare events do",
    "independence": "share of the variance along the largest curvature that reshuffled epochs take away; other "
    "directions lose more; white noise describes fresh batches only",
}


def validity(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    *,
    sampling: Sampling | None = None,
    steps: int = 40,
    runs: int = 64,
    amplified: xr.Dataset | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Checks of the first-order diffusion for this problem at the weights that the model has.

    By `check`: `value`, `value_stderr` where it is an estimate, `threshold` (10 % for second moments, 5 % for losses,
    0.5 for skewness and excess kurtosis), `passed` and `reason`; and `status`: "diffusion" where all pass, "diffusion,
    but for its tails" where the batch noise alone is not normal, which moments do not feel, "not a diffusion"
    otherwise. The checks, where they apply:

    "step size"           from the largest curvature, by the power method
    "stationary moments"  squared loss, one output linear in up to 40 weights, no momentum: exact
    "amplification"       any other model without momentum: `svag` over `steps` steps and `runs` runs at l = 1 and 8,
                          or the result of `svag` given as `amplified`; steps=0 leaves it out
    "normality"           from the samples' gradients
    "independence"        zero for fresh batches; under epochs by `epoch_covariance`

    >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> found = validity(Problem(line, "mse", x, x + 0.1 * torch.cos(9 * x)), 0.1, 10)
    >>> found["check"].values.tolist(), str(found["status"].values)
    (['step size', 'stationary moments', 'normality', 'independence'], 'diffusion')
    """
    rate = positive("learning_rate", learning_rate)
    check_momentum(momentum)
    chosen = WithReplacement() if sampling is None else sampling
    chosen.check(batch_size, problem.n)
    epochs = isinstance(chosen, (ReshuffledEpochs, CyclicEpochs))
    network = Network(problem)
    fresh = WithoutReplacement() if epochs else chosen
    curvature = network.largest_curvature(network.start)
    values: dict[str, tuple[float, float]] = {"step size": (rate * curvature / 2 / (1 + momentum), 0.0)}
    model = linear_model(network) if not momentum else None
    if model is not None:
        values["stationary moments"] = _stationary(model, Setting.of(rate, batch_size, 0.0, fresh, model.n)), 0.0
    elif not momentum and (steps or amplified is not None):
        tried = amplified
        if tried is None:
            tried = svag(problem, rate, batch_size, steps, runs, [1, 8], sampling=fresh, seed=seed)
        values["amplification"] = _change(tried)
    values["normality"] = _shape(network, batch_size), 0.0
    values["independence"] = _lost(rate, curvature, batch_size, problem.n, momentum) if epochs else 0.0, 0.0
    limits = {"step size": TOLERABLE, "stationary moments": TOLERABLE, "amplification": LOSS, "normality": SHAPE,
              "independence": TOLERABLE}  # fmt: skip
    names = list(values)
    numbers, errors = np.array([values[name] for name in names]).T
    thresholds = np.array([limits[name] for name in names])
    passed = np.abs(numbers) - 3 * errors <= thresholds
    found = {
        "value": (("check",), numbers),
        "value_stderr": (("check",), errors),
        "threshold": (("check",), thresholds),
        "passed": (("check",), passed),
        "reason": (("check",), [REASONS[name] for name in names]),
        "status": ((), _status(dict(zip(names, passed.tolist(), strict=True)))),
    }
    attributes = {
        "theory": "first-order diffusion of SGD",
        "learning_rate": rate,
        "batch_size": int(batch_size),
        "momentum": float(momentum),
        "sampling": str(chosen),
        **results.provenance(problem),
    }
    return results.dataset(found, {"check": names}, attributes)


def _status(passed: dict[str, bool]) -> str:
    if not all(ok for name, ok in passed.items() if name != "normality"):
        return UNFIT
    return FIT if passed["normality"] else BULK


def linear_model(network: Network) -> LinearModel | None:
    """The regression that a problem is, if it has squared loss and one output that is linear in few weights."""
    problem = network.problem
    if problem.loss_name != "mse" or network.dimension > MOST:
        return None
    outputs, targets = network.everything()
    if targets.numel() != problem.n:
        return None
    at = network.start[0]
    with torch.enable_grad():
        features = torch.autograd.functional.jacobian(outputs, at)
    probes = at + torch.randn(2, len(at), generator=torch.Generator().manual_seed(0)).to(at)
    with torch.no_grad():
        base = outputs(at)
        for probe in probes:
            linear = base + features @ (probe - at)
            if not torch.allclose(outputs(probe), linear, rtol=1e-9, atol=1e-9 * float(base.abs().max() + 1)):
                return None
        rest = targets.reshape(-1) - (base - features @ at)
    return LinearModel.of_data(features.numpy(), rest.numpy(), problem.l2)


def _stationary(model: LinearModel, setting: Setting) -> float:
    both = [model.stationary(theory, setting) for theory in (FIRST, DISCRETE)]
    if both[0] is None or both[1] is None:
        return float("inf")
    size = np.linalg.norm(both[1])
    return float(np.linalg.norm(both[0] - both[1]) / size) if size else 0.0


def _change(tried: xr.Dataset) -> tuple[float, float]:
    """Of the mean log loss at the last step, from the smallest amplification to the largest, and its standard error."""
    loss, error = tried["log_loss"].values[:, -1], tried["log_loss_stderr"].values[:, -1]
    return float(loss[-1] - loss[0]), float(np.hypot(error[0], error[-1]))


def _shape(network: Network, b: int) -> float:
    """max(|skewness| / sqrt(b), |excess kurtosis| / b) of the samples' gradients along the leading noise directions."""
    each = network.factor(network.start)[0].T.numpy() * np.sqrt(network.sources)  # (n, d), centred
    left, sizes, _ = np.linalg.svd(each, full_matrices=False)
    kept = sizes[:DIRECTIONS] > 1e-10 * max(sizes[0], np.finfo(float).tiny)
    along: Array = left[:, :DIRECTIONS][:, kept] * np.sqrt(len(each))  # unit variance
    if not along.size:
        return 0.0
    skewness, excess = (along**3).mean(0), (along**4).mean(0) - 3
    return float(max((np.abs(skewness) / np.sqrt(b)).max(), (np.abs(excess) / b).max()))


def _lost(rate: float, curvature: float, batch_size: int, n: int, momentum: float) -> float:
    if rate * curvature >= 2 * (1 + momentum) or not curvature:
        return float("inf")
    one = epoch_covariance([curvature], [1.0], rate, batch_size, n, momentum)
    return float(1 - one["mean_variance_ratio"][0])
