"""Noise and fluctuation at a minimum of any model, from its loss and curvature, with the error of that rule computed.

    rule    C = (2 L_0 / k) H_GN - Gamma w w^T Gamma      of one sample, k outputs, H_GN = (1/n) sum_i J_i^T J_i
    exact   C = (1/n) sum_i g_i g_i^T - g g^T,   g_i the data gradients at the minimum

and then, in the eigenbasis of the full Hessian with eigenvalues h, Sigma_ij = s C_ij / (slope_ij / lambda + E_ij), see
`modes`. Every entry stands by itself: the leading modes of a large model are had without the others. The rule takes the
residuals as independent of the model's derivatives (the printed assumption, that all losses are nearly equal, is never
met: Gaussian residuals have a spread of sqrt 2), the Gauss-Newton matrix stands for the Hessian, which may be
indefinite. Source: Theorem 5, Corollaries 2 and 3 of Ziyin et al. (2022), with the gradient of the loss without
penalty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, gradient, quiet
from shotnoise.measure.curvature import Hessian
from shotnoise.named import Named, dot
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_momentum, check_sampling
from shotnoise.predict.stationary.arguments import Array, Grid
from shotnoise.predict.stationary.modes import Modes
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithoutReplacement

ALL_MODES = 500  # parameters up to which the whole Hessian is taken by default
LEADING = 20  # modes of a larger model by default
MOST = 1000  # Hessian-vector products per mode
SETTLED = 0.05  # of the loss: what a Newton step may still gain at what counts as a minimum
VANISHING = 1e-8  # of the loss of predicting zero: below it the data are interpolated
GOOD, ROUGH = 0.1, 0.3  # errors of the rule
RULE, EXACT = "rule", "exact"
INTERPOLATING, PENALISED, MISFIT = "interpolating", "penalised", "misfit"


def minimum(
    problem: Problem,
    learning_rate: float | Sequence[float],
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    *,
    sampling: Sampling | None = None,
    modes: int | None = None,
    flat: float = 1e-6,
) -> xr.Dataset:
    """Noise and stationary fluctuation of SGD around the minimum at which the model is, by the rule and exactly.

    problem: its model at a minimum of its loss, penalty included. "mse" for the rule; other losses have the exact noise
    alone. sampling: fresh batches, default WithoutReplacement(). modes: how many leading eigenvectors of the Hessian;
    default all up to 500 parameters, else 20, by Lanczos with Hessian-vector products; two passes of the data per mode.
    flat: curvatures below this share of the largest count as none; along them nothing holds the weights, and what they
    do is left out. Use a model in double precision: the Hessian is taken in the model's own.

    Returns `kind`, "interpolating" (no loss, no noise, no fluctuation), "penalised" or "misfit"; by `mode`:
    `mode_curvature` and `mode_vectors` (parameter, mode); for `noise` "rule" and "exact": `mode_noise`, the covariance
    of the minibatch gradient (noise, batch_size, mode, mode_), and `mode_fluctuation`, that of the weights (noise,
    learning_rate, batch_size, mode, mode_); `mean_critical_learning_rate` and `status`, "diverges" (NaN) from there on.
    How far the rule holds here: `noise_error` and `fluctuation_error` (learning_rate), relative, in the Frobenius norm;
    `loss_spread`, the standard deviation of the samples' losses over their mean; `gauss_newton_error`, of the
    Gauss-Newton matrix against the Hessian; `rule_status`, "good" (noise within 10 %), "rough" (30 %) or "fails".
    `multiplicative_share`: the fluctuation's own noise, which is left out here, over that of the minimum, to first
    order; where it is not small the fluctuation is larger than this, and `critical_learning_rate` of linear models is
    nearer.

    The exact noise gives the fluctuation within 1-5 % of simulation for lambda / S up to 0.03. The rule is good where
    residuals are label noise of one size and samples many beside parameters (two parameters, 200 samples: 5 % in the
    noise, 11 % in the fluctuation in the middle, ten times as many samples: 2 %, 4 %), and bad where residuals are
    misfit (25-60 %), grow with the inputs (50-90 %), or a few samples are fitted alone.
    Raises InputError where the gradient or the curvature says that this is no minimum.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(400, 2, dtype=torch.float64)
    >>> line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    >>> y = x @ torch.ones(2, 1, dtype=torch.float64) + 0.5 * torch.randn(400, 1, dtype=torch.float64)
    >>> _ = line.weight.data.copy_(torch.linalg.lstsq(x, y).solution.T)
    >>> r = minimum(Problem(line, "mse", x, y), learning_rate=0.1, batch_size=8)
    >>> str(r["kind"].values), str(r["rule_status"].values)
    ('misfit', 'good')
    """
    check_momentum(momentum)
    sampling = WithoutReplacement() if sampling is None else sampling
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(f"{sampling!r}: the theory is one of fresh batches; use WithoutReplacement()")
    grid = Grid.of(learning_rate, batch_size, 1)
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: a number or a sequence")
    check_sampling(sampling, [int(b) for b in grid.sizes], problem.n)
    values, vectors = _curvature(problem, modes, flat)
    local = _local(problem, values, vectors)
    local.require_minimum()
    noises = np.array([local.rule, local.exact])
    factors = np.array([sampling.variance_factor(int(b), problem.n) for b in grid.sizes])
    dynamics = Modes(vectors, values, np.zeros((len(values), len(values))), momentum, None, False)
    shape = (len(grid.rates.multiples), len(factors))
    spread = np.full((2, *shape, len(values), len(values)), np.nan)
    for i, c in enumerate(grid.rates.multiples):
        if c < dynamics.mean_critical:
            spread[:, i] = factors[:, None, None] * (noises / dynamics.damping(c))[:, None]
    stable = grid.rates.multiples < dynamics.mean_critical
    own = np.einsum("lbij,ij->lb", spread[1], local.gauss_newton)
    error = _relative(spread[0] - spread[1], spread[1])[:, 0]
    labelled = [grid.variable(part, "mode", "mode_") for part in spread]
    by_batch = [grid.variable(factors[:, None, None] * part, "mode", "mode_", over="batch_size") for part in noises]
    found = {
        "kind": ((), local.kind),
        "loss": ((), local.mean_loss + problem.penalty),
        "mode_curvature": (("mode",), values),
        "mode_vectors": (("parameter", "mode"), vectors),
        "mode_noise": (("noise", *by_batch[0][0]), np.array([part for _, part in by_batch])),
        "mode_fluctuation": (("noise", *labelled[0][0]), np.array([part for _, part in labelled])),
        "noise_error": ((), local.noise_error),
        "fluctuation_error": grid.variable(error, over="learning_rate"),
        "loss_spread": ((), local.loss_spread),
        "gauss_newton_error": ((), local.gauss_newton_error),
        "rule_status": ((), local.rule_status),
        "multiplicative_share": grid.variable(own / (2 * local.mean_loss) if local.mean_loss > 0 else 0 * own),
        "mean_critical_learning_rate": ((), dynamics.mean_critical),
        "status": grid.variable(np.where(stable, STATIONARY, DIVERGES), over="learning_rate"),
    }
    attributes = {
        "theory": "additive noise of the minimum, discrete time; by the rule of general minima and exactly",
        "sampling": str(sampling),
        "n_samples": problem.n,
        "parameters": problem.parameter_count,
        "modes": len(values),
        "l2": problem.l2,
        "momentum": float(momentum),
    }
    return results.dataset(found, grid.coordinates | {"noise": [RULE, EXACT]}, attributes)


@dataclass(frozen=True)
class _Local:
    """What the samples say at the minimum, along the modes."""

    curvatures: Array  # (r,)
    losses: Array  # (n,), without penalty
    gradients: Array  # (n, r), of the samples' losses
    gauss_newton: Array  # (r, r); NaN where the loss has none here
    outputs: int
    reference: float  # the loss of predicting zero
    penalty: Array  # Gamma w along the modes, (r,)
    l2: float

    @property
    def mean_loss(self) -> float:
        return float(self.losses.mean())

    @property
    def kind(self) -> str:
        if self.mean_loss <= VANISHING * self.reference:
            return INTERPOLATING
        return PENALISED if self.l2 else MISFIT

    @cached_property
    def exact(self) -> Array:
        mean = self.gradients.mean(0)
        found: Array = self.gradients.T @ self.gradients / len(self.gradients) - np.outer(mean, mean)
        return found

    @cached_property
    def rule(self) -> Array:
        if self.kind == INTERPOLATING:
            return np.zeros_like(self.gauss_newton)
        return 2 * self.mean_loss / self.outputs * self.gauss_newton - np.outer(self.penalty, self.penalty)

    @property
    def noise_error(self) -> float:
        return float(_relative(self.rule - self.exact, self.exact)) if self.kind != INTERPOLATING else 0.0

    @property
    def loss_spread(self) -> float:
        return float(self.losses.std() / self.mean_loss) if self.mean_loss > 0 else float("nan")

    @property
    def gauss_newton_error(self) -> float:
        full = np.diag(self.curvatures)
        return float(_relative(self.gauss_newton + self.l2 * np.eye(len(full)) - full, full))

    @property
    def rule_status(self) -> str:
        if np.isnan(self.noise_error):
            return "unknown for this loss"
        return "good" if self.noise_error <= GOOD else "rough" if self.noise_error <= ROUGH else "fails"

    def require_minimum(self) -> None:
        gain = 0.5 * float(((self.gradients.mean(0) + self.penalty) ** 2 / self.curvatures).sum())
        if self.kind != INTERPOLATING and gain > SETTLED * self.mean_loss:
            raise InputError(
                f"the model is not at a minimum: a Newton step would still lower the loss, {self.mean_loss:.4g}, by "
                f"{gain:.3g}; train on with full gradients first, or raise `flat` if the slope is along flat directions"
            )


def _curvature(problem: Problem, modes: int | None, flat: float) -> tuple[Array, Array]:
    """The curved eigenvalues (r,) and eigenvectors (p, r) of the Hessian, penalty included."""
    p, operator = problem.parameter_count, Hessian(problem, trial=False)
    wanted = (p if p <= ALL_MODES else LEADING) if modes is None else modes
    if not 1 <= wanted <= p:
        raise InputError(f"modes={modes}: from 1 to the {p} parameters of the model")
    if wanted == p:
        values, vectors = np.linalg.eigh(operator.to_dense())
        lowest = float(values[0])
    else:
        tolerance = 1e-8 if problem.dtype == torch.float64 else 1e-4
        found = operator.top(wanted, tolerance, most=MOST * wanted)
        least = operator.top(1, end="smallest", most=MOST)
        if not (found.converged.all() and least.converged.all()):
            worst = max(found.residuals.max(), least.residuals.max())
            raise InputError(f"the modes of the Hessian did not converge (residual {worst:.2g}); ask for fewer")
        values, vectors, lowest = found.values[::-1], found.vectors[:, ::-1], float(least.values[0])
    if lowest < -flat * values[-1]:
        raise InputError(
            f"the Hessian has the negative curvature {lowest:.3g} (largest: {values[-1]:.3g}): this is no minimum; "
            f"train on, or leave such directions out with flat={-2 * lowest / max(values[-1], 1e-300):.1g}"
        )
    kept = values > flat * values[-1]
    if not values[-1] > 0:
        raise InputError("the loss is flat in every direction here; nothing holds the weights")
    return np.asarray(values[kept], np.float64), np.asarray(vectors[:, kept], np.float64)


def _local(problem: Problem, values: Array, vectors: Array) -> _Local:
    """Directional derivatives of every sample's loss and outputs along the modes, in double precision."""
    squared = problem.loss_name == "mse"
    directions = [
        {name: part.double() for name, part in problem.unflatten(torch.as_tensor(v, device=problem.device)).items()}
        for v in vectors.T
    ]
    losses, gradients, derivatives, reference = [], [], [], 0.0
    with quiet(), elementary_kernels():
        evaluation = Evaluation(problem.model, problem.loss_spec, torch.float64)
        for chunk in problem.chunks(None, problem.chunk_size):
            inputs, targets = evaluation.place(problem.samples.batch(chunk))
            outputs = evaluation.outputs(inputs)
            own = evaluation.loss.per_sample(outputs, targets)
            losses.append(own.detach())
            gradients.append(_along(own, evaluation.leaves, directions))
            if squared:
                derivatives.append(_along(outputs.flatten(1), evaluation.leaves, directions))
                reference += float(0.5 * targets.square().sum()) / problem.n
    weights = problem.flatten(problem.parameters).detach().double().cpu().numpy()
    r, curves = len(values), torch.cat(derivatives).cpu().numpy() if squared else None
    return _Local(
        values,
        torch.cat(losses).cpu().numpy(),
        torch.cat(gradients).cpu().numpy(),
        np.full((r, r), np.nan) if curves is None else np.einsum("noi,noj->ij", curves, curves) / problem.n,
        1 if curves is None else curves.shape[1],
        reference,
        problem.l2 * (vectors.T @ weights),
        problem.l2,
    )


def _along(values: Tensor, leaves: Named, directions: list[Named]) -> Tensor:
    """The derivative of every entry along each direction, (*values, r): the gradient of `probe . values` is linear in
    the probe, so that one more differentiation by the probe gives it."""
    probe = torch.zeros_like(values, requires_grad=True)
    slope = gradient((values * probe).sum(), leaves, create_graph=True)
    parts = [torch.autograd.grad(dot(slope, v), probe, retain_graph=True)[0] for v in directions]
    return torch.stack(parts, -1)


def _relative(difference: Array, whole: Array) -> Array:
    """Frobenius norms of matrices (..., r, r), one over the other; 0 where both vanish."""
    above, below = (np.linalg.norm(m, axis=(-2, -1)) for m in (difference, whole))
    found: Array = np.where(above == 0, 0.0, above / np.where(below == 0, 1.0, below))
    return found
