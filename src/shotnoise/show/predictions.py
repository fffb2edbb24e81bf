"""Figures of a prediction along the training, with the simulation over it. Nothing is computed here."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from shotnoise.errors import InputError
from shotnoise.show.axes import Look, batch_axis, legend, looks, note, positive, step_axis
from shotnoise.show.ensembles import LABELS, NORMAL
from shotnoise.show.style import BLACK, GREY, house_style, new_figure

MOST_MARKS = 24  # simulated steps drawn per curve, spread over the axis
VARIANCES = ("gradient_variance", "full_gradient_variance")


@house_style()
def prediction(
    predicted: xr.Dataset,
    simulated: xr.Dataset | None = None,
    variables: Sequence[str] = VARIANCES,
    *,
    lines: str = "exact",
) -> Figure:
    """One panel per variable against the step, one colour per batch size: predicted as lines, simulated as marks.

    predicted: what `predict.regression` or `predict.propagation` returned; what was estimated has a band of 1.96
    standard errors. simulated: a summary of `simulate` on some of the same steps and batch sizes, drawn with bars of
    1.96 standard errors. lines: what the legend calls the prediction. A value of exactly 0 has no place on the
    logarithmic axis; a note says so. Raises InputError where a variable is missing.
    """
    missing = [name for name in variables if name not in predicted or "step" not in predicted[name].dims]
    if missing or not len(variables):
        raise InputError(
            f"nothing to draw for {', '.join(missing) or 'no variables'}: pass what predict.regression gave"
        )
    figure = new_figure(0.9 + 2.1 * len(variables))
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(len(variables), 1, sharex=True)))
    sizes = [int(b) for b in predicted["batch_size"].values]
    zero: set[int] = set()
    for axes, name in zip(panels, variables, strict=True):
        for b, look in zip(sizes, looks(len(sizes)), strict=True):
            here = predicted[name].sel(batch_size=b)
            drawn = positive(here.values)
            axes.plot(here["step"].values[drawn], here.values[drawn], color=look.colour, gid=f"predicted {name} {b}")
            if f"{name}_stderr" in predicted:
                reach = NORMAL * predicted[f"{name}_stderr"].sel(batch_size=b).values
                low, high = ((here.values + sign * reach)[drawn] for sign in (-1, 1))
                band = axes.fill_between(here["step"].values[drawn], low, high, color=look.colour, alpha=0.2, lw=0)
                band.set_gid(f"error of {name} {b}")
            if not drawn[1:].any():
                zero.add(b)
            elif simulated is not None and name in simulated and b in simulated["batch_size"].values:
                _marks(axes, simulated.sel(batch_size=b), name, look)
        axes.set_yscale("log")
        axes.set_ylabel(LABELS.get(name, name.replace("_", " ")))
    step_axis(panels[-1], [int(t) for t in predicted["step"].values])
    note(
        panels[0], f"not drawn: the variance is exactly 0 at $b$ = {', '.join(map(str, sorted(zero)))}" if zero else ""
    )
    handles: list[Artist] = [Line2D([], [], color=look.colour) for look in looks(len(sizes))]
    labels = [f"$b$ = {b:,}" for b in sizes]
    if simulated is not None:
        _explain(handles, labels, lines)
    if any(f"{name}_stderr" in predicted for name in variables):
        handles.append(Patch(color=GREY, alpha=0.2))
        labels.append("1.96 standard errors")
    legend(figure, handles, labels)
    return figure


@house_style()
def against_batch_size(
    predicted: xr.Dataset,
    simulated: xr.Dataset | None = None,
    fitted: xr.Dataset | None = None,
    variable: str = "gradient_variance",
) -> Figure:
    """A variable against the batch size, one colour per step: predicted as lines, simulated as marks, fits dashed.

    Each dataset has `variable` by batch_size and step; fitted values that are not positive are left out, with a note.
    """
    if variable not in predicted:
        raise InputError(f"nothing to draw: the prediction has no {variable}")
    figure = new_figure(3.6)
    axes = figure.subplots()
    steps = [int(t) for t in predicted["step"].values]
    lost = 0
    for t, look in zip(steps, looks(len(steps)), strict=True):
        here = predicted[variable].sel(step=t)
        drawn = positive(here.values)
        axes.plot(here["batch_size"].values[drawn], here.values[drawn], color=look.colour, gid=f"predicted {t}")
        if simulated is not None and t in simulated["step"].values:
            _marks(axes, simulated.sel(step=t), variable, look, along="batch_size")
        if fitted is not None:
            own = fitted[variable].sel(step=t)
            shown = positive(own.values)
            lost += int((~shown).sum())
            axes.plot(
                own["batch_size"].values[shown],
                own.values[shown],
                color=look.colour,
                ls="--",
                lw=1.0,
                gid=f"fitted {t}",
            )
    axes.set_yscale("log")
    axes.set_ylabel(LABELS.get(variable, variable.replace("_", " ")))
    axes.set_xlabel("batch size $b$ (samples)")
    batch_axis(axes, _ticks(predicted["batch_size"].values))
    words = f"not drawn: {lost} values of the fits that are negative" if lost else ""
    note(axes, words)
    handles: list[Artist] = [Line2D([], [], color=look.colour) for look in looks(len(steps))]
    labels = [f"step {t:,}" for t in steps]
    if simulated is not None:
        _explain(handles, labels)
    if fitted is not None:
        handles.append(Line2D([], [], color=GREY, ls="--", lw=1.0))
        labels.append(str(fitted.attrs.get("fit", "fit")))
    legend(figure, handles, labels)
    return figure


def _marks(axes: Axes, here: xr.Dataset, name: str, look: Look, along: str = "step") -> None:
    count = here.sizes[along]
    kept = np.unique(np.geomspace(1, count, min(MOST_MARKS, count)).round().astype(int) - 1)
    if along != "step":
        kept = np.arange(count)
    values, errors = here[name].values[kept], here[f"{name}_stderr"].values[kept]
    drawn = positive(values)
    bars = axes.errorbar(
        here[along].values[kept][drawn],
        values[drawn],
        NORMAL * errors[drawn],
        fmt=look.marker,
        ms=4,
        mfc="white",
        color=look.colour,
        lw=0.9,
    )
    bars.lines[0].set_gid(f"simulated {name}")


def _explain(handles: list[Artist], labels: list[str], lines: str = "exact") -> None:
    handles += [Line2D([], [], color=BLACK), Line2D([], [], color=BLACK, marker="o", ms=4, mfc="white", ls="")]
    labels += [lines, "simulated,\n95 % intervals"]


def _ticks(sizes: np.ndarray) -> list[int]:
    """Powers of two and the ends."""
    low, high = int(sizes.min()), int(sizes.max())
    return sorted({low, high, *(2**k for k in range(1, 40) if low < 2**k < high)})
