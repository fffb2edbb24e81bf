"""Tables as plain rows of text, made once and then set either for the terminal or for the page."""

from typing import NamedTuple

import xarray as xr
from rich import box
from rich.table import Table
from rich.text import Text

from shotnoise.compare import Agreement
from shotnoise.results import UNRESOLVED
from shotnoise.show import stored
from shotnoise.show.stored import VARIANCE
from shotnoise.show.words import number, percent, with_stderr

MOST_COMPARED = 60  # rows
SIGNAL_AND_NOISE = ["signal ‖∇L‖²", "noise Tr Σ", "noise scale (samples)"]


class Sheet(NamedTuple):
    """A table in words. `sections` holds the index of every row (but the first) that opens a new step."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    sections: tuple[int, ...] = ()


def table(result: xr.Dataset, observed: xr.Dataset | None = None) -> Table:
    """The table for a terminal: one row per batch size (and step), with the variance, observed and share of
    noise.
    """
    return set_for_terminal(batch_sheet(result, observed))


def set_for_terminal(sheet: Sheet) -> Table:
    """A sheet as a table of Rich."""
    drawn = Table(
        title=Text(sheet.title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold"
    )
    for column in sheet.columns:
        drawn.add_column(Text(column), justify="right", vertical="bottom")
    for k, row in enumerate(sheet.rows):
        if k in sheet.sections:
            drawn.add_section()
        drawn.add_row(*(Text(cell, no_wrap=True) for cell in row))
    return drawn


def batch_sheet(result: xr.Dataset, observed: xr.Dataset | None = None) -> Sheet:
    """One row per step and batch size; sizes that were only observed have a row too."""
    stored.check(result, observed)
    parts = stored.slices(result)
    named = parts[0][0] is not None
    columns = ["step"] * named + ["batch size", "gradient variance"] + ["observed variance"] * (observed is not None)
    columns += ["noise share"] + ["noise scale"] * named
    rows: list[list[str]] = []
    sections = []
    for step, here in parts:
        sections.append(len(rows))
        found = stored.observed_at(observed, step)
        for cells in _batch_rows(here, found, with_observed=observed is not None):
            rows.append([*_step_cells(step), *cells, *([scale_cell(here)] * named)])
    title = "Noise of the minibatch gradient"
    if not named:
        title += f"; noise scale: {scale_cell(parts[0][1])} samples"
    return Sheet(title, columns, rows, tuple(sections[1:]))


def step_sheet(result: xr.Dataset) -> Sheet:
    """One row per step: loss, signal, noise and the noise scale with its interval."""
    parts = stored.slices(result)
    named = parts[0][0] is not None
    columns = ["loss", *SIGNAL_AND_NOISE, "interval", "status"]
    rows = []
    for step, here in parts:
        low, high = stored.value(here, "noise_scale_low"), stored.value(here, "noise_scale_high")
        exact = stored.status(here) == "exact"
        cells = [_cell(here, name) for name in ("loss", "gradient_norm_sq", "noise_trace")]
        cells += [scale_cell(here), "exact" if exact else f"{number(low, 3)} to {number(high, 3)}"]
        rows.append([*_step_cells(step), *cells, stored.status(here)])
    return Sheet("The weights measured", ["step"] * named + columns, rows)


def layer_sheet(result: xr.Dataset) -> Sheet | None:
    """One row per layer, in the network's order, at the last step; None if the result knows no layers."""
    step, here = stored.slices(result)[-1]
    if "layer_noise_scale" not in here:
        return None
    numbers = ["layer_gradient_norm_sq", "layer_noise_trace", "layer_noise_scale"]
    rows = []
    for k, name in enumerate(here["layer"].values):
        layer = here.isel(layer=k)
        count = f"{int(layer['layer_parameters']):,}" if "layer_parameters" in layer.coords else ""
        path = str(layer["layer_path"].values.item()) if "layer_path" in layer.coords else ""
        rows.append([str(name), count, path, *(_cell(layer, variable) for variable in numbers)])
    where = "" if step is None else f" at step {step:,}"
    columns = ["layer", "parameters", "computed by", *SIGNAL_AND_NOISE]
    return Sheet(f"Layers{where}", columns, rows)


def agreement_sheet(agreement: Agreement, compared: tuple[str, str] = ("measured", "observed")) -> Sheet:
    """One row per compared number: both values with their standard errors, and z between them; of many, the "
    "largest z."""
    rows = []
    shown = list(agreement.rows)
    if len(shown) > MOST_COMPARED:
        shown = sorted(shown, key=lambda row: -abs(row.z))[:MOST_COMPARED]
    for row in shown:
        where = ", ".join(f"{dim.replace('_', ' ')} {_coordinate(at)}" for dim, at in row.where.items())
        first, second = with_stderr(row.a, row.a_stderr), with_stderr(row.b, row.b_stderr)
        rows.append([row.variable.replace("_", " "), where, first, second, f"{row.z:+.2f}"])
    title = f"Comparison, |z| up to {agreement.threshold:.2f} allowed"
    if len(shown) < len(agreement.rows):
        title += f"; the {len(shown)} largest of {len(agreement.rows):,}"
    return Sheet(title, ["variable", "where", *compared, "z"], rows)


def scale_cell(here: xr.Dataset) -> str:
    """The noise scale in samples, or what is left to say of it."""
    if stored.status(here) != UNRESOLVED:
        return number(stored.value(here, "noise_scale"), 3)
    low = stored.value(here, "noise_scale_low")
    return f"over {number(low, 3)}" if low > 0 else "not resolved"


def _batch_rows(here: xr.Dataset, found: xr.Dataset | None, *, with_observed: bool) -> list[list[str]]:
    sizes = stored.batch_sizes(here)
    seen = [] if found is None else stored.batch_sizes(found)
    rows = []
    for size in sorted({*sizes, *seen}):
        mine = here.isel(batch_size=sizes.index(size)) if size in sizes else None
        theirs = found.isel(batch_size=seen.index(size)) if found is not None and size in seen else None
        share = "" if mine is None else percent(stored.value(mine, "noise_share"))
        cells = [f"{size:,}", _cell(mine, VARIANCE)]
        cells += [_cell(theirs, VARIANCE)] if with_observed else []
        rows.append([*cells, share.replace("more than ", "> ").replace("less than ", "< ")])
    return rows


def _step_cells(step: int | None) -> list[str]:
    return [] if step is None else [f"{step:,}"]


def _cell(here: xr.Dataset | None, name: str) -> str:
    if here is None:
        return ""
    error = f"{name}_stderr"
    return with_stderr(stored.value(here, name), stored.value(here, error) if error in here else None)


def _coordinate(at: object) -> str:
    return f"{at:,}" if isinstance(at, int) else str(at)
