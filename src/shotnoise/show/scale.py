"""The figure of the gradient noise scale: along training with its interval, or the one number on a line."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from shotnoise.results import UNRESOLVED
from shotnoise.show import stored
from shotnoise.show.axes import note, positive, sample_axis, step_axis
from shotnoise.show.style import BLUE, GREY, house_style, new_figure
from shotnoise.show.words import percent

LABEL = "noise scale $\\mathrm{Tr}\\,\\Sigma/\\|\\nabla L\\|^2$ (samples)"


@house_style()
def noise_scale(result: xr.Dataset) -> Figure:
    """The noise scale against the step with its interval; without steps, the one value on a line of samples.

    Exact values have no bars. An interval without an upper end has an arrow instead, and where the scale
    cannot be resolved only the interval is drawn. The dotted line is the number of samples there are.
    """
    stored.check(result)
    along = len(stored.slices(result)) > 1
    figure = new_figure(3.2 if along else 1.5)
    axes = figure.subplots()
    scales = _Scales(result)
    if along:
        _along_training(axes, scales)
    else:
        _on_a_line(axes, scales)
    note(axes, _remark(result, scales))
    return figure


class _Scales:
    """Noise scales and intervals of all steps as arrays; `open` where an interval has no upper end."""

    def __init__(self, result: xr.Dataset) -> None:
        parts = stored.slices(result)
        self.steps = [step or 0 for step, _ in parts]
        self.value, self.low, self.high = (
            np.array([stored.value(here, f"noise_scale{end}") for _, here in parts]) for end in ("", "_low", "_high")
        )
        resolved = np.array([stored.status(here) != UNRESOLVED for _, here in parts])
        self.drawn = positive(self.value) & resolved
        self.open = positive(self.low) & ~np.isfinite(self.high)
        self.closed = np.isfinite(self.low) & np.isfinite(self.high) & (self.high > self.low)
        self.samples = stored.count(result, "n_samples") or 0

    def span(self) -> tuple[float, float]:
        """A range of samples that holds every mark, with room for an arrow."""
        ends = np.concatenate([self.value[self.drawn], self.low[positive(self.low)], self.high[self.closed]])
        if not len(ends):
            return 0.5, 2.0 * max(self.samples, 1)
        low, high = float(ends.min()), float(ends.max())
        if high / 30 < self.samples < 30 * high:
            high = max(high, float(self.samples))
        return low / 1.8, high * (4.0 if self.open.any() else 1.8)


def _along_training(axes: Axes, scales: _Scales) -> None:
    steps, (low, high) = np.array(scales.steps), scales.span()
    shown, bottom = scales.drawn, np.maximum(scales.low, low)  # an interval may start at 0
    axes.plot(steps[shown], scales.value[shown], color=BLUE, marker="o", gid="noise scale")
    for where, top in ((scales.closed, scales.high), (scales.open, np.full(len(steps), high / 1.15))):
        axes.vlines(steps[where], bottom[where], top[where], color=BLUE, lw=1.2)
        axes.plot(steps[where], scales.low[where], "_", color=BLUE, ms=7)
    axes.plot(steps[scales.closed], scales.high[scales.closed], "_", color=BLUE, ms=7)
    arrows = np.full(scales.open.sum(), high / 1.15)
    axes.plot(steps[scales.open], arrows, "^", color=BLUE, gid="no upper end")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if low < scales.samples < high:
        axes.axhline(scales.samples, color=GREY, ls=":", lw=1.2)
        across = blended_transform_factory(axes.transAxes, axes.transData)
        words = f"{scales.samples:,} samples in the data set"
        axes.text(0.01, scales.samples, words, transform=across, color=GREY, fontsize=9, va="bottom")
    sample_axis(axes, "y")
    axes.set_ylabel(LABEL.replace(" $", "\n$", 1))
    step_axis(axes, scales.steps)


def _on_a_line(axes: Axes, scales: _Scales) -> None:
    low, high = scales.span()
    shown = scales.value[scales.drawn]
    axes.plot(shown, 0 * shown, "o", color=BLUE, ms=7, gid="noise scale")
    if scales.closed[0]:
        axes.plot([max(scales.low[0], low), scales.high[0]], [0, 0], "|-", color=BLUE, ms=9, gid="interval")
    if scales.open[0]:
        axes.plot([scales.low[0]], [0], "|", color=BLUE, ms=9)
        axes.plot([scales.low[0], high / 1.15], [0, 0], "-", color=BLUE, gid="interval")
        axes.plot([high / 1.15], [0], ">", color=BLUE, gid="no upper end")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(-1, 1)
    if low < scales.samples < high:
        axes.axvline(scales.samples, color=GREY, ls=":", lw=1.2)
        axes.text(scales.samples, 0.9, " all samples", color=GREY, fontsize=9, va="top")
    sample_axis(axes, "x")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(LABEL)


def _remark(result: xr.Dataset, scales: _Scales) -> str:
    words = []
    if scales.closed.any() or scales.open.any():
        words.append(f"bars: {percent(stored.confidence(result))} intervals")
    if scales.open.any():
        words.append("arrow: no upper end")
    if not scales.drawn.all():
        words.append("no dot: infinite or not resolvable")
    return "; ".join(words)
