"""Densities of a diffusion with the histogram of runs over them, and the current that circulates in the plane."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from shotnoise.errors import InputError
from shotnoise.show.axes import looks, note
from shotnoise.show.ensembles import NORMAL
from shotnoise.show.style import BLACK, GREY, house_style, new_figure
from shotnoise.show.sweeps import DASHES

LABELS = {"ito": "Itô", "stratonovich": "Stratonovich", "hanggi-klimontovich": "Hänggi-Klimontovich"}
COARSE = 24  # arrows start from so many places per side


@house_style()
def densities(curves: xr.DataArray, histogram: xr.Dataset | None = None, names: Sequence[str] | None = None) -> Figure:
    """Densities of one weight (theory, x) as lines; histogram: `density` with `density_stderr` over `x`, as marks.

    names: which theories, in this order; default all. Raises InputError where there is none.
    """
    if "theory" not in curves.dims or "x" not in curves.dims:
        raise InputError(f"densities need dimensions theory and x; got {curves.dims}")
    figure = new_figure(3.6)
    axes = figure.subplots()
    chosen = [str(name) for name in curves["theory"].values] if names is None else list(names)
    for k, (name, look) in enumerate(zip(chosen, looks(len(chosen)), strict=True)):
        axes.plot(
            curves["x"].values, curves.sel(theory=name).values, color=look.colour, ls=DASHES[k % 4],
            label=LABELS.get(name, name), gid=f"density {name}",
        )  # fmt: skip
    if histogram is not None:
        axes.errorbar(
            histogram["x"].values, histogram["density"].values, NORMAL * histogram["density_stderr"].values, fmt="o",
            ms=4, color=BLACK, lw=0.9, zorder=3, label="SGD, 95 % intervals",
        )  # fmt: skip
        reach = histogram["x"].values
        axes.set_xlim(reach[0], reach[-1])
    axes.set_ylim(0, None)
    axes.set_xlabel("weight $w$")
    axes.set_ylabel("density $p(w)$")
    figure.legend(loc="outside right upper")
    return figure


@house_style()
def current(stationary: xr.Dataset) -> Figure:
    """Stationary density of two weights as shades, and the streamlines of the probability current.

    stationary: what `predict.diffusion.FokkerPlanck(..).stationary()` gave in two dimensions. Lines are the wider the
    stronger the current.
    """
    if "probability_current" not in stationary or stationary["density"].ndim != 2:
        raise InputError("a current is drawn for two weights: pass what FokkerPlanck.stationary() gave for two")
    figure = new_figure(4.2, 5.2)
    axes = figure.subplots()
    x, y = stationary["x"].values, stationary["y"].values
    density = stationary["density"].values.T
    shades = axes.contourf(x, y, density, levels=9, cmap="Blues", alpha=0.8)
    figure.colorbar(shades, ax=axes, label="density $p(\\theta)$")
    field = stationary["probability_current"].transpose("component", "y", "x").values
    size = np.hypot(*field)
    if size.max() > 0:
        thin = slice(None, None, max(1, len(x) // (2 * COARSE))), slice(None, None, max(1, len(y) // (2 * COARSE)))
        axes.streamplot(
            x[thin[0]], y[thin[1]], field[0][thin[1], thin[0]], field[1][thin[1], thin[0]], color=BLACK,
            linewidth=0.3 + 1.8 * size[thin[1], thin[0]] / size.max(), density=0.9, arrowsize=0.9,
        )  # fmt: skip
    else:
        note(axes, "no current: detailed balance")
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    axes.set_aspect("equal")
    axes.set_xlabel("$\\theta_1$")
    axes.set_ylabel("$\\theta_2$")
    axes.tick_params(colors=GREY)
    return figure
