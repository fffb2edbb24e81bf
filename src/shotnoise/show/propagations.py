"""The law for large batches of `predict.propagation`, in a table and sentences."""

import numpy as np
import xarray as xr

from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, percent

QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss_variance")


def propagation_sheet(law: xr.Dataset) -> Sheet:
    """One row per batch size: the last step, with what the law leaves out."""
    last = law.isel(step=-1)
    shown = [name for name in QUANTITIES if name in last]
    rows = [
        [f"{int(b):,}", *(_with_error(last.sel(batch_size=b), name) for name in shown),
         _percent_with_error(last.sel(batch_size=b))]
        for b in law["batch_size"].values
    ]  # fmt: skip
    columns = ["batch size", *(name.replace("_", " ") for name in shown), "next order"]
    return Sheet(f"Step {int(last['step']):,}, {law.attrs['theory']}", columns, rows)


def propagation_sentences(law: xr.Dataset, exponent: xr.Dataset | None = None) -> list[str]:
    """What the law says, and from where on it holds; exponent: `predict.batch_exponent` of its last step."""
    last, valid = law.isel(step=-1), int(law.attrs["valid_from"])
    leading = float(last["gradient_variance_leading"])
    largest = f"{int(law['batch_size'].values.max()):,}"
    found = [
        f"After {int(last['step']):,} steps the minibatch gradient's variance is kappa times {number(leading)}, given "
        "the first weights; kappa = 1/b with replacement."
    ]
    share = float(last["full_gradient_variance_leading"]) / leading if leading else 0.0
    found.append(f"{percent(share)} of it is the full gradient's, which differs between runs; the rest is the batch's.")
    found.append(
        f"What this leaves out is below 10 % from b = {valid:,} on."
        if valid
        else f"What this leaves out is not below 10 % at any of these batch sizes, up to {largest}: simulate."
    )
    if exponent is not None and np.isfinite(float(exponent["batch_exponent"])):
        found.append(f"The variance falls as b^-{number(float(exponent['batch_exponent']), 3)} over these batch sizes.")
    return found


def _with_error(here: xr.Dataset, name: str) -> str:
    value, error = float(here[name]), f"{name}_stderr"
    return f"{number(value)} ± {number(float(here[error]), 2)}" if error in here else number(value)


def _percent_with_error(here: xr.Dataset) -> str:
    value, error = float(here["next_order"]), float(here["next_order_stderr"])
    if not np.isfinite(value):
        return "beyond bounds"
    return f"{percent(value)} ± {percent(error)}" if error else percent(value)
