"""Figures 1, 12 and 13: all eigenvalues of H, M and H_p at the first, an intermediate and the last step."""

from dataclasses import replace

import numpy as np
import xarray as xr

from shotnoise import show
from shotnoise.reproduce.hessian_sgd.made import claim, finished, mean_cell, summarised
from shotnoise.reproduce.hessian_sgd.settings import Setting, settings
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.grids import Cell
from shotnoise.show.words import listing, number, percent

SPECTRA = {"hessian_spectrum": "$H_f$", "second_moment_spectrum": "$M$", "residual_spectrum": "$H_p$"}
SHOWN, GAP = 40, 8  # eigenvalues at either end, places between them
ROUNDING = 1e-9  # below it an eigenvalue of M is zero but for rounding
NON_TRIVIAL = 0.85  # share of Tr M that k eigenvalues must carry for "about k are not trivial"


def figure_1(shop: Workshop) -> Reproduction:
    return _spectra(shop, "fig1", settings(10, (5,)))


def figure_12(shop: Workshop) -> Reproduction:
    return _spectra(shop, "fig12", settings(10, (50,)))


def figure_13(shop: Workshop) -> Reproduction:
    return _spectra(shop, "fig13", settings(2))


def _spectra(shop: Workshop, figure: str, chosen: list[Setting]) -> Reproduction:
    found = {setting.name: summarised(shop.spectra(setting)) for setting in chosen}
    rows = [_row(found[setting.name], setting) for setting in chosen]
    first = found[chosen[0].name]
    names = ["first step", "intermediate", "last step"]
    claims = [sentence for setting in chosen for sentence in _claims(found[setting.name], setting)]
    drawn = show.grid(rows, "rank $i$", names, ["95 % interval"])
    words = (
        f"Mean eigenvalues over runs, in descending order, on a signed logarithmic axis: the {SHOWN} largest, then the "
        f"{SHOWN} smallest; those of M, none negative, on a logarithmic one."
    )
    title = f"full spectra on Gauss-{chosen[0].classes}, {first.attrs['runs']:,} runs"
    return finished(figure, title, claims, found, {figure: (drawn, words)})


def _row(found: xr.Dataset, setting: Setting) -> list[Cell]:
    ends = np.r_[0:SHOWN, -SHOWN:0]
    both = found.isel(index=ends).assign_coords(index=np.r_[1 : SHOWN + 1, SHOWN + GAP : 2 * SHOWN + GAP])
    both = both.reindex(index=np.arange(1, 2 * SHOWN + GAP)).transpose(
        "curvature_step", ...
    )  # nothing is drawn between
    cells = {
        name: mean_cell(both, name, f"{letter} eigenvalue", setting.short if letter == "$H_f$" else "", scale="signed")
        for name, letter in SPECTRA.items()
    }
    moment = "second_moment_spectrum"
    cells[moment] = replace(cells[moment], scale="log", values=cells[moment].values.where(both[moment] > ROUNDING))
    return list(cells.values())


def _claims(found: xr.Dataset, setting: Setting) -> list[str]:
    steps, k = found["curvature_step"].values, setting.classes
    moment, hessian = found["second_moment_spectrum"], found["hessian_spectrum"]
    share = (moment.isel(index=slice(0, k)).sum("index") / moment.sum("index")).values
    ratio = found["second_moment_ratio_quantile"].sel(quantile=0.5).values
    top_h, top_m = hessian.isel(index=0).values, moment.isel(index=0).values
    at = listing([f"{step:,}" for step in steps])
    return [
        claim(bool((share >= NON_TRIVIAL).all()),
              f"{setting.title}: M has about k = {k} eigenvalues that are not trivial; its {k} largest carry "
              f"{listing([percent(float(s)) for s in share])} of Tr M at steps {at}"),
        claim(bool(ratio[-1] < ratio[0] and ratio[-1] < 0.1),
              f"{setting.title}: H_p goes to -H_f; the median over runs of ||H_f + H_p||_F / ||H_f||_F is "
              f"{listing([number(float(r), 2) for r in ratio])} at steps {at}"),
        claim(bool(top_m[-1] / top_m[1] < top_h[-1] / top_h[1]),
              f"{setting.title}: eigenvalues of M fall faster than those of H_f; from step {steps[1]:,} to the last "
              f"the largest falls to {number(float(top_m[-1] / top_m[1]), 2)} of its value, that of H_f to "
              f"{number(float(top_h[-1] / top_h[1]), 2)}"),
    ]  # fmt: skip
