"""How the numbers of a stored result are reached; everything else in this package goes through here."""

from statistics import NormalDist

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from shotnoise.errors import InputError

VARIANCE = "conditional_gradient_variance"
_NEEDED = [
    "loss",
    "gradient_norm_sq",
    "noise_trace",
    "noise_share",
    "noise_scale",
    "noise_scale_low",
    "noise_scale_high",
    "noise_scale_status",
]


def check(result: xr.Dataset, observed: xr.Dataset | None = None) -> None:
    """Raise InputError unless `result` is what `measure` returns, and `observed` was drawn at its steps."""
    missing = [name for name in (VARIANCE, *_NEEDED) if name not in result]
    if missing:
        raise InputError(
            f"expected a result of shotnoise.measure, but {', '.join(missing)} is not among the variables "
            f"({', '.join(map(str, result.data_vars)) or 'there are none'}). Pass the dataset that "
            "measure returned."
        )
    if extra := set(result[VARIANCE].dims) - {"batch_size", "step"}:
        raise InputError(
            f"{VARIANCE} has the dimension {', '.join(sorted(map(str, extra)))}, but only batch_size and "
            "step can be shown. Select one entry or average first."
        )
    if observed is not None:
        _check_observed(result, observed)


def _check_observed(result: xr.Dataset, observed: xr.Dataset) -> None:
    for name in (VARIANCE, f"{VARIANCE}_stderr"):
        if name not in observed:
            raise InputError(f"`observed` has no variable {name}. Pass what shotnoise.measure.observed returned.")
    if "step" in result.dims and "step" not in observed.coords:
        raise InputError(
            "the result was measured at several steps, but `observed` does not say at which one it was "
            "drawn. Add it, for example observed.assign_coords(step=1000)."
        )
    steps, drawn = ({step for step, _ in slices(each)} for each in (result, observed))
    if "step" in result.coords and "step" in observed.coords and not drawn <= steps:
        raise InputError(
            f"`observed` was drawn at steps {sorted(map(str, drawn))}, the result measured at "
            f"{sorted(map(str, steps))}. Draw at the measured steps."
        )
    if "step" not in result.coords and "step" in observed.dims:
        raise InputError("`observed` has a dimension step that the result lacks. Select one step of it.")


def slices(result: xr.Dataset) -> list[tuple[int | None, xr.Dataset]]:
    """The result step by step: pairs of the step (None if the result knows no steps) and what was found
    there.
    """
    if "step" in result.dims:
        return [(int(step), result.isel(step=k)) for k, step in enumerate(result["step"].values)]
    return [(int(result["step"]) if "step" in result.coords else None, result)]


def observed_at(observed: xr.Dataset | None, step: int | None) -> xr.Dataset | None:
    """What was observed at this step, None if nothing was."""
    if observed is None:
        return None
    return next((found for at, found in slices(observed) if at == step or None in (at, step)), None)


def value(here: xr.Dataset, name: str) -> float:
    """A stored number; NaN where the result does not have it."""
    return float(here[name]) if name in here else float("nan")


def values(here: xr.Dataset, name: str) -> NDArray[np.float64]:
    """A stored array, in its own order."""
    return np.asarray(here[name].values, dtype=float)


def stderr(here: xr.Dataset, name: str) -> NDArray[np.float64] | None:
    """The standard errors stored beside a variable, same shape; None if it is exact."""
    return values(here, f"{name}_stderr") if f"{name}_stderr" in here else None


def batch_sizes(here: xr.Dataset) -> list[int]:
    return [int(b) for b in here["batch_size"].values]


def count(here: xr.Dataset, name: str) -> int | None:
    """A whole number from the provenance, such as "n_samples"; None where there is none (unlimited data)."""
    entry = here.attrs.get(name)
    return int(entry) if isinstance(entry, int | float | np.integer | np.floating) and entry > 0 else None


def status(here: xr.Dataset) -> str:
    """How well the noise scale is known: "exact", "estimated" or "not resolvable with this budget"."""
    return str(here["noise_scale_status"].values.item())


def confidence(result: xr.Dataset) -> float:
    """The confidence of every interval in this result, 0.95 unless it says otherwise."""
    return float(result.attrs.get("confidence", 0.95))


def half_widths(result: xr.Dataset) -> float:
    """How many standard errors reach from a value to the end of its interval.

    >>> round(half_widths(xr.Dataset(attrs={"confidence": 0.95})), 2)
    1.96
    """
    return NormalDist().inv_cdf(0.5 + confidence(result) / 2)
