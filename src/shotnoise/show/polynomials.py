"""A network's polynomial in 1/b: its values over simulated ones, its coefficients, and exponents of the fall with b."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from shotnoise.errors import InputError
from shotnoise.files import check_writable, write_atomically
from shotnoise.show.axes import BATCH_LABEL, batch_axis, legend, looks, note, positive
from shotnoise.show.captions import Caption
from shotnoise.show.ensembles import LABELS, NORMAL
from shotnoise.show.page import Picture, picture, provenance_lines, rendered
from shotnoise.show.style import BLACK, GREY, house_style, new_figure
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number

QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")
LONG = 60  # characters of a fraction that still fit a table
UNSEEN = 0.12  # opacity of the band where no simulation can be expected to agree


@house_style()
def polynomial(predicted: xr.Dataset, simulated: xr.Dataset | None = None) -> Figure:
    """What `predict.networks.tabulate` returned: values against the batch size above, |beta_k| against k below.

    Solid: exact; dashed: beta_1 / b. simulated: a summary with the same quantity by batch_size (one step), as marks
    with bars of 1.96 standard errors. Grey: batch sizes at which exact moments are carried by events that no simulation
    meets; marks there are hollow and judge nothing.
    """
    quantity = _quantity(predicted)
    figure = new_figure(5.4)
    upper, lower = figure.subplots(2, 1)
    _values(upper, predicted, quantity, simulated)
    _coefficients(lower, predicted)
    exact, law, seen = looks(3)
    handles = [Line2D([], [], color=exact.colour), Line2D([], [], color=law.colour, ls="--")]
    labels = ["exact", r"$\beta_1/b$"]
    if simulated is not None:
        handles.append(Line2D([], [], color=seen.colour, marker=seen.marker, ls="", ms=4))
        labels.append("simulated,\n95 % intervals")
    if float(predicted.attrs["simulation_agrees_from"]) > float(predicted["batch_size"].min()):
        handles.append(Line2D([], [], color=GREY, lw=8, alpha=UNSEEN * 2))
        labels.append("carried by\nrare events")
    handles += [Line2D([], [], color=BLACK, marker="o", ls="", ms=5, mfc=fill) for fill in (BLACK, "white")]
    labels += [r"$\beta_k > 0$", r"$\beta_k < 0$"]
    legend(figure, handles, labels)
    return figure


@house_style()
def exponents(predicted: xr.Dataset, simulated: xr.Dataset | None = None) -> Figure:
    """Local exponents of the fall with b, as `predict.batch_exponent` gave them: predicted lines, simulated marks.

    One colour per step where there are several. The thin line is 1, the law 1/b.
    """
    if "local_exponent" not in predicted:
        raise InputError("nothing to draw: pass what predict.batch_exponent gave")
    steps = list(np.atleast_1d(predicted["step"].values)) if "step" in predicted.dims else [None]
    figure = new_figure(3.2)
    axes = figure.subplots()
    axes.axhline(1.0, color=GREY, lw=0.8)
    for step, look in zip(steps, looks(len(steps)), strict=True):
        here = predicted if step is None else predicted.sel(step=step)
        axes.plot(here["between"].values, here["local_exponent"].values, color=look.colour, gid=f"exponent {step}")
        if simulated is not None:
            own = simulated if step is None or "step" not in simulated.dims else simulated.sel(step=step)
            reach = NORMAL * own["local_exponent_stderr"].values
            values = own["local_exponent"].values
            axes.errorbar(own["between"].values, values, reach, fmt=look.marker, ms=4, color=look.colour, lw=0.9)
    batch_axis(axes, [int(b) for b in predicted["batch_size"].values])
    axes.set_xlabel(BATCH_LABEL)
    axes.set_ylabel(r"exponent $e$ of $b^{-e}$")
    if steps != [None]:
        legend(
            figure, [Line2D([], [], color=look.colour) for look in looks(len(steps))], [f"step {t:,}" for t in steps]
        )
    return figure


def polynomial_sheet(predicted: xr.Dataset) -> Sheet:
    """One row per power of 1/b."""
    exact = str(predicted.attrs.get("fractions", "")).split()
    rows = [
        [str(int(k)), number(float(value), 6), exact[i] if exact and len(exact[i]) < LONG else ""]
        for i, (k, value) in enumerate(
            zip(predicted["power"].values, predicted["batch_coefficient"].values, strict=True)
        )
        if k or value
    ]
    columns = ["power of 1/b", "coefficient", "exactly"]
    if not any(row[2] for row in rows):
        rows, columns = [row[:2] for row in rows], columns[:2]
    return Sheet(f"{_quantity(predicted).replace('_', ' ').capitalize()} as a polynomial in 1/b", columns, rows)


def polynomial_sentences(predicted: xr.Dataset) -> list[str]:
    """What the polynomial says, the most important first."""
    quantity, attrs = _quantity(predicted).replace("_", " "), predicted.attrs
    beyond, holds = float(attrs["decreasing_beyond"]), float(attrs["law_holds_from"])
    rare = float(attrs["simulation_agrees_from"]) > 1
    if np.isinf(beyond):
        first = f"The {quantity} rises with the batch size towards the largest batches."
    elif beyond <= 1:
        first = f"The {quantity} falls with every larger batch."
    else:
        first = f"The {quantity} falls with the batch size from b = {number(beyond, 3)} on, and rises somewhere below."
    found = [first]
    if np.isfinite(holds) and quantity != "loss":
        unseen = "; below, exact moments of unbounded inputs are carried by events that simulations rarely meet"
        found.append(
            f"From b = {int(holds):,} on it is within a tenth of beta_1 / b{unseen if rare else ''}."
            if holds > 1
            else "It is within a tenth of beta_1 / b at every batch size."
        )
    degree, bound, printed = int(attrs["degree"]), int(attrs["degree_bound"]), str(attrs["printed"])
    words = f"Degree {degree} of at most {bound}" + (f"; printed bounds: {printed}." if printed else ".")
    below = [part.split(": ")[0] for part in printed.split("; ") if part and int(part.rsplit(": ", 1)[1]) < degree]
    return [*found, words + (f" Too low: {' and '.join(below)}." if below else "")]


def polynomial_report(
    predicted: xr.Dataset, path: str | Path, title: str = "What this network's gradient noise will be"
) -> Path:
    """Write a page about what `predict.networks.tabulate` returned, whole or not at all, and return the path."""
    check_writable(path)
    html = rendered(
        title=title,
        summary=str(predicted.attrs.get("theory", "")),
        sentences=polynomial_sentences(predicted),
        pictures=[polynomial_picture(predicted)],
        tables=[polynomial_sheet(predicted)],
        provenance=provenance_lines(predicted),
    )
    return write_atomically(path, html)


def polynomial_picture(predicted: xr.Dataset, simulated: xr.Dataset | None = None) -> Picture:
    over = " Marks: runs, with 95 % intervals." if simulated is not None else ""
    words = Caption(
        "Against the batch size, and the coefficients",
        f"Above: exact value and its limit beta_1 / b.{over} Below: size of the coefficients of 1/b^k; hollow where "
        "negative.",
        "A curve against the batch size with its 1/b limit, and the coefficients by power, as tabulated.",
    )
    return picture("polynomial", polynomial(predicted, simulated), words)


def _quantity(predicted: xr.Dataset) -> str:
    for name in QUANTITIES:
        if name in predicted and "batch_coefficient" in predicted:
            return name
    raise InputError("nothing to show: pass what predict.networks.tabulate gave")


def _values(axes: Axes, predicted: xr.Dataset, quantity: str, simulated: xr.Dataset | None) -> None:
    exact, law, seen = looks(3)
    sizes = predicted["batch_size"].values
    for name, look, style in ((quantity, exact, "-"), ("one_over_b_law", law, "--")):
        values = predicted[name].values
        drawn = positive(values)
        if name == quantity or quantity != "loss":
            axes.plot(sizes[drawn], values[drawn], color=look.colour, ls=style, gid=f"predicted {name}")
    agrees = float(predicted.attrs["simulation_agrees_from"])
    low = float(sizes.min())
    if agrees > low:
        axes.axvspan(low, min(agrees, float(sizes.max())), color=GREY, alpha=UNSEEN, lw=0)
    if simulated is not None:
        for judged in (True, False):
            own = simulated.isel(batch_size=np.flatnonzero((simulated["batch_size"].values >= agrees) == judged))
            values, reach = own[quantity].values, NORMAL * own[f"{quantity}_stderr"].values
            drawn = positive(values)
            fill = seen.colour if judged else "white"
            axes.errorbar(own["batch_size"].values[drawn], values[drawn], reach[drawn], fmt=seen.marker, ms=4,
                          color=seen.colour, mfc=fill, lw=0.9, zorder=3)  # fmt: skip
    axes.set_yscale("log")
    batch_axis(axes, [int(b) for b in sizes])
    axes.set_xlabel(BATCH_LABEL)
    axes.set_ylabel(LABELS.get(quantity, quantity.replace("_", " ")))


def _coefficients(axes: Axes, predicted: xr.Dataset) -> None:
    powers, values = predicted["power"].values, predicted["batch_coefficient"].values
    for sign, fill in ((1, BLACK), (-1, "white")):
        drawn = sign * values > 0
        axes.plot(powers[drawn], np.abs(values[drawn]), "o", color=BLACK, mfc=fill, ms=5, gid=f"sign {sign}")
    if (values != 0).any():
        axes.set_yscale("log")
    else:
        note(axes, "all coefficients are exactly 0")
    axes.set_xlabel("power $k$ of $1/b$")
    axes.set_ylabel(r"coefficient $|\beta_k|$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
