"""Figures 6 (curvature by layer) and 7 (which layers the leading eigenvectors of H live in), on Gauss-10."""

import numpy as np
import xarray as xr

from shotnoise import show
from shotnoise.reproduce.hessian_sgd.made import claim, finished, mean_cell, summarised
from shotnoise.reproduce.hessian_sgd.settings import Setting, settings
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.words import listing, number

ORDER = 10.0  # factor within which values are "of the same order of magnitude"
EVEN = 2.0  # factor within which loadings are called equal


def figure_6(shop: Workshop) -> Reproduction:
    chosen = settings(10)
    found = {setting.name: summarised(shop.layers(setting)).isel(mode=0) for setting in chosen}
    rows, claims = [], list[str]()
    for setting in chosen:
        here = _numbered(found[setting.name])
        rows.append([
            mean_cell(here, "layer_hessian_eigenvalues", r"$\lambda_1(G_h)$", setting.short, scale="log", wide=True),
            mean_cell(here, "subnetwork_hessian_eigenvalues", r"$\lambda_1(H_h)$", scale="log", wide=True),
        ])  # fmt: skip
        claims.append(_order_claim(here, setting))
    drawn = show.grid(rows, "step $t$", [f"$h$ = {h}" for h in range(3)], ["95 % interval"])
    words = (
        "Largest eigenvalue of the diagonal block of the Hessian that belongs to layer h, and of the Hessian of the "
        "sub-network from layer h on (h = 0 is the layer at the inputs): means over runs."
    )
    return finished("fig6", "curvature by layer on Gauss-10", claims, found, {"fig6": (drawn, words)})


def figure_7(shop: Workshop) -> Reproduction:
    chosen = settings(10)
    found = {setting.name: _loadings(shop.curvature(setting)) for setting in chosen}
    cells, claims = [], list[str]()
    for setting in chosen:
        here = _numbered(found[setting.name])
        cells.append(mean_cell(here, "layer_loading", "loading", setting.short, wide=True, limits=(0, None)))
        claims.append(_loading_claim(here, setting))
    drawn = show.grid([cells[:2], cells[2:]], "step $t$", [f"$h$ = {h}" for h in range(3)], ["95 % interval"])
    words = (
        "Share of the ten leading eigenvectors of the Hessian in layer h over the layer's share of the parameters, "
        "mean over eigenvectors and runs; 1 for a vector spread evenly. The text does not say its normalisation."
    )
    return finished("fig7", "loadings by layer on Gauss-10", claims, found, {"fig7": (drawn, words)})


def _loadings(runs: xr.Dataset) -> xr.Dataset:
    """Averaged over the ten leading eigenvectors of each run before the summary."""
    kept = runs[["layer_loading", "loss", "divergence_step"]]
    return summarised(kept.assign(layer_loading=kept["layer_loading"].isel(mode=slice(0, 10)).mean("mode")))


def _numbered(found: xr.Dataset) -> xr.Dataset:
    return found.assign_coords(layer=np.arange(found.sizes["layer"]))


def _order_claim(here: xr.Dataset, setting: Setting) -> str:
    values = here["layer_hessian_eigenvalues"].transpose("curvature_step", "layer").values
    ratio = values.max(1) / values.min(1)
    steps = here["curvature_step"].values
    return claim(
        bool((ratio < ORDER).all()),
        f"{setting.title}: the largest eigenvalues of all G_h are of one order of magnitude; the largest over the "
        f"smallest is {listing([number(float(r), 2) for r in ratio[[0, len(ratio) // 2, -1]]])} at steps "
        f"{listing([f'{s:,}' for s in steps[[0, len(ratio) // 2, -1]]])}, at most {number(float(ratio.max()), 2)}",
    )


def _loading_claim(here: xr.Dataset, setting: Setting) -> str:
    values = here["layer_loading"].transpose("curvature_step", "layer").values
    steps = here["curvature_step"].values
    first, last = values[:, 0], values[:, -1]
    told = (
        f"layer 2 (output) has {number(float(last[0]), 2)} at the start and {number(float(last[-1]), 2)} at the end, "
        f"layer 0 {number(float(first[0]), 2)} and {number(float(first[-1]), 2)}"
    )
    if setting.random_labels == 0:
        return claim(bool((last > first).all()), f"{setting.title}: the output layer always has the largest loading; "
                     f"{told}")  # fmt: skip
    even = max(values[-1]) / min(values[-1])
    turned = np.flatnonzero(last < first)
    reversed_at = f"; reversed at step {steps[turned[0]]:,}" if len(turned) else ""
    return claim(
        bool(last[0] > first[0] and even < EVEN),
        f"{setting.title}: the output layer leads at the start and in the end all layers load almost equally; {told}"
        f"{reversed_at}; at the end the largest is {number(float(even), 2)} times the smallest",
    )
