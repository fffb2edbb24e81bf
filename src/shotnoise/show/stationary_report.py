"""A stationary state of SGD in sentences, a table, a figure and a page."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from shotnoise.errors import InputError
from shotnoise.files import check_writable, write_atomically
from shotnoise.show.captions import Caption
from shotnoise.show.page import picture, provenance_lines, rendered
from shotnoise.show.sweeps import Panel, sweeps
from shotnoise.show.tables import Sheet
from shotnoise.show.words import listing, number

DIVERGES = "diverges"
NUMBERS = {
    "train_loss": "train loss",
    "test_loss": "test loss",
    "kappa": "kappa",
    "critical_learning_rate": "critical rate",
}


def stationary_sentences(state: xr.Dataset) -> list[str]:
    """What it says, the most important first."""
    found = []
    whole = _whole(state)
    critical = whole["critical_learning_rate"]
    pairs = [
        f"{number(float(critical.sel(batch_size=S)))} at batch size {int(S):,}" for S in whole["batch_size"].values
    ]
    stable = (whole["status"] != DIVERGES).values
    if not stable.any():
        found.append("Nothing settles: in every setting the variance of the weights grows without limit.")
    elif not stable.all():
        settled = f"{int(stable.sum())} of {stable.size} settings settle"
        found.append(f"{settled}; in the others the variance grows without limit.")
    found.append(
        f"Second moments stay bounded for learning rates below {listing(pairs)}; the mean converges below "
        f"{number(float(whole['mean_critical_learning_rate']))}."
    )
    if stable.any():
        excess = whole["test_loss"].where(whole["status"] != DIVERGES)
        place = np.unravel_index(int(np.nanargmin(excess.values)), excess.shape)
        rate, size = float(whole["learning_rate"][place[0]]), int(whole["batch_size"][place[1]])
        where = f"learning rate {number(rate, 3)} and batch size {size:,}"
        found.append(f"The least test loss, {number(float(excess.values[place]))}, is had with {where}.")
    return found


def stationary_sheet(state: xr.Dataset) -> Sheet:
    """One row per learning rate and batch size."""
    whole = _whole(state)
    rows = []
    for rate in whole["learning_rate"].values:
        for S in whole["batch_size"].values:
            here = whole.sel(learning_rate=rate, batch_size=S)
            cells = [number(float(_trace(here[name]))) for name in ("weight_covariance", "noise_covariance")]
            cells += [number(float(here[name])) for name in NUMBERS]
            rows.append([number(float(rate), 3), f"{int(S):,}", *cells, str(here["status"].item())])
    columns = ["learning rate", "batch size", "tr cov(w)", "tr cov(g)", *NUMBERS.values(), "status"]
    return Sheet("Stationary state", columns, rows)


def stationary(state: xr.Dataset) -> Figure:
    """Total variance of the weights and test loss against the learning rate, one line per batch size.

    Needs several learning rates. The vertical lines are the critical rates of the batch sizes.
    """
    if "learning_rate" not in state["weight_covariance"].dims:
        raise InputError("the figure is drawn against the learning rate; give several, such as 0.1:1.9:50")
    whole = _whole(state)
    limits = tuple(float(c) for c in np.atleast_1d(whole["critical_learning_rate"].values))
    inside = tuple(c for c in limits if c <= float(whole["learning_rate"].max()))
    panels = []
    for values, label in ((_trace(whole["weight_covariance"]), "fluctuation\n$\\mathrm{tr\\,cov}(w)$"),
                          (whole["test_loss"], "test loss")):  # fmt: skip
        names = [f"S = {int(S):,}" for S in whole["batch_size"].values]
        curves = xr.DataArray(
            values.transpose("batch_size", "learning_rate").values,
            {"theory": names, "learning_rate": whole["learning_rate"].values},
            ("theory", "learning_rate"),
        )
        panels.append(Panel(curves, None, label, "learning rate $\\lambda$", "", "y", inside))
    return sweeps(*panels)


def stationary_report(state: xr.Dataset, path: str | Path, title: str = "Where SGD settles") -> Path:
    """Write the page about a stationary state, whole or not at all, and return the path."""
    check_writable(path)
    pictures = []
    if "learning_rate" in state["weight_covariance"].dims:
        words = Caption(
            "Against the learning rate",
            "Total variance of the weights and test loss once SGD has settled, exact. Vertical lines: where second "
            "moments diverge.",
            "Fluctuation and test loss against the learning rate, as tabulated.",
        )
        pictures.append(picture("stationary", stationary(state), words))
    html = rendered(
        title=title,
        summary=str(state.attrs.get("theory", "")),
        sentences=stationary_sentences(state),
        pictures=pictures,
        tables=[stationary_sheet(state)],
        provenance=provenance_lines(state),
    )
    return write_atomically(path, html)


def _whole(state: xr.Dataset) -> xr.Dataset:
    """With both dimensions, however many of them were asked for."""
    for dim in ("batch_size", "learning_rate"):
        if dim not in state.dims:
            state = state.expand_dims(dim) if dim in state.coords else state.expand_dims({dim: [np.nan]})
    critical = state["critical_learning_rate"]
    if "learning_rate" in critical.dims:
        state = state.assign(critical_learning_rate=critical.isel(learning_rate=0))
    mean = state["mean_critical_learning_rate"]
    return state.assign(mean_critical_learning_rate=mean.isel(dict.fromkeys(mean.dims, 0)))


def _trace(matrix: xr.DataArray) -> xr.DataArray:
    kept = [dim for dim in matrix.dims if not str(dim).startswith("parameter")]
    diagonal = np.trace(matrix.transpose(*kept, "parameter", "parameter_").values, axis1=-2, axis2=-1)
    return xr.DataArray(diagonal, {dim: matrix[dim] for dim in kept}, kept)
