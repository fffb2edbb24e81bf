"""Four theories of the stationary state side by side: what each approximation of the noise and of time costs.

    continuous-hessian  slope P / c = s H     continuous time, noise equal to the Hessian over S
    discrete-hessian    (slope / c + E) P = s H     discrete time, the same noise
    additive-discrete   (slope / c + E) P = s C_0     discrete time, the noise of the minimum
    exact               (slope / c + E - s N) P = s C_0     and the noise that the fluctuation makes

in the coordinates of `modes`. Source: Table 2 and Appendix B of Ziyin et al. (2022), here with momentum, and for
matrices that need not commute.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.predict.stationary.arguments import Array, Grid
from shotnoise.predict.stationary.model import LinearModel
from shotnoise.predict.stationary.modes import Modes
from shotnoise.predict.stationary.verb import MATRIX, solved

CONTINUOUS, DISCRETE, ADDITIVE, EXACT = "continuous-hessian", "discrete-hessian", "additive-discrete", "exact"
THEORIES = (CONTINUOUS, DISCRETE, ADDITIVE, EXACT)
QUANTITIES = ("weight_covariance", "train_loss", "test_loss")


def rivals(
    feature_covariance: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    *,
    label_variance: float = 0.0,
    input_covariance: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
    target: ArrayLike | None = None,
    momentum: float = 0.0,
) -> xr.Dataset:
    """The same problem by four theories (dimension `theory`), and how far each is from the exact one.

    Arguments as in `gaussian`. Returns `weight_covariance`, `train_loss`, `test_loss` by theory, learning_rate and
    batch_size, and `relative_error` (theory, quantity, ..): of the losses (theirs over the exact one, less 1), and of
    the covariance in the Frobenius norm. NaN beyond a theory's own limit (continuous time has none; the other two
    approximations have that of the mean), errors are NaN where the exact one diverges, which `status` says; so is the
    error of a loss that is exactly 0. The Hessian approximation takes the Hessian as the noise, whatever the label
    variance: it is not even of the noise's dimension.
    Source: Table 2, eq. 18-40 of Ziyin et al. (2022).

    >>> r = rivals([1.0], [0.01, 1.0], 4, label_variance=1.0)
    >>> r["relative_error"].sel(theory="discrete-hessian", quantity="weight_covariance").values.round(3).tolist()
    [0.003, 0.5]
    """
    model = LinearModel.of(
        feature_covariance, label_variance=label_variance, input_covariance=input_covariance, l2=l2, target=target
    )
    grid = Grid.of(learning_rate, batch_size, len(model.clean))
    exact, modes = solved(model, grid, momentum)
    p = len(model.clean)
    truth = np.asarray(exact["weight_covariance"].values).reshape(len(grid.rates.multiples), len(grid.sizes), p, p)
    weights = np.array([*(_approximate(model, modes, grid, theory) for theory in THEORIES[:-1]), truth])
    losses = model.losses(weights)
    size = np.linalg.norm(truth, axis=(-2, -1))
    distance = np.linalg.norm(weights - truth, axis=(-2, -1))
    errors = [_ratio(distance, size), *(_ratio(loss - loss[-1], loss[-1]) for loss in losses)]

    def by_theory(values: Array, *more: str) -> tuple[tuple[str, ...], Array]:
        parts = [grid.variable(part, *more) for part in values]
        return ("theory", *parts[0][0]), np.array([part for _, part in parts])

    dims, error = by_theory(errors[0])
    found = {
        "weight_covariance": by_theory(weights, *MATRIX),
        "train_loss": by_theory(losses[0]),
        "test_loss": by_theory(losses[1]),
        "relative_error": (
            ("theory", "quantity", *dims[1:]),
            np.stack([error, *(by_theory(other)[1] for other in errors[1:])], axis=1),
        ),
        "status": exact["status"],
        "critical_learning_rate": exact["critical_learning_rate"],
    }
    coordinates = grid.coordinates | {"theory": list(THEORIES), "quantity": list(QUANTITIES)}
    return results.dataset(found, coordinates, exact.attrs | {"theory": "four theories; the exact one is the last"})


def _approximate(model: LinearModel, modes: Modes, grid: Grid, theory: str) -> Array:
    """Weight covariances (L, B, p, p)."""
    T, p = modes.basis, len(model.clean)
    found = np.full((len(grid.rates.multiples), len(grid.sizes), p, p), np.nan)
    noise = T.T @ model.noise @ T if theory == ADDITIVE else np.diag(modes.curvatures)
    for i, c in enumerate(grid.rates.multiples):
        if modes.unstable or (theory != CONTINUOUS and c >= modes.mean_critical):
            continue
        damping = modes.slope / c if theory == CONTINUOUS else modes.damping(c)
        found[i] = T @ (noise / damping) @ T.T / grid.sizes[:, None, None]
    return found


def _ratio(above: Array, below: Array) -> Array:
    usable = np.isfinite(below) & (below != 0)
    return np.where(usable, above / np.where(usable, below, 1.0), np.nan)
