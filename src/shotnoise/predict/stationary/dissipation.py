"""Is a run stationary? The fluctuation-dissipation relation of SGD, with errors that allow for autocorrelation.

With m <- mu m + g, w <- w - lambda m, whatever the loss, if ||w||^2 has a stationary mean then, exactly,

    <w_t . grad L(w_t)> = <w_t . g_t> = (lambda / 2) (1 + mu) <||m_{t+1}||^2>,

g_t the minibatch gradient at w_t (its mean is grad L, any weight decay in it included) and m_{t+1} the velocity just
made. From E||w_{t+1}||^2 = E||w_t||^2 and <w_{t+1} . m_{t+1}> = -(lambda / 2) <||m||^2>. The origin of w is free.
Source: Yaida (2019), eq. FDR1 and its form with momentum (his velocity is (1 - mu) m).

Both sides are averaged over batches of successive steps, whose means are nearly independent if the batches are long
beside the memory of the run; the lag-1 correlation of the means says whether they are.
"""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy import special

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import Array, numbers

FEWEST = 8  # batches
MANY = 8  # runs whose scatter is itself an error bar
SHORT, DRIFTS, BROKEN, HOLDS = "run too short to say", "drifts", "relation broken", "stationary"


def dissipation_terms(
    weights: ArrayLike, gradients: ArrayLike, momentum: float = 0.0, *, origin: ArrayLike | None = None
) -> tuple[Array, Array]:
    """The two series of `fluctuation_dissipation` from a recorded run: w_t . g_t and ||m_{t+1}||^2.

    weights, gradients: (steps, p) or (runs, steps, p), g_t the minibatch gradient at w_t, weight decay included.
    origin: subtracted from the weights; the final mean makes the first
    series much less noisy, and the relation holds for any. With momentum the velocity is summed up from zero: leave
    out the first 1 / (1 - momentum) steps or more.

    >>> inner, squared = dissipation_terms([[1.0], [0.5]], [[1.0], [0.5]])
    >>> inner.tolist(), squared.tolist()
    ([1.0, 0.25], [1.0, 0.25])
    """
    check_momentum(momentum)
    w, g = numbers("weights", weights), numbers("gradients", gradients)
    if w.ndim not in (2, 3) or w.shape != g.shape:
        raise InputError(
            f"weights and gradients: (steps, p) or (runs, steps, p), both alike; got {w.shape} and {g.shape}"
        )
    if origin is not None:
        centre = numbers("origin", origin)
        if centre.shape != w.shape[-1:]:
            raise InputError(f"origin: {w.shape[-1]} numbers, one per parameter; got an array {centre.shape}")
        w = w - centre
    velocity, squared = np.zeros_like(g[..., 0, :]), np.empty(g.shape[:-1])
    for t in range(g.shape[-2]):
        velocity = momentum * velocity + g[..., t, :]
        squared[..., t] = (velocity**2).sum(-1)
    return (w * g).sum(-1), squared


def fluctuation_dissipation(
    inner: ArrayLike,
    squared_velocity: ArrayLike,
    learning_rate: float,
    momentum: float = 0.0,
    *,
    batches: int = 20,
    alarm: float = 1e-3,
) -> xr.Dataset:
    """Does <w . g> equal (lambda / 2) (1 + mu) <||m||^2>, and do both stay where they are? Any run, any loss.

    inner: w_t . g_t (or w_t . grad L), squared_velocity: ||m_{t+1}||^2, both (steps,) or (runs, steps), as from
    `dissipation_terms` or recorded on the way; learning_rate lambda constant over these steps; without momentum m is g.
    With the minibatch gradients themselves the sides differ by (||w_first||^2 - ||w_last||^2) / (2 lambda steps)
    exactly, at momentum 0: only drift can break the relation. With full gradients the noise is tested too.
    Each run is cut into so many batches of steps (the first steps left out if they do not divide), and standard errors
    are those of the batch means, over all runs. alarm: the probability of denying stationarity to a stationary run,
    both tests together, with Student's t.

    Returns `dissipation` (the left side), `fluctuation` (the right), `dissipation_ratio` left over right, each with
    `_stderr`; `drift_z`, for each side (dimension `side`) the difference between the second and the first half in
    standard errors (from the scatter over runs, if there are eight); `batch_correlation`, the lag-1 autocorrelation of
    the batch means of the right side within the halves; `status`:
    "stationary", "relation broken" (the sides differ), "drifts" (they agree, but move), or "run too short to say"
    (batch means so correlated that their errors mean nothing). Not having been rejected is no proof: a plateau of slow
    drift passes if it is slower than the errors can show.

    >>> rng = np.random.default_rng(0)
    >>> w, x = np.zeros((4000, 1)), rng.normal(size=4000)
    >>> g = np.empty_like(w)
    >>> for t in range(4000):
    ...     g[t] = w[t] + x[t]
    ...     if t < 3999:
    ...         w[t + 1] = w[t] - 0.5 * g[t]
    >>> str(fluctuation_dissipation(*dissipation_terms(w, g), learning_rate=0.5)["status"].values)
    'stationary'
    """
    check_momentum(momentum)
    left, right = numbers("inner", inner), numbers("squared_velocity", squared_velocity)
    if left.ndim not in (1, 2) or left.shape != right.shape:
        raise InputError(
            f"inner and squared_velocity: (steps,) or (runs, steps), both alike; got {left.shape} and {right.shape}"
        )
    rate = numbers("learning_rate", learning_rate)
    if rate.ndim or not rate > 0:
        raise InputError(f"learning_rate={learning_rate}: one positive number; cut the run where it changes")
    if not 0 < alarm < 1:
        raise InputError(f"alarm={alarm}: a probability between 0 and 1, such as 0.001")
    steps = left.shape[-1]
    if batches < FEWEST or batches % 2 or steps < 2 * batches:
        raise InputError(
            f"batches={batches} of {steps} steps: an even number of batches, {FEWEST} at least, of two steps or more"
        )
    length = steps // batches
    sides = np.array([left, float(rate) / 2 * (1 + momentum) * right]).reshape(2, -1, steps)
    means = sides[..., steps - batches * length :].reshape(2, -1, batches, length).mean(-1)  # (side, run, batch)
    count, runs = means[0].size, means.shape[1]
    mean = means.mean((1, 2))
    error = means.reshape(2, -1).std(1, ddof=1) / np.sqrt(count)
    difference = (means[0] - means[1]).reshape(-1)
    z = _z(difference.mean(), difference.std(ddof=1) / np.sqrt(count))
    halves = means.reshape(2, runs, 2, batches // 2)
    changes, freedom = zip(*(_drift(side) for side in halves), strict=True)
    ratio = mean[0] / mean[1] if mean[1] > 0 else np.nan
    ratio_error = (means[0] - ratio * means[1]).std(ddof=1) / np.sqrt(count) / mean[1] if mean[1] > 0 else np.nan
    correlation = _lag_one(halves[1])
    drifts = np.abs(changes).max() > -float(special.stdtrit(freedom[0], alarm / 6))  # three tests, two tails each
    correlated = correlation > max(0.3, -float(special.ndtri(alarm)) / np.sqrt(count))
    if abs(z) > -float(special.stdtrit(count - 1, alarm / 6)):
        status = BROKEN
    elif correlated and not (drifts and runs >= MANY):
        status = SHORT
    else:
        status = DRIFTS if drifts else HOLDS
    found = {
        "dissipation": mean[0],
        "dissipation_stderr": error[0],
        "fluctuation": mean[1],
        "fluctuation_stderr": error[1],
        "dissipation_ratio": ratio,
        "dissipation_ratio_stderr": ratio_error,
        "batch_correlation": correlation,
        "status": status,
    }
    variables = {name: ((), value) for name, value in found.items()} | {"drift_z": (("side",), np.array(changes))}
    attributes = {
        "theory": "fluctuation-dissipation relation of stationary SGD (Yaida, 2019), exact",
        "learning_rate": float(rate),
        "momentum": float(momentum),
        "runs": runs,
        "steps": steps,
        "batches": batches,
        "alarm": alarm,
    }
    return results.dataset(variables, {"side": ["dissipation", "fluctuation"]}, attributes)


def _drift(halves: Array) -> tuple[float, int]:
    """Of batch means (run, half, batch): the change from half to half in standard errors, and their degrees of freedom.

    With many runs the errors are those of the runs, which no memory inside a run can fool.
    """
    if len(halves) >= MANY:
        change = halves[:, 1].mean(-1) - halves[:, 0].mean(-1)
        return _z(change.mean(), change.std(ddof=1) / np.sqrt(len(change))), len(change) - 1
    first, second = halves[:, 0].reshape(-1), halves[:, 1].reshape(-1)
    error = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))
    return _z(second.mean() - first.mean(), error), 2 * len(first) - 2


def _z(value: float, error: float) -> float:
    return float(value / error) if error > 0 else 0.0 if value == 0 else float(np.copysign(np.inf, value))


def _lag_one(halves: Array) -> float:
    """Autocorrelation of successive batch means (run, half, batch), pooled, around the means of the halves."""
    centred = halves - halves.mean((0, 2), keepdims=True)
    total = (centred**2).mean()
    return float((centred[..., 1:] * centred[..., :-1]).mean() / total) if total > 0 else 0.0
