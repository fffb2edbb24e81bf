"""Figures 9, 23 and 24 (the change of the loss in one update, given the weights) and 10 (its variance)."""

import xarray as xr

from shotnoise import show, simulate
from shotnoise.reproduce.hessian_sgd.made import claim, finished
from shotnoise.reproduce.hessian_sgd.settings import Setting, settings
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.ensembles import NORMAL
from shotnoise.show.grids import Cell
from shotnoise.show.words import listing, number

AT = (0.1, 0.5, 0.9)
ALARM = 1e-3


def figure_9(shop: Workshop) -> Reproduction:
    return _distributions(shop, "fig9", settings(10, (5,)))


def figure_23(shop: Workshop) -> Reproduction:
    return _distributions(shop, "fig23", settings(10, (50,)))


def figure_24(shop: Workshop) -> Reproduction:
    return _distributions(shop, "fig24", settings(2, (50,)))


def figure_10(shop: Workshop) -> Reproduction:
    chosen = settings(10)
    found, claims = _processes(shop, chosen)
    cells = [_variance(found[s.name], s.short) for s in chosen]
    drawn = show.grid([cells[:2], cells[2:]], "step $t$", [f"loss quantile {100 * q:.0f} %" for q in AT], [INTERVAL])
    words = "Variance over batches of the change of the loss in one update, for runs near quantiles of the loss."
    return finished("fig10", "variance of the change of the loss", claims, found, {"fig10": (drawn, words)})


INTERVAL = "95 % interval"


def _distributions(shop: Workshop, figure: str, chosen: list[Setting]) -> Reproduction:
    found, claims = _processes(shop, chosen)
    rows = [[_distribution(found[s.name], k, s.short if k == 0 else "") for k in range(len(AT))] for s in chosen]
    drawn = show.grid(rows, "step $t$", None, ["5 to 95 % of batches", "25 to 75 %"])
    words = (
        "Change of the full loss in one update over redrawn batches, for runs near the 10, 50 and 90 % quantiles of "
        "the loss (from left to right): median and quantiles; the line is at 0."
    )
    return finished(figure, "one-step change of the loss", claims, found, {figure: (drawn, words)})


def _processes(shop: Workshop, chosen: list[Setting]) -> tuple[dict[str, xr.Dataset], list[str]]:
    found, claims = {}, list[str]()
    for setting in chosen:
        runs = shop.path(setting)
        process, phases = simulate.loss_process(runs, AT), simulate.phases(runs, alarm=ALARM)
        found[setting.name] = process.merge(phases, combine_attrs="override")
        claims += _claims(process, phases, setting)
    return found, claims


def _claims(process: xr.Dataset, phases: xr.Dataset, setting: Setting) -> list[str]:
    count = int(phases["phase_count"])
    told = [
        f"{phases['phase_kind'].values[k]} by {number(float(_factor(phases, k)), 2)} from step "
        f"{int(phases['phase_start'][k]):,} to {int(phases['phase_end'][k]):,}"
        for k in range(count)
    ]
    two = list(phases["phase_kind"].values[:count]) == ["rise", "fall"]
    median = process["loss_change"].sel(loss_quantile=0.5)
    low = int(median.values.argmin())
    ends = [float(median[k]) for k in (0, -1)]
    return [
        claim(two, f"{setting.title}: the spread of the change of the loss has two phases, a rise and a fall; seen "
              f"{'are ' + listing(told) if told else 'is no change'} ({int(phases['phase_runs'])} runs, false-alarm "
              f"rate {ALARM:g})"),
        claim(bool(0 < low < median.size - 1 and max(abs(ends[0]), 10 * abs(ends[1])) < abs(float(median[low]))),
              f"{setting.title}: the mean change moves away from 0, then back to it; at the median loss "
              f"{number(float(median[0]), 2)} at the start, {number(float(median[low]), 2)} at step "
              f"{int(median['step'][low]):,}, {number(float(median[-1]), 2)} at the end"),
    ]  # fmt: skip


def _factor(phases: xr.Dataset, k: int) -> float:
    factor = float(phases["phase_factor"][k])
    return factor if factor >= 1 else 1 / factor


def _distribution(process: xr.Dataset, k: int, title: str) -> Cell:
    at = process["loss_change_quantile"].isel(loss_quantile=[k])
    edges = {q: at.sel(quantile=q).transpose("loss_quantile", "step") for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    bands = [(edges[0.05], edges[0.95]), (edges[0.25], edges[0.75])]
    return Cell(edges[0.5], bands, "$\\Delta_t(f)$" if k == 0 else "", title, zero=True, wide=True)


def _variance(process: xr.Dataset, title: str) -> Cell:
    values = process["conditional_loss_change_variance"].transpose("loss_quantile", "step")
    reach = NORMAL * process["conditional_loss_change_variance_stderr"].transpose("loss_quantile", "step")
    return Cell(values, [(values - reach, values + reach)], "$\\mathrm{var}(\\Delta_t)$", title, scale="log", wide=True)
