"""A network with any smooth activation beside its polynomial twin, trained on the same samples.

Theorem 3.6 / A.9 of the variance paper's successor, corrected: bounded inputs, student's and teacher's pre-activations
in [-C, C] along the run, an activation s with Lipschitz derivative on [-2 C, 2 C], a polynomial close to s *and* to s'
there. The gradients then differ by at most K_T times that closeness, where K_T is computed from the run of the
network itself:

    |s(h) - p(h')| <= |s(h) - s(h')| + |s(h') - p(h')|,   and likewise for the derivatives,

so that only the network's own Lipschitz constants are needed, never those of the polynomial.
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
from shotnoise.predict.networks.activations import Elementwise, Fit, Smooth, derivative

Array = NDArray[np.float64]
MARGIN = 2.0  # how much wider than what the run visits the interval is: the theorem's 2 C
WIDEST = 1e3  # pre-activations beyond which the run is taken to diverge
NO_ROUTE = (
    "closeness on these samples says nothing of moments: with unbounded inputs the polynomial's variance can be wrong "
    "by any factor, and a gap that does not shrink with the batch cannot decide how a variance of order 1/b falls; "
    "for the network's variance use predict.propagation"
)


def polynomial_surrogate(
    student: Sequence[ArrayLike],
    teacher: Sequence[ArrayLike],
    batches: ArrayLike,
    learning_rate: schedules.LearningRate,
    *,
    activation: str | Elementwise,
    degrees: Sequence[int],
) -> xr.Dataset:
    """How far the gradients of a network's polynomial twin are from its own, by degree, step and layer.

    student, teacher: weight matrices (outputs, inputs), first layer first; batches: (T, b, inputs), the samples that
    both see at steps 0 .. T - 1, the teacher answering without noise (with the polynomial for the twin); squared loss
    1/2 ||.||^2, mean over the batch; plain SGD. activation: of the hidden layers, tanh, sigmoid, softplus, silu, gelu,
    elu, or an elementwise function of a tensor. degrees: of the polynomials, which interpolate the derivative at
    Chebyshev points of [-R, R], R twice the largest pre-activation that student and teacher meet.

    Returns, by (degree, step, layer), `surrogate_gap` = ||g - g_polynomial||_F and `surrogate_gap_bound`,
    computed from the network's run alone, inf from where it can no longer keep the twin's pre-activations in the
    interval; by degree `activation_error` and `slope_error`, the largest on a grid of the interval. Attributes: radius,
    rate (what one more degree divides the error by where the activation's nearest complex singularity is known, else
    NaN; inf for entire functions, 1 for those that decay as a power), and `caution`.

    The twin's moments are no route to the variance of the network: see the attribute `caution`.
    Raises InputError for kinks (ReLU and its like), shapes that do not chain and numbers that are not finite.
    Source: successor paper, Theorem 3.6 and A.9 (as corrected above).

    >>> rng = np.random.default_rng(0)
    >>> weights = [0.5 * rng.normal(size=(3, 2)), 0.5 * rng.normal(size=(1, 3))]
    >>> target = [0.5 * rng.normal(size=(3, 2)), 0.5 * rng.normal(size=(1, 3))]
    >>> x = rng.uniform(-1, 1, size=(4, 8, 2))
    >>> found = polynomial_surrogate(weights, target, x, 0.1, activation="tanh", degrees=[5, 9])
    >>> bool((found["surrogate_gap"] <= found["surrogate_gap_bound"]).all())
    True
    """
    W, V, x = _checked(student, teacher, batches)
    rates = schedules.values(learning_rate, len(x))
    orders = [schedules.whole("degree", degree, low=1) for degree in degrees]
    if not orders:
        raise InputError("degrees=[]: at least one")
    reach = max(_reach(activation, own, x, rates, labels) for own, labels in ((W, V), (V, V)))
    smooth = Smooth.on(activation, MARGIN * max(reach, np.finfo(float).tiny))
    own = _Path.of(W, V, x, rates, *_exact(smooth))
    fits = [smooth.polynomial(order) for order in orders]
    differences, bounds = [], []
    for fit in fits:
        twin = _Path.of(W, V, x, rates, fit.value, fit.slope)
        differences.append(own.gaps(twin))
        bounds.append(_bounds(own, V, x, rates, smooth, fit))
    axes = ("degree", "step", "layer")
    variables = {
        "surrogate_gap": (axes, np.array(differences)),
        "surrogate_gap_bound": (axes, np.array(bounds)),
        "activation_error": ("degree", np.array([fit.off for fit in fits])),
        "slope_error": ("degree", np.array([fit.off_slope for fit in fits])),
    }
    coordinates = {"degree": np.array(orders), "step": np.arange(len(x)), "layer": np.arange(len(W))}
    attributes = {
        "theory": "polynomial surrogate of a network on given samples (Theorem 3.6, corrected)",
        "activation": smooth.name,
        "radius": smooth.radius,
        "rate": np.nan if smooth.rate is None else smooth.rate,
        "caution": NO_ROUTE,
    }
    return results.dataset(variables, coordinates, attributes)


@dataclass
class _Pass:
    """One batch: pre-activations (b, d_k), layer inputs (b, d_{k-1}) and backward signals (b, d_k), by layer."""

    weights: list[Array]
    before: list[Array]
    inputs: list[Array]
    signals: list[Array]


@dataclass
class _Path:
    """A training: one pass and one gradient per layer at every step."""

    passes: list[_Pass]
    gradients: list[list[Array]]

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # a twin outside its interval may run away; its gap is then inf
    def of(cls, W: list[Array], V: list[Array], x: Array, rates: Array, s: Any, slope: Any) -> "_Path":
        weights, passes, gradients = list(W), [], []
        for batch, rate in zip(x, rates, strict=True):
            before, inputs = _forward(weights, batch, s)
            signal = before[-1] - _forward(V, batch, s)[0][-1]
            signals = [signal]
            for k in range(len(weights) - 1, 0, -1):
                signal = (signal @ weights[k]) * slope(before[k - 1])
                signals.append(signal)
            signals.reverse()
            passes.append(_Pass(weights, before, inputs, signals))
            gradients.append([d.T @ z / len(batch) for d, z in zip(signals, inputs, strict=True)])
            weights = [own - rate * g for own, g in zip(weights, gradients[-1], strict=True)]
        return cls(passes, gradients)

    @np.errstate(over="ignore", invalid="ignore")
    def gaps(self, twin: "_Path") -> list[list[float]]:
        """Between the gradients, by step and layer."""
        pairs = zip(self.gradients, twin.gradients, strict=True)
        found = [[float(np.linalg.norm(a - b)) for a, b in zip(g, h, strict=True)] for g, h in pairs]
        return [[gap if np.isfinite(gap) else np.inf for gap in row] for row in found]


def _forward(weights: list[Array], batch: Array, s: Any) -> tuple[list[Array], list[Array]]:
    before: list[Array] = []
    inputs = [batch]
    for k, W in enumerate(weights):
        before.append(inputs[-1] @ W.T)
        if k < len(weights) - 1:
            inputs.append(s(before[-1]))
    return before, inputs


def _bounds(own: _Path, V: list[Array], x: Array, rates: Array, smooth: Smooth, fit: Fit) -> list[list[float]]:
    """By step and layer, from weights that start alike; inf once the twin may leave the interval."""
    apart = np.zeros(len(own.passes[0].weights))
    found = []
    for step, batch, rate in zip(own.passes, x, rates, strict=True):
        bound = _step_bound(step, V, batch, apart, smooth, fit) if np.isfinite(apart).all() else apart
        found.append(bound.tolist())
        apart = apart + rate * bound if np.isfinite(bound).all() else bound
    return found


def _step_bound(step: _Pass, V: list[Array], batch: Array, apart: Array, smooth: Smooth, fit: Fit) -> Array:
    """How far gradients can be apart, by layer, where the weights are so by `apart` at most (spectral norms).

    The recursion of the theorem, sample by sample: what each difference can be at most, given the ones before it.
    """
    norms, size = (np.array([np.linalg.norm(W, 2) for W in weights]) for weights in (step.weights, V))
    h, z, inside = _forward_bounds(step.before, step.inputs, norms, apart, smooth, fit)
    labels, label_inputs = _forward(V, batch, _exact(smooth)[0])
    h_labels, _, labels_inside = _forward_bounds(labels, label_inputs, size, np.zeros(len(V)), smooth, fit)
    bound = np.full(len(apart), np.inf)
    if not (inside and labels_inside):
        return bound
    signal = h[-1] + h_labels[-1]
    for k in range(len(apart) - 1, -1, -1):
        each = signal * (_lengths(step.inputs[k]) + z[k]) + _lengths(step.signals[k]) * z[k]
        bound[k] = each.mean()
        if k:
            slopes = np.abs(derivative(smooth.function, step.before[k - 1])).max(1)
            off = fit.off_slope + smooth.bend * h[k - 1]
            pulled = _lengths(step.signals[k] @ step.weights[k])
            change = (norms[k] + apart[k]) * signal + apart[k] * _lengths(step.signals[k])
            signal = (slopes + off) * change + off * pulled
    return bound


def _forward_bounds(
    before: list[Array], inputs: list[Array], norms: Array, apart: Array, smooth: Smooth, fit: Fit
) -> tuple[list[Array], list[Array], bool]:
    """By layer and sample: how far pre-activations and layer inputs can be apart, and whether all stay inside."""
    z = [np.zeros(len(inputs[0]))]
    h: list[Array] = []
    inside = True
    for k in range(len(norms)):
        h.append(apart[k] * _lengths(inputs[k]) + (norms[k] + apart[k]) * z[k])
        if k < len(norms) - 1:
            inside &= bool((np.abs(before[k]).max(1) + h[k] <= smooth.radius).all())
            z.append(np.sqrt(before[k].shape[1]) * fit.off + smooth.steepest * h[k])
    return h, z, inside


def _reach(activation: str | Elementwise, W: list[Array], x: Array, rates: Array, V: list[Array]) -> float:
    """The largest hidden pre-activation along a run. A kink shows on any interval; the largest is not known yet."""
    smooth = Smooth.on(activation, 1.0)
    path = _Path.of(W, V, x, rates, *_exact(smooth))
    largest = max((float(np.abs(h).max()) for step in path.passes for h in step.before[:-1]), default=1.0)
    if not largest <= WIDEST:
        raise InputError(
            f"hidden pre-activations reach {largest:.3g}: no polynomial of a sensible degree is close to an activation "
            f"up to there (the limit is {WIDEST:g}); choose a smaller learning rate, or smaller inputs and weights"
        )
    return largest


def _exact(smooth: Smooth) -> tuple[Any, Any]:
    def value(x: Array) -> Array:
        return np.asarray(smooth.function(torch.from_numpy(x)).numpy())

    return value, lambda x: derivative(smooth.function, x)


def _lengths(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows, axis=1))


def _checked(student: Sequence[Any], teacher: Sequence[Any], batches: Any) -> tuple[list[Array], list[Array], Array]:
    W, V = _matrices("student", student), _matrices("teacher", teacher)
    x = np.asarray(batches, np.float64)
    if x.ndim != 3 or not x.size or not np.isfinite(x).all():
        raise InputError(f"batches: finite numbers (steps, batch size, inputs) are needed; got an array {x.shape}")
    for name, own in (("student", W), ("teacher", V)):
        if own[0].shape[1] != x.shape[2]:
            raise InputError(f"{name}: takes {own[0].shape[1]} inputs, but the batches have {x.shape[2]}")
    if W[-1].shape[0] != V[-1].shape[0]:
        raise InputError(
            f"the student has {W[-1].shape[0]} outputs, the teacher {V[-1].shape[0]}; they must be the same"
        )
    return W, V, x


def _matrices(name: str, given: Sequence[Any]) -> list[Array]:
    found: list[Array] = []
    for k, matrix in enumerate(given):
        W = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, np.float64)
        if W.ndim != 2 or not W.size or not np.isfinite(W).all():
            raise InputError(f"{name}[{k}]: a matrix (outputs, inputs) of finite numbers is needed, not {W.shape}")
        if found and W.shape[1] != found[-1].shape[0]:
            raise InputError(f"{name}: layer {k} takes {W.shape[1]} inputs but layer {k - 1} gives {len(found[-1])}")
        found.append(W)
    if not found:
        raise InputError(f"{name}: at least one weight matrix")
    return found
