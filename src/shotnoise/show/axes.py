"""Axes that several figures share: readable ticks, steps from 0, notes on what is not drawn."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from shotnoise.show.style import GREY, MARKERS, colours

STEP_LABEL = "step $t$ (updates done)"
MANY = 20  # steps, of which only round numbers are named
BATCH_LABEL = "batch size $b$ (samples)"


class Look(NamedTuple):
    """How one step is drawn everywhere."""

    colour: Any
    marker: str


def looks(count: int) -> list[Look]:
    return [Look(colour, MARKERS[k % len(MARKERS)]) for k, colour in enumerate(colours(count))]


def spaced(ticks: list[float], least: float) -> list[float]:
    """Those of the rising positive `ticks` that lie at least `least` decades apart; the ends are kept.

    >>> spaced([1, 8, 64, 512, 600], 0.3)
    [1, 8, 64, 600]
    """
    kept = ticks[:1]
    for tick in ticks[1:]:
        if np.log10(tick / kept[-1]) >= least:
            kept.append(tick)
    if len(kept) > 1 and kept[-1] != ticks[-1]:
        kept[-1] = ticks[-1]
    return kept


def batch_axis(axes: Axes, sizes: list[int]) -> None:
    """A logarithmic axis of batch sizes whose ticks are the measured sizes."""
    axes.set_xscale("log")
    rising = sorted(set(sizes))
    decades = np.log10(rising[-1] / rising[0]) if len(rising) > 1 else 1.0
    _fixed_ticks(axes, spaced([float(b) for b in rising], decades / 10))
    if len(rising) == 1:
        axes.set_xlim(rising[0] / 4, rising[0] * 4)


def step_axis(axes: Axes, steps: list[int], most: int = 6) -> None:
    """An axis of steps: linear if they are spread evenly, else logarithmic with a linear piece around 0.

    most: how many of them are named, roughly.
    """
    later = sorted(step for step in steps if step > 0)
    if len(later) > 2 and later[-1] / later[0] > 30:
        axes.set_xscale("symlog", linthresh=later[0], linscale=0.5)
        decades = np.log10(later[-1] / later[0])
        round_ones = [step for step in later if str(step).rstrip("0") in {"1", "2", "5"}]
        named = round_ones if len(later) > MANY and len(round_ones) > 2 else later
        ticks = spaced([float(step) for step in named], decades / most)
        _fixed_ticks(axes, [0.0, *ticks] if 0 in steps else ticks)
        axes.set_xlim(-0.25 * later[0] if 0 in steps else later[0] / 1.3, later[-1] * 1.3)
    axes.set_xlabel(STEP_LABEL)


def sample_axis(axes: Axes, which: str) -> None:
    """Ticks of a logarithmic axis of samples, in full up to a million; at 2 and 5 too where it is short."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(_samples))


def note(axes: Axes, text: str) -> None:
    """A small grey line above the axes: what the reader should know but the axes cannot hold."""
    if text:
        axes.set_title(text, loc="left", fontsize=9, color=GREY)


def legend(figure: Figure, handles: list[Line2D | Any], labels: list[str]) -> None:
    """A legend to the right of everything, where it hides no data."""
    figure.legend(handles, labels, loc="outside right upper", handlelength=1.8, borderaxespad=0.2)


def positive(x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a logarithmic axis has a place for x."""
    return np.isfinite(x) & (x > 0)


def place_ticks(axes: Axes, places: list[float]) -> None:
    """A logarithmic axis named at these places, as far as the names do not touch."""
    rising = sorted(set(places))
    decades = np.log10(rising[-1] / rising[0]) if len(rising) > 1 else 1.0
    _fixed_ticks(axes, spaced(rising, decades / 10))


def _fixed_ticks(axes: Axes, ticks: list[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda tick, _: f"{tick:,.0f}" if tick == round(tick) else f"{tick:g}")
    )
    axes.xaxis.set_minor_locator(NullLocator())


def _samples(tick: float, _: int) -> str:
    if 1 <= tick <= 1e6:
        return f"{tick:,.0f}"
    power = np.floor(np.log10(tick) + 1e-9)
    lead = round(tick / 10**power)
    return f"$10^{{{power:.0f}}}$" if lead == 1 else f"${lead}\\times 10^{{{power:.0f}}}$"
