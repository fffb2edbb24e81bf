"""Figures 8, 18, 19 and 20: loss, angle between successive gradients and their norm along quantiles of the loss."""

import numpy as np
import xarray as xr

from shotnoise import show
from shotnoise.reproduce.hessian_sgd.made import claim, finished, summarised
from shotnoise.reproduce.hessian_sgd.settings import Setting, settings
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.grids import Cell
from shotnoise.show.words import number, percent

AT = (0.1, 0.25, 0.5, 0.75, 0.9)
FEW = 10  # runs below which quantiles say little
TRAINED = 0.1  # loss below which a run counts as trained
LATE = 0.8  # share of the training from which on it is late
PRINTED_COSINE, SAME, JUDGED = 0.25, 0.05, 4.0  # differences that count as none, or standard errors
SMOOTH = 9  # records of a running mean before peaks and dips are sought
COLUMNS = {
    "loss": ("$f(\\theta_t)$", "log"),
    "gradient_cosine": ("$\\cos(g_t, g_{t-1})$", "linear"),
    "minibatch_gradient_norm": ("$\\|g_t\\|_2$", "log"),
}


def figure_8(shop: Workshop) -> Reproduction:
    return _dynamics(shop, "fig8", settings(10, (5,)))


def figure_18(shop: Workshop) -> Reproduction:
    return _dynamics(shop, "fig18", settings(10, (50,)))


def figure_19(shop: Workshop) -> Reproduction:
    chosen = settings(10)
    runs = {setting.name: shop.early(setting) for setting in chosen}
    claims = []
    for setting in chosen:
        norm = runs[setting.name]["minibatch_gradient_norm"].median("run").values
        low = int(norm[:30].argmin())
        start, least, most = (number(float(x), 3) for x in (norm[0], norm[low], norm[low:].max()))
        claims.append(claim(
            low > 0,
            f"{setting.title}: the gradient norm falls in the first few iterations; its median is {start} at the start "
            f"and lowest, {least}, at step {low}, then up to {most}",
        ))  # fmt: skip
    return dynamics_drawn("fig19", [s.short for s in chosen], {n: summarised(r) for n, r in runs.items()}, claims)


def figure_20(shop: Workshop) -> Reproduction:
    return _dynamics(shop, "fig20", settings(2))


def _dynamics(shop: Workshop, figure: str, chosen: list[Setting]) -> Reproduction:
    runs = {setting.name: shop.path(setting) for setting in chosen}
    claims = [sentence for s in chosen for sentence in path_claims(runs[s.name], s.title, s.random_labels > 0)]
    if shop.preset == "printed":
        claims = [_printed_claim(runs[s.name], s.title) for s in chosen]
    summaries = {name: summarised(one.drop_dims("loss_change_step")) for name, one in runs.items()}
    return dynamics_drawn(figure, [s.short for s in chosen], summaries, claims)


def dynamics_drawn(figure: str, titles: list[str], found: dict[str, xr.Dataset], claims: list[str]) -> Reproduction:
    rows = [
        [_cell(summary, name, title if name == "loss" else "") for name in COLUMNS]
        for title, summary in zip(titles, found.values(), strict=True)
    ]
    drawn = show.grid(rows, "step $t$", [f"{100 * q:.0f} % of runs" for q in AT])
    words = "Quantiles over runs of the loss, of the cosine between successive gradients, and of the gradient norm."
    runs = int(next(iter(found.values())).attrs["runs"])
    if runs < FEW:
        words += f" With {runs} runs they are interpolated between these."
    return finished(figure, f"dynamics, {runs:,} runs", claims, found, {figure: (drawn, words)})


def _cell(summary: xr.Dataset, name: str, title: str) -> Cell:
    label, scale = COLUMNS[name]
    values = summary[f"{name}_quantile"].sel(quantile=list(AT)).transpose("quantile", "step")
    return Cell(values, label=label, title=title, scale=scale, zero=scale == "linear")


def path_claims(runs: xr.Dataset, title: str, hard: bool) -> list[str]:
    """What the text says of loss, angle and norm."""
    steps, last = runs["step"].values, runs["loss"].isel(step=-1)
    trained = float((last < TRAINED).mean())
    found = [
        claim(trained > 0.9, f"{title}: the loss converges; {percent(trained)} of the runs end below {TRAINED:g}, the "
              f"median loss at {number(float(last.median()), 2)}"),
    ]  # fmt: skip
    late = runs.sel(step=slice(int(LATE * steps[-1]), None))
    cosine = late["gradient_cosine"].mean("step")
    ratio = late["gradient_norm_sq"].mean("step") / (late["minibatch_gradient_norm"] ** 2).mean("step")
    gap, error = float((cosine - ratio).mean()), float((cosine - ratio).std("run", ddof=1)) / np.sqrt(runs.sizes["run"])
    found.append(claim(
        abs(gap) < max(SAME, JUDGED * error),
        f"{title}: late in training the mean cosine is ||mu||^2 / Tr M^(m) to within {SAME:g}, as we read it; it is "
        f"{_with_error(cosine)}, the ratio of the same steps {_with_error(ratio)}",
    ))  # fmt: skip
    if not hard:
        near = abs(float(cosine.mean()) - PRINTED_COSINE) < SAME
        found.append(claim(near, f"{title}: the cosine settles around {PRINTED_COSINE:g}; see above"))
        return found
    typical = (
        runs[["minibatch_gradient_norm"]].median("run").assign(gradient_cosine=runs["gradient_cosine"].mean("run"))
    )
    smooth = typical.rolling(step=SMOOTH, center=True, min_periods=1).mean()
    norm, turned = smooth["minibatch_gradient_norm"].values, smooth["gradient_cosine"].values
    peak, dip = int(norm.argmax()), int(np.nanargmin(turned))
    inner = 0 < peak < len(steps) - 1
    found.append(claim(
        bool(inner and turned[dip] < 0 and abs(float(cosine.mean())) < 0.1),
        f"{title}: the norm rises to a peak where the cosine has its valley, then it falls and the cosine goes to 0; "
        f"peak {number(float(norm[peak]), 2)} at step {steps[peak]:,}, valley {number(float(turned[dip]), 2)} at step "
        f"{steps[dip]:,}, norm at the end {number(float(norm[-1]), 2)}",
    ))  # fmt: skip
    return found


def _with_error(values: xr.DataArray) -> str:
    error = float(values.std("run", ddof=1)) / np.sqrt(values.sizes["run"])
    return f"{float(values.mean()):.3f} ± {error:.3f}"


def _printed_claim(runs: xr.Dataset, title: str) -> str:
    """What raw inputs and weights from N(0, I) do."""
    loss = runs["loss"]
    trained = float((loss.isel(step=-1) < TRAINED).mean())
    worst = loss.where(np.isfinite(loss)).max("step").median()
    return claim(
        trained > 0.9,
        f"{title}, recipe as printed: the loss converges; it starts at {number(float(loss.isel(step=0).median()), 2)}, "
        f"the median run passes through {number(float(worst), 2)}, and {percent(trained)} of {loss.sizes['run']} runs "
        f"end below {TRAINED:g}, the median at {number(float(loss.isel(step=-1).median()), 3)}",
    )
