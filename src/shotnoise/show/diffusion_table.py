"""The continuous models of SGD at a minimum as a table and in sentences."""

import numpy as np
import xarray as xr

from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, percent

DISCRETE, STATIONARY = "discrete", "stationary"


def diffusion_sheet(models: xr.Dataset) -> Sheet:
    """One row per model of `predict.diffusion.ornstein_uhlenbeck`: variances of the weights and the error."""
    d = models.sizes["parameter"]
    rows = []
    for name in models["theory"].values:
        here = models.sel(theory=name)
        variances = np.diag(here["settled_covariance"].values)
        error = float(here["relative_error"])
        cells = [number(float(variances.sum())), number(float(variances.min())), number(float(variances.max()))]
        off = "" if name == DISCRETE else f"{'-' if error < 0 else '+'}{percent(abs(error))}"
        rows.append([str(name), *cells, off, str(here["status"].item())])
    title = f"Stationary covariance of {d} weight{'s' * (d > 1)}"
    return Sheet(title, ["model", "trace", "least variance", "largest variance", "error", "status"], rows)


def diffusion_sentences(models: xr.Dataset, rotation: xr.Dataset | None = None) -> list[str]:
    """Which model is best, what spreads, and what turns (`rotation`: of `predict.diffusion.rotation`)."""
    status = dict(zip(models["theory"].values, models["status"].values, strict=True))
    if status[DISCRETE] == "diverges":
        return ["SGD diverges at this learning rate, whatever the diffusions say."]
    found = []
    if status[DISCRETE] != STATIONARY:
        gained = number(float(np.trace(models["covariance_growth"].values)))
        found.append(f"There is no stationary law: flat directions gain a variance of {gained} with every update.")
    errors = {name: abs(float(models["relative_error"].sel(theory=name))) for name in status if name != DISCRETE}
    best = min(errors, key=lambda name: errors[name])
    found.append(f"Nearest to SGD is the {best} equation, off by {percent(errors[best])}.")
    if rotation is not None:
        if float(rotation["commutator"]) < 1e-12:
            found.append("Hessian and noise commute: detailed balance, no current.")
        else:
            rates = [float(r) for r in rotation["rotation_rates"].values]
            turns = f", turning at up to {number(max(rates))} per unit time" if rates and max(rates) > 0 else ""
            produced = number(float(rotation["entropy_production"]))
            found.append(
                f"Hessian and noise do not commute: a current circulates{turns}, entropy is produced at {produced}."
            )
    return found
