"""What the recipes share: summaries of ensembles as cells of a grid, claims as sentences, the finished reproduction."""

from collections.abc import Mapping, Sequence

import xarray as xr
from matplotlib.figure import Figure

from shotnoise import simulate
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.captions import Caption
from shotnoise.show.ensembles import NORMAL
from shotnoise.show.grids import Cell
from shotnoise.show.tables import Sheet

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
PAPER = "Li, Gu, Zhou, Chen, Banerjee, Hessian based analysis of SGD for deep nets (2020)"


def summarised(runs: xr.Dataset) -> xr.Dataset:
    """Mean, error and quantiles over runs; of the ratio ||M||_F / ||H||_F of each run, too."""
    if "hessian_frobenius_norm" in runs:
        ratio = runs["second_moment_frobenius_norm"] / runs["hessian_frobenius_norm"]
        runs = runs.assign(second_moment_ratio=ratio)
    return simulate.summary(runs, QUANTILES)


def mean_cell(summary: xr.Dataset, name: str, label: str, title: str = "", **how: object) -> Cell:
    """Mean over runs in a band of 1.96 standard errors; the last axis runs along, the other is the series."""
    values = _series_first(summary[name])
    reach = NORMAL * _series_first(summary[f"{name}_stderr"]).fillna(0.0)
    return Cell(values, [(values - reach, values + reach)], label, title, **how)  # type: ignore[arg-type]


def _series_first(values: xr.DataArray) -> xr.DataArray:
    """(series, place), the place being a step or an index."""
    place = "index" if "index" in values.dims else next(d for d in values.dims if str(d).endswith("step"))
    if values.ndim == 1:
        return values.expand_dims("series")
    return values.transpose(..., place)


def claim(held: bool | None, text: str) -> str:
    """A sentence that begins with its verdict."""
    return f"{'Held' if held else 'Not judged' if held is None else 'Did not hold'}: {text}."


def finished(
    figure: str,
    title: str,
    claims: Sequence[str],
    data: Mapping[str, xr.Dataset],
    drawn: Mapping[str, tuple[Figure, str]],
    tables: Sequence[Sheet] = (),
) -> Reproduction:
    """drawn: figures with their captions, by name. The paper's claims are reported, so that the recipe itself holds."""
    pictures = {
        name: (picture, Caption(f"Fig. {figure.removeprefix('fig')}: {title}", words, words))
        for name, (picture, words) in drawn.items()
    }
    return Reproduction(
        title=f"Fig. {figure.removeprefix('fig')} of {PAPER}: {title}", sentences=list(claims), data=data,
        figures=pictures, agreement=None, holds=True, tables=list(tables),
    )  # fmt: skip
