"""The figure of the layers: how noisy each one is, on its own and at the batch sizes measured."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from shotnoise.errors import InputError
from shotnoise.show import stored
from shotnoise.show.axes import looks, positive, sample_axis
from shotnoise.show.style import BLUE, GREY, house_style, new_figure

MOST_STEPS = 4
MOST_SIZES = 4
LONGEST_NAME = 30


@house_style()
def layers(result: xr.Dataset) -> Figure:
    """Noise scale (left) and signal-to-noise ratio (right, last step) of each layer, in the network's order.

    Without steps the noise scales are bars that start at one sample; with steps each layer has one mark per
    step. Values that a logarithmic axis cannot hold are written out: "inf" where the gradient vanishes, "0"
    where there is no noise, "?" where an estimate is negative or undefined.
    """
    if "layer_noise_scale" not in result:
        raise InputError("the result holds no layer_noise_scale; pass the dataset that shotnoise.measure returned.")
    names = [shortened(str(name)) for name in result["layer"].values]
    figure = new_figure(1.35 + 0.215 * max(len(names), 3), width=7.2)
    left, right = figure.subplots(1, 2, sharey=True)
    _noise_scales(left, result)
    _signal_to_noise(right, stored.slices(result)[-1])
    left.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    left.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return figure


def shortened(name: str) -> str:
    """A layer's path without its beginning if it is too long for an axis: the end tells layers apart.

    >>> shortened("transformer.encoder.layers.11.self_attn.out_proj")
    '…layers.11.self_attn.out_proj'
    """
    return name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME + 1 :].partition(".")[2]


def _noise_scales(axes: Axes, result: xr.Dataset) -> None:
    parts = stored.slices(result)
    axes.set_xscale("log")
    if len(parts) == 1:
        _bars(axes, stored.values(parts[0][1], "layer_noise_scale"))
    else:
        every = looks(len(parts))
        for k in _some(len(parts), MOST_STEPS):
            step, here = parts[k]
            marks = {"color": every[k].colour, "marker": every[k].marker, "label": f"step {step:,}"}
            _dots(axes, stored.values(here, "layer_noise_scale"), f"layer noise scale step {step}", marks)
        _legend(axes)
    _write_out(axes, stored.values(parts[-1][1], "layer_noise_scale"))
    axes.set_xlabel("noise scale (samples)")
    sample_axis(axes, "x")


def _signal_to_noise(axes: Axes, part: tuple[int | None, xr.Dataset]) -> None:
    step, here = part
    ratios = stored.values(here.transpose("layer", "batch_size", ...), "layer_signal_to_noise")
    # A batch of the whole data set has no noise in any layer, and no mark.
    noisy = np.flatnonzero(positive(ratios).any(axis=0))
    axes.set_xscale("log")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, MOST_SIZES))
    for k, shade in zip(_some(len(noisy), MOST_SIZES), shades, strict=False):
        size = int(here["batch_size"][noisy[k]])
        marks = {"color": shade, "marker": "D", "ms": 4, "label": f"$b$ = {size:,}"}
        _dots(axes, ratios[:, noisy[k]], f"layer signal to noise {size}", marks)
    axes.axvline(1.0, color=GREY, ls=":", lw=1.2)
    axes.set_xlabel("signal-to-noise ratio (power)" + ("" if step is None else f" at step {step:,}"))
    _legend(axes)


def _bars(axes: Axes, scales: NDArray[np.float64]) -> None:
    """Bars from one sample to the noise scale; to the left where one sample is more signal than noise."""
    lengths = np.where(positive(scales), scales, 1.0) - 1.0
    axes.barh(np.arange(len(scales)), lengths, left=1.0, height=0.62, color=BLUE, gid="layer noise scale")


def _dots(axes: Axes, numbers: NDArray[np.float64], gid: str, marks: dict[str, Any]) -> None:
    shown = positive(numbers)
    axes.plot(numbers[shown], np.flatnonzero(shown), gid=gid, **{"ls": "", "ms": 5, **marks})


def _write_out(axes: Axes, numbers: NDArray[np.float64]) -> None:
    """Words at the left edge for the layers that have no mark."""
    edge = blended_transform_factory(axes.transAxes, axes.transData)
    for row in np.flatnonzero(~positive(numbers)):
        word = "inf" if numbers[row] == np.inf else "0" if numbers[row] == 0 else "?"
        axes.text(0.02, float(row), word, transform=edge, va="center", fontsize=9, color=GREY)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=4,
            fontsize=9,
            borderaxespad=0.1,
            handletextpad=0.0,
            columnspacing=0.6,
        )


def _some(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, spread evenly, ends included.

    >>> _some(3, 6), _some(10, 4)
    ([0, 1, 2], [0, 3, 6, 9])
    """
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most))})
