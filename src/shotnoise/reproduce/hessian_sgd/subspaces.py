"""Figures 2, 14 and 15 (angles between leading eigenspaces of H and M), 16 and 17 (single eigenvectors and bounds).

"The top k subspaces overlap" means in the text that the first k of the q cosines between the spaces of q = 15 (5 for
Gauss-2) dimensions are large. Beside it stand the literal overlap of the leading k, ||U^T V||_F^2 / k, what random
spaces have, k / p, and the gap of H at k.
"""

import numpy as np
import xarray as xr

from shotnoise import show
from shotnoise.reproduce.hessian_sgd.made import claim, finished, mean_cell, summarised
from shotnoise.reproduce.hessian_sgd.settings import Setting, settings
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number

ALIGNED = 0.8  # cosine from which spaces are called aligned here
BOUNDED = (1, 2, 3)  # dimensions whose bounds are shown
HALF = 0.5  # the sine that the paper takes for evidence; it is that of 30 degrees


def figure_2(shop: Workshop) -> Reproduction:
    return _angles(shop, "fig2", settings(10, (5,)))


def figure_14(shop: Workshop) -> Reproduction:
    return _angles(shop, "fig14", settings(10, (50,)))


def figure_15(shop: Workshop) -> Reproduction:
    return _angles(shop, "fig15", settings(2))


def figure_16(shop: Workshop) -> Reproduction:
    return _sines(shop, "fig16", settings(10))


def figure_17(shop: Workshop) -> Reproduction:
    return _sines(shop, "fig17", settings(2))


def _angles(shop: Workshop, figure: str, chosen: list[Setting]) -> Reproduction:
    runs = {setting.name: shop.curvature(setting) for setting in chosen}
    found = {name: summarised(one) for name, one in runs.items()}
    p = runs[chosen[0].name].attrs["parameters"]
    return angles_drawn(figure, [(setting.title, setting.short, setting.classes, p) for setting in chosen], found)


def angles_drawn(figure: str, chosen: list[tuple[str, str, int, int]], found: dict[str, xr.Dataset]) -> Reproduction:
    """From summaries in this order. chosen: title, short title, classes and parameters of each."""
    rows, claims, sheets = [], list[str](), list[Sheet]()
    for (title, short, k, p), summary in zip(chosen, found.values(), strict=True):
        rows.append([
            mean_cell(summary, "principal_angle_cosines", r"$\cos\gamma_i$", short, limits=(0, 1.02), wide=True),
            mean_cell(summary, "hessian_eigenvalues", r"$\lambda_i(H_f)$", scale="log", wide=True),
            mean_cell(summary, "second_moment_eigenvalues", r"$\lambda_i(M)$", scale="log", wide=True),
        ])  # fmt: skip
        claims += _angle_claims(summary, title, k, p)
        sheets.append(_sheet(summary, title, k, p))
    drawn = show.grid(rows, "step $t$", ["$i$"] if summary.sizes["mode"] > 7 else _numbered(summary), ["95 % interval"])
    words = (
        "Cosines of the principal angles between the leading eigenspaces of the Hessian and of the second moment, and "
        "their largest eigenvalues: means over runs. Eigenvalues that are not positive have no place."
    )
    runs = int(next(iter(found.values())).attrs["runs"])
    return finished(figure, f"leading eigenspaces, {runs:,} runs", claims, found, {figure: (drawn, words)}, sheets)


def _numbered(summary: xr.Dataset) -> list[str]:
    return [f"$i$ = {k + 1}" for k in range(summary.sizes["mode"])]


def _angle_claims(summary: xr.Dataset, title: str, k: int, p: int) -> list[str]:
    steps = summary["curvature_step"].values
    q = summary.sizes["mode"]
    kth = summary["principal_angle_cosines"].isel(mode=k - 1).values
    literal = summary["subspace_overlap"].isel(mode=k - 1).values
    values = summary["hessian_eigenvalues"]
    gap = (values.isel(mode=k - 1) / values.isel(mode=k)).values
    top_h, top_m = values.isel(mode=0).values, summary["second_moment_eigenvalues"].isel(mode=0).values
    late = np.flatnonzero(~(kth >= ALIGNED))
    since = f"from step {steps[late[-1] + 1]:,} on" if len(late) and late[-1] + 1 < len(steps) else "at no look"
    chance = min(1.0, np.sqrt(q / p) * 2)
    peak_h, peak_m = top_h.argmax(), top_m.argmax()
    return [
        claim(bool((kth >= ALIGNED).all()),
              f"{title}: the first {k} of {q} cosines are near one during the entire training; cosine {k} is "
              f"{number(float(kth[0]), 2)} at the start, {number(float(kth[-1]), 2)} at the end, at least {ALIGNED:g} "
              f"{'always' if not len(late) else since} (random spaces: the largest about {number(chance, 2)})"),
        claim(bool(literal[-1] >= ALIGNED**2),
              f"{title}: the literal leading {k} dimensions overlap at the end; {number(float(literal[0]), 2)} at the "
              f"start, {number(float(literal[-1]), 2)} at the end (chance {number(k / p, 2)}), eigenvalue {k} of H_f "
              f"being {number(float(gap[-1]), 2)} times the next"),
        claim(bool(0 < peak_h < len(steps) - 1 and top_m[-1] / top_m[peak_m] < top_h[-1] / top_h[peak_h]),
              f"{title}: eigenvalues rise, then fall, those of M faster; the largest of H_f "
              f"{number(float(top_h[0]), 2)} at the start, {number(float(top_h[peak_h]), 2)} at step "
              f"{steps[peak_h]:,}, {number(float(top_h[-1]), 2)} at the end, of M {number(float(top_m[0]), 2)}, "
              f"{number(float(top_m[peak_m]), 2)} at step {steps[peak_m]:,}, {number(float(top_m[-1]), 2)}"),
    ]  # fmt: skip


def _sheet(summary: xr.Dataset, title: str, k: int, p: int) -> Sheet:
    columns = ["step", "loss", f"cosine {k} of {summary.sizes['mode']}", f"overlap of leading {k}", "chance",
               f"gap {k}", "||M|| / ||H|| (median)"]  # fmt: skip
    rows = []
    for step in summary["curvature_step"].values:
        here = summary.sel(curvature_step=step)
        values = here["hessian_eigenvalues"]
        loss = float(summary["loss"].sel(step=step, method="nearest")) if "loss" in summary else np.nan
        numbers = (
            loss, float(here["principal_angle_cosines"][k - 1]), float(here["subspace_overlap"][k - 1]), k / p,
            float(values[k - 1] / values[k]),
            float(here["second_moment_ratio_quantile"].sel(quantile=0.5)),
        )  # fmt: skip
        rows.append([f"{step:,}", *(number(x, 3) for x in numbers)])
    return Sheet(title, columns, rows)


def with_bounds(runs: xr.Dataset) -> xr.Dataset:
    """The Yu-Wang-Samworth bound 2 min(sqrt(d) ||H_p||_2, ||H_p||_F) / (lambda_d - lambda_{d+1}) of every run."""
    values = runs["hessian_eigenvalues"]
    gap = values - values.shift(mode=-1)
    ends = xr.concat([abs(runs["residual_eigenvalues"]), abs(runs["residual_lowest_eigenvalues"])], "end")
    norm = ends.max(("end", "mode"))
    d = runs["mode"] + 1
    frobenius = np.maximum(runs["residual_frobenius_norm"], norm)  # an estimate, which may fall below it
    bound = 2 * np.minimum(np.sqrt(d) * norm, frobenius) / gap.where(gap > 0)
    return runs.assign(yu_wang_samworth_bound=bound.transpose(*values.dims))


def _sines(shop: Workshop, figure: str, chosen: list[Setting]) -> Reproduction:
    found = {setting.name: summarised(with_bounds(shop.curvature(setting))) for setting in chosen}
    rows, claims = [], list[str]()
    for setting in chosen:
        some = found[setting.name].isel(mode=slice(0, len(BOUNDED)))
        rows.append([
            mean_cell(some, "eigenvector_sines", r"$\sin(u_s, v_s)$", setting.short, limits=(0, 1.05), wide=True),
            _median_bound(some),
        ])  # fmt: skip
        claims += _sine_claims(some, setting)
    drawn = show.grid(rows, "step $t$", [f"$s$ = {s}" for s in BOUNDED], ["95 % interval (left),\nquartiles (right)"])
    words = (
        "Left: sine of the angle between eigenvector s of the Hessian and of the second moment, mean over runs. Right: "
        "the bound on the distance of the leading s dimensions, median over runs; it says something below sqrt(s)."
    )
    return finished(figure, "single eigenvectors and bounds", claims, found, {figure: (drawn, words)})


def _median_bound(some: xr.Dataset) -> show.Cell:
    median, low, high = (
        some["yu_wang_samworth_bound_quantile"].sel(quantile=q).transpose("mode", "curvature_step")
        for q in (0.5, 0.25, 0.75)
    )
    return show.Cell(median, [(low, high)], "bound", scale="log", wide=True)


def _sine_claims(some: xr.Dataset, setting: Setting) -> list[str]:
    sines = some["eigenvector_sines_quantile"].sel(quantile=0.5).transpose("mode", "curvature_step").values
    bound = some["yu_wang_samworth_bound_quantile"].sel(quantile=0.05).transpose("mode", "curvature_step").values
    limit = np.sqrt(np.array(BOUNDED))[:, None]
    above = float(np.mean(sines > HALF))
    return [
        claim(above > HALF,
              f"{setting.title}: sines stay above 0.5 most of the time; {above:.0%} of the medians at s = 1, 2, 3 do, "
              f"from {number(float(np.nanmin(sines)), 2)} to {number(float(np.nanmax(sines)), 2)}. But a sine above "
              "0.5 is an angle above 30 degrees: it says that single eigenvectors are not aligned"),
        claim(bool(np.nanmin(bound / limit) > 1),
              f"{setting.title}: the bounds are too loose to be useful; their lowest 5 % quantile over runs is "
              f"{number(float(np.nanmin(bound / limit)), 2)} sqrt(s), where below sqrt(s) they would say something"),
    ]  # fmt: skip
