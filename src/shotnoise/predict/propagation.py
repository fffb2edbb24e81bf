"""The variance of any network's gradient to first order in the noise, before a single stochastic step is taken.

Along the path of gradient descent, w <- w - a grad L(w), with Hessian H_t and per-sample covariance Sigma_t,

    P_{t+1} = (I - a H_t) P_t (I - a H_t)^T + a^2 Sigma_t,   P_0 = 0,
    var(g_t) = kappa (tr Sigma_t + tr H_t P_t H_t) + O(kappa^2),     var(grad L) = kappa tr H P H,    var(L) = kappa
    g^T P g.

Small models: P itself. Large ones: probes, each a deviation that obeys the linearised step delta <- (I - a H) delta -
a xi with xi one centred per-sample gradient drawn at the path; the mean of ||H delta||^2 over the probes estimates tr
H P H. One set of probes serves every batch size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from shotnoise import results, schedules
from shotnoise.errors import InputError
from shotnoise.measure.moments import of_all
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithReplacement

DENSE = 200  # parameters up to which the covariance itself is followed
LEAST_PROBES = 8
LOOKS = 8  # pairs of displaced weights for the next order
SMALL = 0.1  # next order up to which the law counts as valid
Array = NDArray[Any]


def propagation(
    problem: Problem,
    w0: ArrayLike | None,
    learning_rate: schedules.LearningRate,
    steps: int,
    batch_sizes: Sequence[int],
    probes: int | None = None,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """First-order law for the variance of SGD's gradient along a training from w0, for all batch sizes at once.

    problem: any model and data; w0: (p,) flattened in the order of its parameters, None for the model's own weights.
    The module is not changed. SGD without momentum, fresh batches at every step: sampling WithReplacement() (default,
    kappa = 1/b) or WithoutReplacement(). probes: how many deviations estimate what the noise does to the weights; None
    takes the covariance itself up to 200 parameters (exact to first order), and 32 probes beyond.

    Returns, by (batch_size, step), kappa times the leading coefficients, which stand beside them by step with the
    suffix `_leading`: `gradient_variance`, `full_gradient_variance`, `loss_variance` (with `_stderr` where probes
    were used); and `gradient_descent_loss` (step), the loss along the deterministic path. `next_order` (batch_size):
    by how much the trace of the noise at the last step differs, on average over the weights' fluctuation that this
    law predicts, from that on the path, relative: the size of the terms left out, with its standard error. The
    attribute `valid_from` is the smallest batch size given from which on it is within 10 %, and 0 where there is none.

    Cost per step: a pass for the noise and, with probes, as many Hessian-vector products, which share their first
    passes; without, as many as there are parameters. Raises InputError for what does not fit, NonFiniteError where
    the path diverges. Source: theory of small noise; exact coefficient of 1/b for any twice differentiable model.

    >>> x, y = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    >>> line = torch.nn.Linear(1, 1, bias=False)
    >>> law = propagation(Problem(line, "mse", x, y), [1.0], 0.25, 1, [1, 10])
    >>> law["gradient_variance_leading"].values.round(4).tolist()  # 8/3 and 11/6
    [2.6667, 1.8333]
    """
    sampling = WithReplacement() if sampling is None else sampling
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(
            f"{sampling!r}: the law holds for fresh batches; use WithReplacement() or WithoutReplacement()"
        )
    sampling.check_all(batch_sizes, problem.n)
    rates = schedules.values(learning_rate, steps)
    if probes is not None and probes < LEAST_PROBES:
        raise InputError(f"probes={probes}: at least {LEAST_PROBES}, for a standard error that means something")
    path = _Path.of(problem, w0)
    dense = probes is None and problem.parameter_count <= DENSE
    spread: _Covariance | _Probes = (
        _Covariance.start(problem) if dense else _Probes.start(problem, 32 if probes is None else probes, seed)
    )
    rows = []
    for t in range(len(rates) + 1):
        rows.append(path.look(spread))
        if t < len(rates):
            spread.move(path, float(rates[t]))
            path.move(float(rates[t]))
    kappas = np.array([sampling.variance_factor(b, problem.n) for b in batch_sizes])
    change, error = _next_order(path, spread, kappas, seed)
    leading = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found: dict[str, Any] = {"gradient_descent_loss": ("step", leading.pop("loss"))}
    for name, values in leading.items():
        suffix = "_stderr" if name.endswith("_stderr") else ""
        quantity = name.removesuffix("_stderr")
        found[f"{quantity}_leading{suffix}"] = ("step", values)
        found[f"{quantity}{suffix}"] = (("batch_size", "step"), kappas[:, None] * values)
    found |= {"next_order": ("batch_size", change), "next_order_stderr": ("batch_size", error)}
    sizes = np.asarray(batch_sizes, np.int64)
    attributes = {
        "theory": "first order in the noise along the gradient-descent path",
        "sampling": str(sampling),
        "n_samples": problem.n,
        "parameters": problem.parameter_count,
        "l2": problem.l2,
        "probes": 0 if dense else len(spread),
        "seed": seed,
        "valid_from": _valid_from(sizes, change, error),
    }
    coordinates = {"batch_size": sizes, "kappa": ("batch_size", kappas), "step": np.arange(len(rates) + 1)}
    return results.dataset(found, coordinates, attributes)


@dataclass
class _Path:
    """Gradient descent on a copy of the problem, and its gradient where it is."""

    problem: Problem
    gradient: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, w0: ArrayLike | None) -> "_Path":
        own = problem.replica()
        if w0 is not None:
            start = np.asarray(w0, np.float64)
            if start.shape != (problem.parameter_count,) or not np.isfinite(start).all():
                raise InputError(f"w0: {problem.parameter_count} finite numbers are needed; got an array {start.shape}")
            _set(own, torch.as_tensor(start, dtype=problem.dtype, device=problem.device))
        return cls(own, own.flatten(own.gradient()))

    def look(self, spread: "_Covariance | _Probes") -> dict[str, float]:
        here = of_all(self.problem)
        full, full_error, loss, loss_error = spread.traces(self)
        found = {
            "loss": float(here.loss),
            "gradient_variance": float(here.noise_trace[-1]) + full,
            "full_gradient_variance": full,
            "loss_variance": loss,
        }
        if full_error is not None and loss_error is not None:
            found |= {
                "gradient_variance_stderr": full_error,
                "full_gradient_variance_stderr": full_error,
                "loss_variance_stderr": loss_error,
            }
        return found

    def move(self, rate: float) -> None:
        _set(self.problem, self.problem.flatten(self.problem.parameters) - rate * self.gradient)
        self.gradient = self.problem.flatten(self.problem.gradient())

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        """H v for the rows of vectors (k, p)."""
        found = self.problem.hessian_vector_products([self.problem.unflatten(v) for v in vectors])
        return torch.stack([self.problem.flatten(product) for product in found])

    def samples(self, indices: torch.Tensor | None) -> torch.Tensor:
        """Per-sample gradients, centred by the full one, (m, p)."""
        named = self.problem.per_sample_gradients(indices)
        rows = torch.cat([named[name].flatten(1) for name in self.problem.parameters], 1)
        return rows - self.gradient


@dataclass
class _Covariance:
    """P (p, p), exact to first order."""

    P: torch.Tensor
    hessian: torch.Tensor | None = None

    @classmethod
    def start(cls, problem: Problem) -> "_Covariance":
        size = problem.parameter_count
        return cls(torch.zeros(size, size, dtype=torch.float64))

    def traces(self, path: _Path) -> tuple[float, None, float, None]:
        """tr H P H and g^T P g; the Hessian is kept for the move that follows."""
        unit = torch.eye(len(self.P), dtype=path.problem.dtype, device=path.problem.device)
        H = path.products(unit).double().cpu()
        self.hessian = (H + H.T) / 2
        gradient = path.gradient.double().cpu()
        moved = self.hessian @ self.P
        return float((moved * self.hessian).sum()), None, float(gradient @ self.P @ gradient), None

    def move(self, path: _Path, rate: float) -> None:
        assert self.hessian is not None
        centred = path.samples(None).double().cpu()
        jacobian = torch.eye(len(self.P), dtype=torch.float64) - rate * self.hessian
        self.P = jacobian @ self.P @ jacobian.T + rate**2 * centred.T @ centred / len(centred)

    def deviations(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(self.P)
        normal = torch.from_numpy(rng.normal(size=(count, len(values))))
        return (normal * values.clamp(min=0).sqrt()) @ vectors.T

    def __len__(self) -> int:
        return 0


@dataclass
class _Probes:
    """Deviations (k, p), each with its own draws of samples."""

    delta: torch.Tensor
    rng: np.random.Generator
    products: torch.Tensor | None = None

    @classmethod
    def start(cls, problem: Problem, count: int, seed: int) -> "_Probes":
        delta = torch.zeros(count, problem.parameter_count, dtype=problem.dtype, device=problem.device)
        return cls(delta, np.random.default_rng(seed))

    def traces(self, path: _Path) -> tuple[float, float, float, float]:
        self.products = path.products(self.delta) if self.delta.any() else torch.zeros_like(self.delta)
        full = self.products.double().square().sum(1).cpu().numpy()
        loss = (self.delta.double() @ path.gradient.double()).square().cpu().numpy()
        root = np.sqrt(len(full))
        return float(full.mean()), float(full.std(ddof=1) / root), float(loss.mean()), float(loss.std(ddof=1) / root)

    def move(self, path: _Path, rate: float) -> None:
        assert self.products is not None
        drawn = torch.as_tensor(self.rng.integers(path.problem.n, size=len(self.delta)))
        self.delta = self.delta - rate * self.products - rate * path.samples(drawn)

    def deviations(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        return self.delta[:count]

    def __len__(self) -> int:
        return len(self.delta)


def _next_order(path: _Path, spread: _Covariance | _Probes, kappas: Array, seed: int) -> tuple[Array, Array]:
    """The relative change of tr Sigma over w +- sqrt(kappa) delta, by kappa, and its standard error over delta."""
    here, noise = path.problem.flatten(path.problem.parameters).clone(), float(of_all(path.problem).noise_trace[-1])
    deviations = spread.deviations(LOOKS, np.random.default_rng([seed, 1])).to(here)
    if not noise > 0:
        return np.zeros_like(kappas), np.zeros_like(kappas)
    changes = np.empty((len(kappas), len(deviations)))
    for i, kappa in enumerate(kappas):
        for j, delta in enumerate(deviations):
            pair = 0.0
            for sign in (1.0, -1.0):
                _set(path.problem, here + sign * float(np.sqrt(kappa)) * delta)
                pair += float(of_all(path.problem).noise_trace[-1]) / 2
            changes[i, j] = pair / noise - 1
    _set(path.problem, here)
    return changes.mean(1), changes.std(1, ddof=1) / np.sqrt(changes.shape[1])


def _valid_from(sizes: Array, change: Array, error: Array) -> int:
    """The smallest batch size from which on the next order, two standard errors included, is small; 0 for none."""
    order = np.argsort(sizes)[::-1]
    valid = 0
    for k in order:
        if not abs(change[k]) + 2 * error[k] <= SMALL:
            break
        valid = int(sizes[k])
    return valid


def _set(problem: Problem, weights: torch.Tensor) -> None:
    with torch.no_grad():
        for name, value in problem.unflatten(weights).items():
            problem.parameters[name].copy_(value)
