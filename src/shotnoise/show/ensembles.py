"""Figures of an ensemble along the training, from what `simulate.summary` stored. Nothing is computed here."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shotnoise.errors import InputError
from shotnoise.show.axes import Look, looks, note
from shotnoise.show.style import GREY, house_style, new_figure

LABELS = {
    "loss": "training loss\n$L(w_t)$",
    "minibatch_loss": "minibatch loss",
    "gradient_norm": "full gradient\n$\\|\\nabla L(w_t)\\|$",
    "gradient_norm_sq": "full gradient\n$\\|\\nabla L(w_t)\\|^2$",
    "minibatch_gradient_norm": "minibatch gradient\n$\\|g_t\\|$",
    "gradient_cosine": "successive gradients\n$\\cos(g_t, g_{t-1})$",
    "accuracy": "accuracy",
    "gradient_variance": "gradient variance\n$\\mathrm{var}(g_t\\,|\\,\\mathcal{F}_0)$",
    "full_gradient_variance": "full gradient variance\n$\\mathrm{var}(\\nabla L(w_t)\\,|\\,\\mathcal{F}_0)$",
}
LINEAR = {"gradient_cosine", "accuracy"}
OUTER, INNER = (0.05, 0.95), (0.25, 0.75)  # quantiles between which bands are drawn, where they are stored
NORMAL = 1.96  # standard errors that a 95 % band reaches


@house_style()
def ensemble(summary: xr.Dataset, variables: Sequence[str] | None = None) -> Figure:
    """One panel per variable against the step, one colour per batch size (or whatever else sets the cells apart).

    Variables that have quantiles over runs are drawn as their median in bands between the stored quantiles 5 to 95 %
    and 25 to 75 %; estimates such as `gradient_variance` as a line in a band of 1.96 standard errors. A variable of
    quantiles that are all positive gets a logarithmic axis. variables: default all that have a step.
    Raises InputError where nothing of the kind is stored: pass the result of `simulate.summary`.
    """
    names = _drawable(summary) if variables is None else list(variables)
    missing = [name for name in names if name not in summary or f"{name}_stderr" not in summary]
    if not names or missing or "run" in summary.dims:
        raise InputError(
            f"nothing to draw for {', '.join(missing or names) or 'this result'}: an ensemble is drawn from its "
            "summary; pass shotnoise.simulate.summary(runs)"
        )
    figure = new_figure(1.0 + 1.55 * len(names))
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(len(names), 1, sharex=True)))
    cells = _cells(summary)
    for axes, name in zip(panels, names, strict=True):
        positive = name not in LINEAR
        for (_, here), look in zip(cells, looks(len(cells)), strict=True):
            positive &= _line(axes, here, name, look)
        if positive:
            axes.set_yscale("log")
        axes.set_ylabel(LABELS.get(name, name.replace("_", " ")))
    panels[-1].set_xlabel("step $t$")
    lost = int(summary["runs_excluded"].max()) if "runs_excluded" in summary else 0
    if lost:
        note(panels[0], f"up to {lost} diverged runs are left out")
    handles = [Patch(color=look.colour) for look in looks(len(cells))]
    bands = [Patch(color=GREY, alpha=0.45), Patch(color=GREY, alpha=0.2)]
    words = ["25 to 75 % of runs", "5 to 95 %, or 1.96 standard errors"]
    labels = [*(label for label, _ in cells), *words]
    figure.legend([*handles, *bands], labels, loc="outside upper center", ncols=2, handlelength=1.8)
    return figure


def _drawable(summary: xr.Dataset) -> list[str]:
    named = [str(name) for name in summary.data_vars if f"{name}_stderr" in summary]
    return [name for name in named if summary[name].dims[-1:] == ("step",) and not name.endswith("_variance_variance")
            and name.removesuffix("_variance") not in set(named) - {name}]  # fmt: skip


def _cells(summary: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """Each cell with its label, such as "batch size 5"."""
    dims = [d for d in ("optimizer", "learning_rate", "batch_size") if d in summary.dims]
    stacked = [(("", summary))]
    for dim in dims:
        several = summary.sizes[dim] > 1 or dim == "batch_size"
        stacked = [
            (
                ", ".join(filter(None, [label, f"{dim.replace('_', ' ')} {value}" if several else ""])),
                here.sel({dim: value}),
            )
            for label, here in stacked
            for value in summary[dim].values
        ]
    return stacked


def _line(axes: Axes, here: xr.Dataset, name: str, look: Look) -> bool:
    """Draw one cell; whether all that is drawn is positive."""
    step = here["step"].values
    if f"{name}_quantile" in here:
        at = {round(float(q), 6): here[f"{name}_quantile"].sel(quantile=q).values for q in here["quantile"].values}
        for (low, high), alpha in ((OUTER, 0.2), (INNER, 0.3)):
            if low in at and high in at:
                axes.fill_between(step, at[low], at[high], color=look.colour, alpha=alpha, lw=0)
        middle = at.get(0.5, here[name].values)
        lowest = at.get(OUTER[0], middle)
    else:
        middle, reach = here[name].values, NORMAL * here[f"{name}_stderr"].values
        lowest = middle - reach
        axes.fill_between(step, lowest, middle + reach, color=look.colour, alpha=0.2, lw=0)
    axes.plot(step, middle, color=look.colour)
    shown = lowest[np.isfinite(lowest)]
    return bool((shown > 0).all())
