"""Figures of bounds: over the distribution of the loss change by one step, along a process, over many runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shotnoise.errors import InputError
from shotnoise.show.axes import STEP_LABEL, legend, looks, note, positive
from shotnoise.show.style import BLACK, GREEN, GREY, ORANGE, SKY, VERMILLION, house_style, new_figure
from shotnoise.show.sweeps import DASHES

DRAWN = {"chernoff": (VERMILLION, "--"), "printed, c = 1/10": (ORANGE, ":"), "batches": (GREEN, "-.")}
NAMES = {
    "chernoff": "noise model, Chernoff",
    "printed, c = 1/10": "noise model, printed form, $c=1/10$",
    "batches": "real batches, the best bound",
}
SHORT = {"chernoff": "Chernoff", "printed, c = 1/10": "printed", "batches": "batches"}
BINS = 40
FURTHEST = 12  # standard deviations from the mean up to which a bound is drawn; farther ones are named


@house_style()
def loss_change(result: xr.Dataset, tail_probability: float = 0.01) -> Figure:
    """The distribution of the change of the loss over batches, with the interval of its mean and its upper bounds.

    result: of `predict.bounds.one_step`, or several joined along `step`, a panel each. The shaded band is the
    interval of the expected change, the lines are changes exceeded with at most `tail_probability` by each bound;
    grey: no change.
    """
    needed = ("loss_change", "loss_change_bound", "loss_change_upper")
    if any(name not in result for name in needed):
        raise InputError(f"expected a result of predict.bounds.one_step, with {', '.join(needed)}")
    if not np.isclose(result["tail_probability"].values, tail_probability).any():
        raise InputError(f"tail_probability={tail_probability}: the result has {result['tail_probability'].values}")
    parts = [result] if "step" not in result.dims else [result.isel(step=k) for k in range(result.sizes["step"])]
    columns = min(2, len(parts))
    rows = -(-len(parts) // columns)
    figure = new_figure(0.7 + 2.0 * rows)
    every = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, here in zip(every, parts, strict=False):
        _change(axes, here, tail_probability)
    for axes in every[len(parts) :]:
        axes.set_visible(False)
    handles = [Patch(color=SKY, alpha=0.6), Patch(color=GREY, alpha=0.25), Line2D([], [], color=BLACK)]
    labels = ["real batches", "interval of the mean", "mean of the batches"]
    handles += [Line2D([], [], color=colour, ls=style) for colour, style in DRAWN.values()]
    labels += [NAMES[name] for name in DRAWN]
    figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=2.2)
    return figure


def _change(axes: Axes, here: xr.Dataset, tail: float) -> None:
    change = here["loss_change"].values
    kept = np.isfinite(change)
    weights = here["probability"].values[kept] if "probability" in here.coords else None
    mean, spread = float(here["loss_change_mean"]), float(here["loss_change_variance"]) ** 0.5
    axes.hist(change[kept], bins=BINS, weights=weights, density=True, color=SKY, alpha=0.6, gid="changes")
    low, high = (float(here[f"loss_change_{end}"].sel(form="batch")) for end in ("lower", "upper"))
    axes.axvspan(low, high, color=GREY, alpha=0.25, lw=0, gid="interval")
    axes.axvline(mean, color=BLACK, lw=1.0, gid="mean")
    at = here["loss_change_bound"].sel(side="upper").sel(tail_probability=tail, method="nearest")
    reach, beyond = max(mean + FURTHEST * spread, float(change[kept].max())), []
    for name, (colour, style) in DRAWN.items():
        bound = float(at.where(at["bound_model"] == "real batches").min() if name == "batches" else at.sel(bound=name))
        if bound <= reach or spread == 0:
            axes.axvline(bound, color=colour, ls=style, gid=f"bound {name}")
        else:
            beyond.append(f"{SHORT[name]} at {(bound - mean) / spread:.0f}")
    axes.axvline(0.0, color=GREY, lw=0.6)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 3))
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks([])
    axes.set_xlabel("change of the loss $\\Delta$")
    step = [f"step {int(here['step']):,}"] if "step" in here.coords else []
    note(axes, "; ".join([*step, *([f"in std: {', '.join(beyond)}"] if beyond else [])]))


@house_style()
def loss_process(result: xr.Dataset) -> Figure:
    """The martingale part of the loss of every run and its bounds at the smallest tail probability, by step."""
    if "martingale" not in result:
        raise InputError("expected a result of predict.bounds.loss_process, with the variable martingale")
    figure = new_figure(3.2)
    axes = figure.subplots()
    tail = float(result["tail_probability"].min())
    for run in result["martingale"].values:
        axes.plot(result["step"], run, color=GREY, lw=0.7, alpha=0.7)
    names, bounds = result["noise"].values, result["martingale_bound"]
    shown = [name for name in names if np.isfinite(bounds.sel(noise=name)).all()]
    for k, (name, look) in enumerate(zip(shown, looks(len(shown)), strict=True)):
        bound = bounds.sel(noise=name, tail_probability=tail).values
        for sign in (1, -1):
            axes.plot(result["step"], sign * bound, color=look.colour, ls=DASHES[k % 4], gid=f"bound {name} {sign}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(STEP_LABEL)
    axes.set_ylabel("loss less its expected changes\n$N_t$")
    handles = [Line2D([], [], color=GREY)] + [
        Line2D([], [], color=look.colour, ls=DASHES[k % 4]) for k, look in enumerate(looks(len(shown)))
    ]
    legend(figure, handles, ["runs", *(f"{name}, {100 * tail:g} %" for name in shown)])
    return figure


@house_style()
def distributions(
    groups: Mapping[str, xr.Dataset], variables: Mapping[str, str], logarithmic: Sequence[str] = ()
) -> Figure:
    """One panel per variable: its distribution over runs, a step histogram per group; dashed lines are medians.

    variables: name -> label of the axis. logarithmic: those on a logarithmic axis, where only positive values are
    drawn.
    """
    names = list(variables)
    rows = -(-len(names) // 2)
    figure = new_figure(0.5 + 2.2 * rows)
    every = np.ravel(figure.subplots(rows, 2, squeeze=False))
    found = looks(len(groups))
    for axes, name in zip(every, names, strict=False):
        values = [np.ravel(group[name].values).astype(float) for group in groups.values()]
        if name in logarithmic:
            values = [each[positive(each)] for each in values]
        together = np.concatenate(values)
        if not len(together):
            note(axes, "no positive value")
            continue
        low, high = float(together.min()), float(together.max())
        if high == low:
            low, high = low - 0.5, high + 0.5
        edges = np.geomspace(low, high, BINS // 2) if name in logarithmic else np.linspace(low, high, BINS // 2)
        for each, look, label in zip(values, found, groups, strict=True):
            axes.hist(each, bins=edges, histtype="step", color=look.colour, lw=1.4, gid=f"{name} {label}")
            if len(each):
                axes.axvline(float(np.median(each)), color=look.colour, ls="--", lw=1.0)
        if name in logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(variables[name])
        axes.set_ylabel("runs")
    for axes in every[len(names) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], color=look.colour) for look in found]
    figure.legend(handles, list(groups), loc="outside upper center", ncols=len(groups))
    return figure
