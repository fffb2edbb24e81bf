"""The verb `loss_process`: how far the loss can stray over many steps, and the example that refutes Theorem 2.

    N_T = f(w_T) - f(w_0) - sum_t E[f(w_t+1) - f(w_t) | w_t]      the martingale part of the loss

    P[|N_T| >= s sqrt(T)] <= 2 exp(-s^2 / (2 V))
    V = eta^2 L_1^2 sigma / m         Gaussian noise of covariance Sigma / m
        the same times p / (p - 1)    noise on the sphere, p >= 2
        eta^2 L_1^2 D^2 / (4 m)       real batches of m

for |Sigma_t|_2 <= sigma, an L_1-Lipschitz f, |g_i - g_j| <= D. Upwards, under the noise model and with the uniform v, c
of `tails`: P[f(w_T) - f(w_0) - sum_t U_+,t >= sqrt(2 v T x) + c x] <= exp(-x).
Without replacement kappa takes the place of 1/m in the noise model; the bound for real batches stays (exchanging one
sample of a batch moves the mean by at most D/m).

Theorem 2 of Li, Gu, Zhou, Chen, Banerjee states the first line for f(w_T) - E f(w_T). That is false for every
constant; see `refuted_deviation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.bounds import batches as batching
from shotnoise.predict.bounds.one_step import NOISES, check_probabilities, per_sample_gradients
from shotnoise.predict.bounds.smoothness import smoothness_on_steps
from shotnoise.predict.bounds.step import Step
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling

Array = NDArray[np.float64]
LOOKS = 5  # points of the first run where the smoothness is looked for


def loss_process(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    steps: int,
    *,
    runs: int = 10,
    redraws: int = 20,
    lipschitz: float | None = None,
    noise_norm: float | None = None,
    gradient_diameter: float | None = None,
    smoothness: float | None = None,
    sampling: Sampling | None = None,
    tail_probabilities: Sequence[float] = (0.1, 0.01),
    seed: int = 0,
) -> xr.Dataset:
    """Bounds on the wandering of the loss over `steps` updates of SGD, beside `runs` trainings from where the model is.

    lipschitz: L_1, of the loss; noise_norm: sigma, at least the largest eigenvalue of the per-sample covariance;
    gradient_diameter: D, at least the distance of any two per-sample gradients; smoothness: L, of the gradient. The
    bounds hold if these hold wherever the runs may go; each that is None is the largest value met on the runs, an
    estimate from below. sampling: fresh batches, default WithReplacement(). redraws: batches that estimate E[change |
    w_t] at each step; all of them where there are at most 5,000.

    Returns, with step = 0 .. steps: `loss` (run, step); `martingale` N (run, step) with `martingale_stderr`, what the
    redraws leave open (0 where all batches were taken); `martingale_bound` (noise, step, tail_probability),
    two-sided, for noise "batches", "gaussian", "sphere"; `martingale_exceedance` (noise, step, tail_probability), the
    share of runs beyond; `loss_excess` (run, step), the loss over f(w_0) + sum U_+, and `loss_excess_bound` (step,
    tail_probability), under the noise model; the constants. The attributes say what was estimated, and whether the
    bounds are vacuous here, that is, wider than the loss itself has moved.

    Costs per run and step a pass with per-sample gradients and `redraws` evaluations of the loss. The model is not
    changed. Raises InputError for what does not fit, NonFiniteError where a run diverges.

    >>> line = torch.nn.Linear(1, 1, bias=False).double()
    >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> found = loss_process(Problem(line, "mse", x, x + 1), 0.1, 1, 3, runs=4)
    >>> bool((found["martingale_exceedance"].sel(noise="batches") == 0).all())
    True
    """
    sampling = batching.check_sampling(sampling)
    _check(problem, learning_rate, batch_size, steps, runs, redraws, sampling)
    check_probabilities(tail_probabilities)
    constants = {"lipschitz": lipschitz, "noise_norm": noise_norm, "gradient_diameter": gradient_diameter}
    for name, value in (constants | {"smoothness": smoothness}).items():
        if value is not None and not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value}: a finite number, not negative; None to take it from the runs")
    followed = [
        _Run.of(problem, learning_rate, batch_size, steps, redraws, sampling, [seed, r], smoothness is None and r == 0)
        for r in range(runs)
    ]
    met = {name: max(run.met[name] for run in followed) for name in constants}
    used = {name: met[name] if value is None else value for name, value in constants.items()}
    L = max(run.smoothness for run in followed) if smoothness is None else smoothness
    kappa, p = sampling.variance_factor(batch_size, problem.n), problem.parameter_count
    V = _proxies(used["lipschitz"], used["noise_norm"], used["gradient_diameter"], learning_rate, kappa, batch_size, p)
    t, x = np.arange(steps + 1), -np.log(np.asarray(tail_probabilities))
    bound = np.sqrt(2 * V[:, None, None] * t[:, None] * (x + np.log(2)))
    loss = np.array([run.loss for run in followed])
    martingale = np.array([run.martingale for run in followed])
    beyond = (np.abs(martingale)[None, :, :, None] > bound[:, None]).mean(1)
    excess, spread = _upwards(followed, loss, learning_rate, L, kappa)
    v, c = spread
    found: dict[str, Any] = {
        "loss": (("run", "step"), loss),
        "martingale": (("run", "step"), martingale),
        "martingale_stderr": (("run", "step"), np.array([run.error for run in followed])),
        "martingale_bound": (("noise", "step", "tail_probability"), bound),
        "martingale_exceedance": (("noise", "step", "tail_probability"), beyond),
        "loss_excess": (("run", "step"), excess),
        "loss_excess_bound": (("step", "tail_probability"), np.sqrt(2 * v * t[:, None] * x) + c * x),
        "smoothness": ((), L),
        **{name: ((), value) for name, value in used.items()},
    }
    moved = float(np.ptp(loss))
    estimated = [n for n, given in (constants | {"smoothness": smoothness}).items() if given is None]
    attributes = results.provenance(problem) | {
        "theory": "martingale part of the loss: Azuma's argument with derived variance proxies",
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "sampling": str(sampling),
        "seed": seed,
        "constants_are": f"taken from the runs, estimates from below: {', '.join(estimated)}"
        if estimated
        else "supplied",
        "bounds_say": _reading(bound[:, -1], martingale[:, -1], moved, tail_probabilities),
    }
    coordinates = {"step": t, "noise": list(NOISES), "tail_probability": np.asarray(tail_probabilities, np.float64)}
    return results.dataset(found, coordinates, attributes)


def refuted_deviation(
    steps: int, learning_rate: float = 0.1, *, width: float = 1.0, runs: int = 200, seed: int = 0
) -> xr.Dataset:
    """The loss that refutes Theorem 2: flat to the left, a ramp of slope -1 to the right, noise only at the top.

    f(w) = 0 for w < 0, -w^2 / (2 h) up to h = width, -w + h / 2 from there; one weight, from w = 0, gradient noise of
    standard deviation 5 h / eta at |w| < h / 2 and none elsewhere, so that the first steps choose the side for good.
    Every constant of the theorem (L = 1 / h, L_1 = mu = 1, sigma) is independent of the number of steps T, and yet
    |f(w_T) - E f(w_T)| is about eta T / 2 in nearly every run: more than any multiple of sqrt(T).

    Returns `loss_deviation` (run), f(w_T) less its mean over the runs; `deviation_rate` (run), the same over eta T / 2;
    `largest_constant`, the largest c with which the printed bound allows half of the runs to be that far: it falls like
    1 / T; `martingale` (run), N_T of the same runs, which keeps to sqrt(T). Source: own construction.

    >>> found = refuted_deviation(2000)
    >>> float((abs(abs(found["deviation_rate"]) - 1) < 0.3).mean())
    1.0
    """
    if steps < 1 or runs < 2 or not learning_rate > 0 or not width > 0:
        raise InputError(f"steps={steps}, runs={runs}, learning_rate={learning_rate}, width={width}: positive, 2 runs")
    rng, eta = np.random.default_rng(seed), learning_rate
    w, drift, noise = np.zeros(runs), np.zeros(runs), 5 * width / eta
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    for _ in range(steps):
        sharp = np.where(np.abs(w) < width / 2, noise, 0.0)
        slope = -np.clip(w / width, 0, 1)
        ends = w[:, None] - eta * (slope[:, None] + sharp[:, None] * z)
        drift += _ramp(ends, width) @ weight / weight.sum() - _ramp(w, width)
        w = w - eta * (slope + sharp * rng.normal(size=runs))
    loss = _ramp(w, width)
    deviation = loss - loss.mean()
    L, sigma = 1 / width, noise**2
    K = max(2 * eta * (1 + noise), eta**2 * L * (sigma + 1) + eta * (1 + eta * L) * noise + eta**2 * L * sigma)
    s = float(np.median(np.abs(deviation))) / np.sqrt(steps)
    found = {
        "loss_deviation": ("run", deviation),
        "deviation_rate": ("run", deviation / (eta * steps / 2)),
        "martingale": ("run", loss - drift),
        "largest_constant": ((), np.log(4) / min(s**2 / (8 * K**2), np.sqrt(steps) * s / (2 * K))),
    }
    attributes = {"steps": steps, "learning_rate": eta, "width": width, "runs": runs, "seed": seed}
    return results.dataset(found, {}, attributes)


def _ramp(w: Array, width: float) -> Array:
    return np.where(w < width, -np.square(np.maximum(w, 0)) / (2 * width), width / 2 - w)


@dataclass
class _Run:
    """One training, followed: what it met, and the parts of its loss."""

    loss: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    met: dict[str, float] = field(default_factory=dict)
    smoothness: float = 0.0

    @classmethod
    def of(
        cls,
        problem: Problem,
        rate: float,
        m: int,
        steps: int,
        redraws: int,
        sampling: Sampling,
        seed: list[int],
        look: bool,
    ) -> "_Run":
        own, run = problem.replica(), cls()
        few = batching.count(sampling, problem.n, m) <= batching.MOST_ENUMERATED
        everything = batching.enumerated(sampling, problem.n, m) if few else None
        ahead = sampling.draws(m, problem.n, [np.random.default_rng(seed)])(steps)[0]
        redrawn = np.random.default_rng([*seed, 1])
        looks = set(np.linspace(0, steps - 1, min(LOOKS, steps)).astype(int)) if look else set[int]()
        run.loss.append(own.loss())
        for t in range(steps):
            gradients = per_sample_gradients(own)
            run._meet(gradients)
            if everything is None:
                others = sampling.draws(m, problem.n, [redrawn])(redraws)[0]
                chances = np.full(redraws, 1 / redraws)
            else:
                others, chances = everything
            changes = batching.loss_changes(own, gradients, np.concatenate([ahead[t : t + 1], others]), rate)
            mean = float(chances @ changes[1:])
            run.drift.append(mean)
            run.variances.append(0.0 if few else float(changes[1:].var(ddof=1)) / redraws)
            if t in looks:
                moves = -rate * np.stack([gradients[batch].mean(0) for batch in others[:50]])
                run.smoothness = max(run.smoothness, smoothness_on_steps(own, moves))
            run.loss.append(run.loss[-1] + float(changes[0]))
            step = torch.as_tensor(rate * gradients[ahead[t]].mean(0))
            weights = own.flatten(own.parameters).detach()
            own.place(weights - step.to(weights))
        return run

    def _meet(self, gradients: Array) -> None:
        step = Step.of_gradients(gradients)
        self.steps.append(step)
        centred = gradients - gradients.mean(0)
        gram = centred @ centred.T
        distances = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
        here = {
            "lipschitz": float(np.sqrt(step.gradient_norm_sq)),
            "noise_norm": float(step.eigenvalues.max(initial=0.0)),
            "gradient_diameter": float(np.sqrt(max(0.0, distances.max()))),
        }
        self.met = {name: max(value, self.met.get(name, 0.0)) for name, value in here.items()}

    @property
    def martingale(self) -> Array:
        return np.asarray(self.loss) - self.loss[0] - np.concatenate([[0.0], np.cumsum(self.drift)])

    @property
    def error(self) -> Array:
        return np.sqrt(np.concatenate([[0.0], np.cumsum(self.variances)]))


def _proxies(L1: float, sigma: float, D: float, eta: float, kappa: float, m: int, p: int) -> Array:
    """V for NOISES; none for the sphere in one dimension, which is a coin."""
    gaussian = eta**2 * L1**2 * sigma * kappa
    return np.array([eta**2 * L1**2 * D**2 / (4 * m), gaussian, gaussian * p / (p - 1) if p > 1 else np.nan])


def _upwards(
    followed: list[_Run], loss: Array, eta: float, L: float, kappa: float
) -> tuple[Array, tuple[float, float]]:
    """f(w_t) - f(w_0) - sum U_+ by run and step, and the largest v and c met."""
    tops = np.array([[step.expectation(eta, L, kappa)[1] for step in run.steps] for run in followed])
    tails = [step.tails(eta, L, kappa)[0] for run in followed for step in run.steps]
    sums = np.concatenate([np.zeros((len(tops), 1)), tops.cumsum(1)], 1)
    return loss - loss[:, :1] - sums, (max(tail.v for tail in tails), max(tail.c for tail in tails))


def _reading(bound: Array, ends: Array, moved: float, probabilities: Sequence[float]) -> str:
    """How wide the bounds are at the last step, at the largest probability."""
    which = int(np.argmax(probabilities))
    spread = float(ends.std())
    parts = []
    for name, width in zip(NOISES, bound[:, which], strict=True):
        if np.isnan(width):
            continue
        wide = f"{width / spread:.3g} standard deviations of the runs" if spread > 0 else f"{width:.3g}"
        parts.append(f"{name}: {wide}{', vacuous: more than the loss has moved' if width >= moved else ''}")
    return f"at probability {probabilities[which]:g} after the last step, {'; '.join(parts)}"


def _check(problem: Problem, rate: float, m: int, steps: int, runs: int, redraws: int, sampling: Sampling) -> None:
    sampling.check(m, problem.n)
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"learning_rate={rate}: a positive number, such as 0.1")
    if steps < 1 or runs < 1 or redraws < 2:
        raise InputError(f"steps={steps}, runs={runs}, redraws={redraws}: at least 1 step, 1 run and 2 redraws")
