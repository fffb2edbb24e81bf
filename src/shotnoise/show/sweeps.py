"""A quantity against one parameter: what theories say as lines, runs as marks, limits as vertical lines."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from shotnoise.errors import InputError
from shotnoise.show.axes import looks, note, place_ticks
from shotnoise.show.ensembles import NORMAL
from shotnoise.show.style import BLACK, GREY, house_style, new_figure

NAMES = {
    "discrete-hessian": "discrete time, Hessian as noise",
    "continuous-hessian": "continuous time, Hessian as noise",
    "additive-discrete": "discrete time, additive noise",
}
FEW = 8  # places along a curve that are named themselves
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    """One panel: `curves` with a `theory` axis and one more; `runs` over that one, or None.

    runs: value and value_stderr, and judged, False for marks that are drawn (hollow) but no part of a verdict.
    limits: places of vertical lines. logarithmic: which axes.
    """

    curves: xr.DataArray
    runs: xr.Dataset | None
    label: str
    axis: str
    title: str = ""
    logarithmic: str = "y"  # which axes: "", "x", "y" or "xy"
    limits: tuple[float, ...] = ()
    highest: float | None = None
    errors: xr.DataArray | None = None  # standard errors of the curves, where these are estimates


@house_style()
def sweeps(*panels: Panel) -> Figure:
    """Panels below each other; theories in the same order everywhere, the first one (the exact one) drawn solid."""
    if not panels:
        raise InputError("nothing to draw: at least one panel")
    figure = new_figure(0.8 + 2.6 * len(panels))
    every = np.atleast_1d(figure.subplots(len(panels), 1))
    for axes, panel in zip(every, panels, strict=True):
        _panel(axes, panel)
    names = [str(name) for name in panels[0].curves["theory"].values]
    colours = looks(len(names))
    handles = [Line2D([], [], color=c.colour, ls=DASHES[k % 4]) for k, c in enumerate(colours)]
    labels = [_label(name) for name in names]
    if any(panel.runs is not None for panel in panels):
        handles.append(Line2D([], [], color=BLACK, marker="o", ms=4, ls=""))
        labels.append("runs, 95 % intervals")
        if any(panel.runs is not None and not panel.runs["judged"].all() for panel in panels):
            handles.append(Line2D([], [], color=BLACK, marker="o", ms=4, mfc="white", ls=""))
            labels.append("runs, not judged")
    if any(panel.limits for panel in panels):
        handles.append(Line2D([], [], color=GREY, ls="-", lw=0.8))
        labels.append("second moments diverge")
    figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=2.2)
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    (axis,) = (dim for dim in panel.curves.dims if dim != "theory")
    place = panel.curves[axis].values
    for k, (name, look) in enumerate(
        zip(panel.curves["theory"].values, looks(panel.curves.sizes["theory"]), strict=True)
    ):
        values = panel.curves.sel(theory=name).values
        axes.plot(place, np.where(np.isfinite(values), values, np.nan), color=look.colour, ls=DASHES[k % 4],
                  gid=f"theory {name}")  # fmt: skip
        if panel.errors is not None:
            reach = NORMAL * panel.errors.sel(theory=name).values
            axes.errorbar(place, values, reach, fmt=look.marker, ms=4, color=look.colour, lw=0.9)
    if panel.runs is not None:
        _marks(axes, panel.runs, str(axis))
    for limit in panel.limits:
        axes.axvline(limit, color=GREY, lw=0.8)
    if "y" in panel.logarithmic:
        axes.set_yscale("log")
    if "x" in panel.logarithmic:
        axes.set_xscale("log")
        marked = panel.curves if panel.runs is None else panel.runs
        if panel.runs is not None or panel.errors is not None or marked.sizes[axis] <= FEW:
            place_ticks(axes, [float(x) for x in marked[axis].values])
    if panel.highest is not None:
        axes.set_ylim(None if "y" in panel.logarithmic else 0, panel.highest)
    axes.set_ylabel(panel.label)
    axes.set_xlabel(panel.axis)
    note(axes, panel.title)


def _label(theory: str) -> str:
    return NAMES.get(theory, theory.replace("_", " "))


def _marks(axes: Axes, runs: xr.Dataset, axis: str) -> None:
    for judged in (True, False):
        here = runs.isel({axis: runs["judged"].values == judged})
        bars = axes.errorbar(
            here[axis].values,
            here["value"].values,
            NORMAL * here["value_stderr"].values,
            fmt="o",
            ms=4,
            mfc=BLACK if judged else "white",
            color=BLACK,
            lw=0.9,
            zorder=3,
        )
        bars.lines[0].set_gid(f"runs {'judged' if judged else 'drawn'}")


@house_style()
def ellipses(curves: xr.DataArray, points: xr.DataArray, titles: list[str]) -> Figure:
    """Two weights: the final weights of runs as dots, and each theory's covariance as the ellipse of two standard
    deviations.

    curves: covariances (panel, theory, parameter, parameter_), NaN where a theory has none; points (panel, run,
    parameter).
    """
    count = curves.sizes["panel"]
    figure = new_figure(3.4)
    every = np.atleast_1d(figure.subplots(1, count, sharex=False))
    names = [str(name) for name in curves["theory"].values]
    for k, axes in enumerate(every):
        cloud = points.isel(panel=k).values
        axes.plot(cloud[:, 0], cloud[:, 1], ".", color=GREY, ms=1.5, alpha=0.5, gid=f"weights {k}", rasterized=True)
        for i, look in enumerate(looks(len(names))):
            matrix = curves.isel(panel=k, theory=i).values
            if np.isfinite(matrix).all():
                axes.add_patch(_ellipse(matrix, look.colour, DASHES[i % 4]))
        reach = 1.5 * np.quantile(np.abs(cloud), 0.99)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_xlabel("$w_1 - w_1^*$")
        note(axes, titles[k])
    every[0].set_ylabel("$w_2 - w_2^*$")
    handles = [Line2D([], [], color=look.colour, ls=DASHES[i % 4]) for i, look in enumerate(looks(len(names)))]
    handles.append(Line2D([], [], color=GREY, marker=".", ls=""))
    labels = [*map(_label, names), "final weights of runs"]
    figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=2.2)
    return figure


def _ellipse(covariance: np.ndarray, colour: str, dashes: str) -> Ellipse:
    values, vectors = np.linalg.eigh(covariance)
    wide, high = 4 * np.sqrt(np.maximum(values, 0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    return Ellipse((0, 0), wide, high, angle=angle, fill=False, color=colour, ls=dashes, lw=1.4)
