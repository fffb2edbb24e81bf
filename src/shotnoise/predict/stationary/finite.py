"""The stationary state on a finite data set: exact, and the high-dimensional formula with its error beside it."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.linear_regression.stability import DIVERGES, STATIONARY, regression_stationary
from shotnoise.predict.stationary.arguments import Array, Grid, covariance, numbers, variance, vector, whole_batches
from shotnoise.predict.stationary.verb import MATRIX
from shotnoise.sampling import Sampling, WithReplacement

NODES = 2000  # of the integral over the spectrum
APPROXIMATE = "high-dimensional formula, an approximation: features and residuals taken as Gaussian and independent"


def finite_data(
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    momentum: float = 0.0,
    l2: float = 0.0,
    *,
    sampling: Sampling | None = None,
    target: ArrayLike | None = None,
    feature_covariance: ArrayLike | None = None,
) -> xr.Dataset:
    """The stationary state of SGD on these samples, exactly, with fresh batches in either sampling mode.

    X (n, p), y (n,); sampling default WithoutReplacement(); learning_rate a number, a sequence, or (without penalty) a
    symmetric positive definite matrix; l2 a number. The names of `gaussian`; `predict.regression_stationary` does the
    work, and takes several outputs, weights of samples and an intercept besides. With target u and the
    feature_covariance A of the population there is a `test_loss`, 1/2 E (w - u)^T A (w - u).

    Nothing is assumed of the data. With fewer samples than features and no penalty the noise vanishes at the minimum,
    and with it the fluctuation. Source: eq. 2 of Ziyin et al. (2022) averaged over the stationary iterate, with the
    factor (N - S) / (S (N - 1)) for batches without replacement.

    >>> s = finite_data([[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], 0.25, 1)
    >>> round(float(s["weight_covariance"].item()), 12)
    0.066666666667
    """
    data = numbers("X", X)
    if data.ndim != 2:
        raise InputError(f"X: a matrix (samples, features) is needed, not an array {data.shape}")
    p = data.shape[1]
    grid = Grid.of(learning_rate, batch_size, p)
    if np.ndim(y) != 1:
        raise InputError(
            f"y: one target per sample is needed; got {np.shape(y)} (several: `predict.regression_stationary`)"
        )
    if grid.rates.kind == "matrix" and l2:
        raise InputError(
            "l2 with a matrix of learning rates is not known here for data; use one of the two, or `gaussian` with "
            "the fourth moments of the data"
        )
    root = grid.rates.root
    sizes = [int(b) for b in grid.sizes]
    parts = [
        regression_stationary(data @ root, y, float(c), sizes, sampling=sampling, momentum=momentum, l2=l2)
        for c in grid.rates.multiples
    ]

    def gathered(name: str) -> Array:
        return np.array([part[name].values for part in parts])

    back = np.linalg.inv(root)
    weights = root @ gathered("weight_covariance")[:, :, 0] @ root
    minimum = root @ parts[0]["mean_weights"].values[0]
    found = {
        "weight_covariance": grid.variable(weights, *MATRIX),
        "noise_covariance": grid.variable(back @ gathered("noise_covariance")[:, :, 0] @ back, *MATRIX),
        "train_loss": grid.variable(gathered("loss")),
        "status": grid.variable(gathered("status")),
        "critical_learning_rate": grid.variable(parts[0]["critical_learning_rate"].values, over="batch_size"),
        "mean_weights": (("parameter",), minimum),
    }
    if (target is None) != (feature_covariance is None):
        raise InputError("target and feature_covariance: the test loss needs both, or leave out both")
    if target is not None and feature_covariance is not None:
        A, off = covariance("feature_covariance", feature_covariance, p), minimum - vector("target", target, p)
        found["test_loss"] = grid.variable(0.5 * (off @ A @ off + np.einsum("ij,...ij->...", A, weights)))
    attributes = {name: parts[0].attrs[name] for name in ("theory", "sampling", "n_samples", "l2", "momentum")}
    return results.dataset(found, grid.coordinates, attributes | {"parameters": p})


def high_dimensional(
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    *,
    sampling: Sampling | None = None,
) -> xr.Dataset:
    """The high-dimensional formula on these samples, an approximation, and its error against the exact answer.

        tr A Sigma = s lambda t tau / (1 - s lambda tau),   tau = tr A [2 I - lambda (1 + s) A]^-1

    A = X^T X / n, t the mean squared residual, s the variance factor of a batch (1/S with replacement, the default
    here). It treats residuals as independent of features, and both as Gaussian. Range, for Gaussian data, n samples
    and p features, as the root mean square of the error over data sets: at p = 40 some 7 % at n/p = 1.2 and 2, 3 % at
    5, 1.5 % at 20; at p = 100 2.5 %, 2 %, 0.8 %, 0.5 %. It grows towards the critical rate, and at p = 3 it can exceed
    100 %: look at `relative_error`.

    Returns over learning_rate and batch_size: `feature_fluctuation` (the formula's tr A Sigma, twice the excess
    training loss; NaN where the formula diverges), `feature_fluctuation_exact`, `relative_error` (NaN where the data
    are interpolated and both vanish), and the exact `status` and `critical_learning_rate`. Source: Proposition 4 and
    Theorem 6 of Ziyin et al. (2022), with 1 + 1/S for the printed 1 - 1/S.

    >>> x = np.random.default_rng(0).normal(size=(400, 40))
    >>> r = high_dimensional(x, np.random.default_rng(1).normal(size=400), 0.2, 16)
    >>> abs(float(r["relative_error"])) < 0.02
    True
    """
    sampling = WithReplacement() if sampling is None else sampling
    exact = finite_data(X, y, learning_rate, batch_size, sampling=sampling)
    data, targets = np.asarray(X, np.float64), np.asarray(y, np.float64)
    grid = Grid.of(learning_rate, batch_size, data.shape[1])
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: the high-dimensional formula knows numbers, not matrices; see `finite_data`")
    A = data.T @ data / len(data)
    residuals = float(((data @ exact["mean_weights"].values - targets) ** 2).mean())
    interpolated = residuals <= 1e-20 * float((targets**2).mean())  # all that fluctuates then is rounding
    factors = np.array([sampling.variance_factor(int(b), len(data)) for b in grid.sizes])
    values = np.asarray(np.linalg.eigvalsh(A), np.float64)
    formula = _fluctuation(values, np.ones_like(values), residuals, grid.rates.multiples, factors)
    approximate = exact["train_loss"].copy(data=grid.variable(formula)[1])
    truth = xr.dot(xr.DataArray(A, dims=MATRIX), exact["weight_covariance"], dim=MATRIX)
    found = {
        "feature_fluctuation": approximate,
        "feature_fluctuation_exact": truth,
        "relative_error": approximate / truth.where(not interpolated) - 1,
        "status": exact["status"],
        "critical_learning_rate": exact["critical_learning_rate"],
    }
    return results.dataset(found, grid.coordinates, exact.attrs | {"theory": APPROXIMATE})


def high_dimensional_limit(
    n_samples: int,
    n_features: int,
    label_variance: float,
    learning_rate: ArrayLike,
    batch_size: int | Sequence[int],
    *,
    feature_variance: float = 1.0,
) -> xr.Dataset:
    """The same formula for isotropic features before the data are drawn: n, p large, alpha = n / p.

    The spectrum of A is that of Marchenko and Pastur, and the mean squared residual sigma^2 (1 - 1/alpha): on one data
    set the latter scatters by the share sqrt(2 / (n - p)), for Gaussian labels. With replacement. Returns
    `feature_fluctuation` over learning_rate and batch_size, 0 for n <= p (no residuals, no noise) wherever it is
    stationary, and `status` by the formula. Source: Theorem 6 of Ziyin et al. (2022), corrected.

    >>> r = high_dimensional_limit(400, 200, 1.0, 0.01, 32)
    >>> round(float(r["feature_fluctuation"]), 6)
    0.016259
    """
    counts, _ = whole_batches([n_samples, n_features])
    grid = Grid.of(learning_rate, batch_size, int(counts[1]))
    if grid.rates.kind == "matrix":
        raise InputError("learning_rate: the high-dimensional formula knows numbers, not matrices")
    ratio, a, label = counts[1] / counts[0], variance("feature_variance", feature_variance), label_variance
    theta = (np.arange(NODES) + 0.5) * np.pi / NODES
    eigenvalues = a * (1 + ratio + 2 * np.sqrt(ratio) * np.cos(theta))
    density = a * 2 * np.sin(theta) ** 2 / eigenvalues / NODES  # times dx; the rest of the mass lies at zero
    residuals = variance("label_variance", label) * max(0.0, 1 - ratio)
    formula = _fluctuation(eigenvalues, counts[1] * density, residuals, grid.rates.multiples, 1 / grid.sizes)
    status = np.where(np.isnan(formula), DIVERGES, STATIONARY)
    found = {"feature_fluctuation": grid.variable(formula), "status": grid.variable(status)}
    attributes = {"theory": APPROXIMATE, "n_samples": int(n_samples), "parameters": int(n_features)}
    return results.dataset(found, grid.coordinates, attributes)


def _fluctuation(values: Array, counts: Array, residuals: float, rates: Array, factors: ArrayLike) -> Array:
    """The formula over learning rates (L,) and variance factors (B,) for so many eigenvalues; NaN where it diverges."""
    shares = np.asarray(factors, np.float64)
    found = np.full((len(rates), len(shares)), np.nan)
    for i, c in enumerate(rates):
        for j, s in enumerate(shares):
            room = 2 - c * (1 + s) * values
            tau = c * (counts * values / room).sum()
            if (room > 0).all() and s * tau < 1:
                found[i, j] = s * residuals * tau / (1 - s * tau)
    return found
