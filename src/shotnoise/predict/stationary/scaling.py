"""The linear scaling rule, learning rate in proportion to batch size: by how much it fails, and what to do instead.

At fixed rho = lambda / S the fluctuation depends on rho and lambda through G = 2 (1 - mu) I - ((1 - mu) / (1 + mu)
lambda + rho) A alone: what breaks the rule is the term in lambda without S, so it fails at large rates, not at small
batches. In one dimension Sigma = rho sigma^2 / (2 - lambda a - 2 rho a). Source: sec. 6.5 of Ziyin et al. (2022),
corrected.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY
from shotnoise.predict.linear_regression.verb import check_momentum
from shotnoise.predict.stationary.arguments import Rates, whole_batches
from shotnoise.predict.stationary.model import LinearModel
from shotnoise.predict.stationary.modes import Modes

EDGE = 1e-12  # how near the critical rate a proposal may come, relative to it


def linear_scaling(
    feature_covariance: ArrayLike,
    learning_rate: float,
    batch_size: int,
    new_batch_size: int | Sequence[int],
    *,
    label_variance: float = 0.0,
    input_covariance: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    target: ArrayLike | None = None,
    momentum: float = 0.0,
    keep: Literal["weights", "loss"] = "weights",
) -> xr.Dataset:
    """What scaling the learning rate with the batch does to the fluctuation, and the rate that would keep it.

    From learning_rate and batch_size, which must be stationary, to new_batch_size. keep: what is to stay, "weights",
    the trace of their covariance, or "loss", the excess training loss. Other arguments as in `gaussian`. Returns by
    batch_size: `scaled_learning_rate`, the rule's lambda S' / S; `fluctuation_ratio`, by how much what is to stay
    changes under the rule (1 where the rule is right, NaN where it diverges, see `status`);
    `proposed_learning_rate`, which leaves it as it was.

    >>> r = linear_scaling([1.0], 0.1, 8, [16, 80], label_variance=1.0)
    >>> r["fluctuation_ratio"].values.round(6).tolist()  # (2 - 0.1 - 0.025) / (2 - lambda - 0.025)
    [1.056338, 1.923077]
    >>> r["proposed_learning_rate"].values.round(6).tolist()
    [0.190476, 0.689655]
    """
    model = LinearModel.of(
        feature_covariance, label_variance=label_variance, input_covariance=input_covariance, l2=l2, target=target
    )
    check_momentum(momentum)
    sizes, one = whole_batches(new_batch_size)
    first, single = whole_batches(batch_size)
    p = len(model.clean)
    rates = Rates.of(learning_rate, p)
    if rates.kind != "number" or not single:
        raise InputError("learning_rate and batch_size: one number each, from which to scale; see new_batch_size")
    if keep not in ("weights", "loss"):
        raise InputError(
            f"keep={keep!r}: 'weights' (the trace of their covariance) or 'loss' (the excess training loss)"
        )
    modes = Modes.of(model.features, model.penalty, rates.root, momentum)
    T = modes.basis
    noise, measured = T.T @ model.noise @ T, T.T @ T if keep == "weights" else np.diag(modes.curvatures)

    def fluctuation(c: float, S: float) -> float:
        return float((measured * modes.solve(c, 1 / S, noise / S, modes.critical_batch(c))).sum())

    old, rate = float(first[0]), float(rates.multiples[0])
    if rate >= modes.critical(1 / old):
        raise InputError(
            f"learning_rate={rate} is not below the critical one, {modes.critical(1 / old):.6g}: there is no "
            "fluctuation to keep; start from a smaller one"
        )
    before = fluctuation(rate, old)
    if not before > 0:
        raise InputError("there is no noise at the minimum, so nothing fluctuates; give label_variance, for example")
    scaled, ratio, proposed = rate * sizes / old, np.full(len(sizes), np.nan), np.empty(len(sizes))
    for j, S in enumerate(map(float, sizes)):
        critical = modes.critical(1 / S)
        if scaled[j] < critical:
            ratio[j] = fluctuation(scaled[j], S) / before
        proposed[j] = brentq(
            lambda share, S=S, critical=critical: np.log(fluctuation(share * critical, S) / before),
            1e-12, 1 - EDGE, xtol=1e-15, rtol=1e-13,
        ) * critical  # fmt: skip
    status = np.where(np.isnan(ratio), DIVERGES, STATIONARY)
    found = {"scaled_learning_rate": scaled, "fluctuation_ratio": ratio, "proposed_learning_rate": proposed}
    dims = () if one else ("batch_size",)
    variables = {name: (dims, values[0] if one else values) for name, values in (found | {"status": status}).items()}
    attributes = {
        "theory": "exact second moments of SGD on a linear model, fresh samples at every step",
        "learning_rate": rate,
        "from_batch_size": int(old),
        "momentum": float(momentum),
        "keep": keep,
    }
    return results.dataset(variables, {"batch_size": sizes[0] if one else sizes}, attributes)
