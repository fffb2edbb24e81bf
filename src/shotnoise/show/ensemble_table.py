"""Where an ensemble ended: a table for the terminal, one row per batch size (and update rule)."""

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from shotnoise.show.words import number, with_stderr
from shotnoise.simulate.outcome import summary
from shotnoise.simulate.plan import DIVERGED, NEVER

SHOWN = {"loss": "loss", "minibatch_loss": "minibatch loss", "gradient_variance": "gradient variance"}


def ensemble_table(runs: xr.Dataset) -> Table:
    """The last step of what `shotnoise.simulate` returned: means with standard errors and medians over the runs, how
    many runs there are, and how many of them diverged."""
    parts = [f"{name}{part}" for name in SHOWN for part in ("", "_stderr", "_quantile")]
    end = summary(runs[[part for part in parts if part in runs]].isel(step=-1, missing_dims="ignore"))
    known = [name for name in SHOWN if name in end]
    when = runs[DIVERGED].transpose(..., "run")
    dims = [str(dim) for dim in when.dims[:-1]]
    table = Table(
        title=Text(f"At step {int(runs['step'][-1]):,}"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    columns = [dim.replace("_", " ") for dim in dims]
    for name in known:
        columns += [SHOWN[name], "median"] if f"{name}_quantile" in end else [SHOWN[name]]
    for column in [*columns, "runs", "diverged"]:
        table.add_column(Text(column), justify="right", vertical="bottom")
    for place in np.ndindex(when.shape[:-1]):
        cell = dict(zip(dims, place, strict=True))
        here, steps = end.isel(cell, missing_dims="ignore"), when.isel(cell).values
        row = [str(runs[dim].values[position]) for dim, position in cell.items()]
        for name in known:
            row += _numbers(here, name)
        row += [f"{(steps >= NEVER).sum():,}", f"{(steps > NEVER).sum():,}"]
        table.add_row(*map(Text, row))
    return table


def _numbers(here: xr.Dataset, name: str) -> list[str]:
    mean = with_stderr(float(here[name]), float(here[f"{name}_stderr"]))
    if f"{name}_quantile" not in here:
        return [mean]
    return [mean, number(float(here[f"{name}_quantile"].sel(quantile=0.5)))]
