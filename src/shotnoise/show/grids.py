"""Small multiples: rows of settings, columns of quantities, each panel a few lines in bands along one axis."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shotnoise.errors import InputError
from shotnoise.show.axes import note, step_axis
from shotnoise.show.style import PALETTE, VERMILLION, colours, house_style, new_figure

DASHES = ("-", "--", ":", "-.")
CELL = (2.3, 1.85)  # inches of a panel
LINE = 88  # letters that a legend has room for side by side
LINTHRESH = 1e-3  # share of the largest modulus below which a signed logarithmic axis is linear


@dataclass(frozen=True)
class Cell:
    """One panel: `values` (series, place), and the edges of one or two bands around each line, outer ones first.

    scale: of the vertical axis; "signed" is logarithmic either way from a linear piece around 0. zero: a line there.
    limits: of that axis. wide: steps that are spread unevenly, on a logarithmic axis from their first.
    """

    values: xr.DataArray
    bands: Sequence[tuple[xr.DataArray, xr.DataArray]] = ()
    label: str = ""
    title: str = ""
    scale: str = "linear"  # or "log", "signed"
    zero: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    wide: bool = False


@house_style()
def grid(
    rows: Sequence[Sequence[Cell]], axis: str, names: Sequence[str] | None = None, bands: Sequence[str] = ()
) -> Figure:
    """Panels in rows. names: of the series, the same in all panels; bands: what they are, outer first.

    A numbered series (`mode`) of more than seven lines runs through the colours of viridis and gets a bar instead.
    """
    if not rows or not all(rows):
        raise InputError("nothing to draw: at least one panel")
    columns = max(map(len, rows))
    figure = new_figure(0.8 + CELL[1] * len(rows), width=max(6.3, 0.5 + CELL[0] * columns))
    every = figure.subplots(len(rows), columns, squeeze=False)
    for line, cells in zip(every, rows, strict=True):
        for axes, cell in zip(line, cells, strict=False):
            _panel(axes, cell)
        for axes in line[len(cells) :]:
            axes.set_visible(False)
    for axes in every[-1]:
        axes.set_xlabel(axis)
    first = rows[0][0].values
    count = first.sizes[first.dims[0]]
    handles: list[Line2D | Patch] = []
    labels: list[str] = []
    if names is not None and count <= len(PALETTE):
        shades = colours(count)
        handles = [Line2D([], [], color=shades[k], ls=DASHES[k % 4]) for k in range(count)]
        labels = list(names)
    elif names is not None:
        shown = matplotlib.colors.ListedColormap(colours(count))
        mapped = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.5, count + 0.5), shown)
        bar = figure.colorbar(mapped, ax=every, shrink=0.5, pad=0.02, aspect=30)
        bar.set_label(names[0])
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    for k, word in enumerate(bands):
        handles.append(Patch(color=PALETTE[0], alpha=_alpha(k, len(bands))))
        labels.append(word)
    if handles:
        fitting = max(1, LINE // (max(map(len, labels)) + 7))
        count = min(5, fitting, len(handles))
        figure.legend(handles, labels, loc="outside upper center", ncols=count, handlelength=1.8)
    return figure


def _panel(axes: Axes, cell: Cell) -> None:
    series, place = cell.values.dims
    x, count = cell.values[place].values, cell.values.sizes[series]
    for k, shade in enumerate(colours(count)):
        for i, (low, high) in enumerate(cell.bands):
            below, above = (edge.isel({series: k}).values for edge in (low, high))
            if cell.scale == "log":
                below = np.where(below > 0, below, np.nan)
            axes.fill_between(x, below, above, color=shade, alpha=_alpha(i, len(cell.bands)), lw=0)
        values = cell.values.isel({series: k}).values
        dashes = DASHES[k % 4] if count <= len(PALETTE) else "-"
        axes.plot(x, np.where(np.isfinite(values), values, np.nan), color=shade, ls=dashes, lw=1.2, gid=f"series {k}")
    if cell.scale == "log":
        axes.set_yscale("log")
    elif cell.scale == "signed":
        largest = float(np.nanmax(np.abs(cell.values.values)))
        axes.set_yscale("symlog", linthresh=LINTHRESH * largest if largest > 0 else 1.0, linscale=1.5)
    if cell.wide:
        step_axis(axes, [int(t) for t in x], most=4)
        axes.set_xlabel("")
    if cell.zero:
        axes.axhline(0.0, color=VERMILLION, lw=0.8)
    axes.set_ylim(*cell.limits)
    axes.set_ylabel(cell.label, fontsize=9)
    axes.tick_params(labelsize=8)
    note(axes, cell.title)


def _alpha(k: int, count: int) -> float:
    return 0.2 if k == 0 and count > 1 else 0.3
