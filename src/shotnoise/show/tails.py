"""How a tail estimate depends on how much of the tail is used."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from shotnoise.errors import InputError
from shotnoise.show.style import BLUE, GREY, VERMILLION, house_style, new_figure


@house_style()
def tail_stability(estimate: xr.Dataset, exact: float | None = None) -> Figure:
    """Hill's estimate against the number of largest values used, with its interval; dashed: the exact index, if given.

    estimate: what `predict.stationary.hill` returned for several `tail_samples`. A plateau is what one looks for;
    left of it the estimate is noise, right of it the body of the distribution. The dotted line is at the attribute
    `chosen`.
    """
    if "tail_samples" not in estimate.dims:
        raise InputError("a stability plot needs estimates for several tail_samples; call hill without a number")
    figure = new_figure(3.2)
    axes = figure.subplots()
    place = estimate["tail_samples"].values
    low, high = estimate["tail_index_low"].values, estimate["tail_index_high"].values
    axes.fill_between(place, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(place, estimate["tail_index"].values, color=BLUE, gid="tail index")
    if "chosen" in estimate.attrs:
        axes.axvline(float(estimate.attrs["chosen"]), color=GREY, ls=":", lw=1.0)
    if exact is not None:
        axes.axhline(exact, color=VERMILLION, ls="--", lw=1.2)
    axes.set_xscale("log")
    axes.set_ylim(0, float(np.nanmax(np.where(place > place[0], high, np.nan))))
    axes.set_xlabel("largest values used")
    axes.set_ylabel("tail index $\\beta$")
    return figure
