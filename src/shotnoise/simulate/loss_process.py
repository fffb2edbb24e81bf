"""The loss as a process: what one update does to it, given the weights, along the quantiles of the loss over runs.

    Delta_t = L(w_{t+1}) - L(w_t)    over batches drawn at w_t, for the runs whose loss at t is near its q-quantile

Moments and quantiles of Delta_t given the weights come from redrawn batches (`simulate.loss_change`); for quadratic
losses their exact values are theory's. After Li, Gu, Zhou, Chen and Banerjee, section 5.1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.simulate.plan import DIVERGED

AT = (0.1, 0.5, 0.9)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST = 3  # redraws, for a variance with an error
CHANGE = "loss_change"


def loss_process(
    runs: xr.Dataset, at: Sequence[float] = AT, *, width: float = 0.05, quantiles: Sequence[float] = QUANTILES
) -> xr.Dataset:
    """Distribution of Delta_t given the weights, at chosen quantiles of the loss over runs.

    runs: of `simulate(..., record=["loss", simulate.loss_change(redraws), ...])` with every run's values. at: quantiles
    of the loss at each step. width: the runs looked at are those whose rank lies within half of it, as a share of the
    runs, of the quantile; at least the nearest one. Runs that have diverged are left out.

    Returns by step and `loss_quantile`: `loss_change`, the mean of Delta_t given the weights, averaged over these runs;
    `conditional_loss_change_variance`, its variance over batches at fixed weights, likewise; `loss_change_quantile` of
    all their redraws together; `window_runs`. Their standard errors are those of the redraws, given the weights of
    these runs; the pooled quantiles also hold what sets the runs apart. Whatever else was recorded by run and step is
    averaged over the same runs, with the standard error over these (NaN for one run).
    Raises InputError for runs without `loss` or without at least 3 redraws of `loss_change`.

    >>> import torch, shotnoise as sn
    >>> from shotnoise.simulate import Simulate
    >>> simulate = Simulate()  # which is `shotnoise.simulate`
    >>> problem = sn.Problem(torch.nn.Linear(1, 1), "mse", torch.arange(4.0)[:, None], torch.ones(4, 1))
    >>> runs = simulate(problem, sn.rules.SGD(0.1), 1, 4, 20, record=["loss", simulate.loss_change(5)])
    >>> dict(loss_process(runs)["loss_change"].sizes)
    {'batch_size': 1, 'step': 5, 'loss_quantile': 3}
    """
    step = check(runs)
    if not at or not all(0 <= q <= 1 for q in (*at, *quantiles)) or not 0 <= width <= 1:
        raise InputError(f"at={list(at)}, quantiles={list(quantiles)}, width={width}: numbers between 0 and 1")
    values = alive_at(runs, step)
    cells = [d for d in values[CHANGE].dims if d not in ("run", step, "redraw")]
    order = (*cells, step, "run")
    change = values[CHANGE].transpose(*order, "redraw").values
    loss = values["loss"].transpose(*order).values
    others = {
        str(name): variable.transpose(*order).values
        for name, variable in values.data_vars.items()
        if name != CHANGE and set(variable.dims) == set(order)
    }
    found = {name: np.full((*loss.shape[:-1], len(at)), np.nan) for name in _names(others)}
    found["loss_change_quantile"] = np.full((*loss.shape[:-1], len(at), len(quantiles)), np.nan)
    for place in np.ndindex(loss.shape[:-1]):
        ranked = np.argsort(np.where(np.isfinite(loss[place]), loss[place], np.inf), kind="stable")
        ranked = ranked[: int(np.isfinite(loss[place]).sum())]
        for k, q in enumerate(at):
            window = ranked[_window(len(ranked), q, width)]
            if len(window):
                found["loss_change_quantile"][*place, k] = np.quantile(change[place][window], quantiles)
                for name, number in _of_window(change[place][window], others, place, window).items():
                    found[name][*place, k] = number
    dims = (*cells, "step", "loss_quantile")
    variables = {name: (dims, v) for name, v in found.items() if name != "loss_change_quantile"}
    variables["loss_change_quantile"] = ((*dims, "quantile"), found["loss_change_quantile"])
    coordinates = {str(d): runs[d].values for d in cells} | {"step": runs[step].values}
    coordinates |= {"loss_quantile": np.array(at, float), "quantile": np.array(quantiles, float)}
    attributes = {**runs.attrs, "window": width, "redraws": change.shape[-1]}
    return results.describe(xr.Dataset(variables, coordinates, attributes))


def check(runs: xr.Dataset) -> str:
    """The steps' dimension of the redraws. Raises InputError where the runs hold too little."""
    lacking = [name for name in ("loss", CHANGE) if name not in runs or "run" not in runs[name].dims]
    if lacking or runs[CHANGE].sizes["redraw"] < LEAST:
        raise InputError(
            f"the loss process needs every run's loss and at least {LEAST} redraws: "
            'simulate(..., record=["loss", simulate.loss_change(20)], raw=True); there are '
            f"{', '.join(map(str, runs.data_vars)) or 'no variables'}"
        )
    step = next(str(d) for d in runs[CHANGE].dims if d == "step" or str(d).endswith("_step"))
    absent = sorted(set(runs[step].values.tolist()) - set(runs["step"].values.tolist()))
    if absent:
        raise InputError(
            f"batches were redrawn at steps {absent}, where nothing else was recorded; use steps of `every`"
        )
    return step


def alive_at(runs: xr.Dataset, step: str) -> xr.Dataset:
    """At the steps of the redraws; NaN from a run's divergence on."""
    at = runs.sel(step=runs[step].values) if step != "step" else runs
    if step != "step":
        at = at.drop_dims(step).rename(step=step).assign({CHANGE: runs[CHANGE]})
    kept = [name for name, v in at.data_vars.items() if "run" in v.dims and step in v.dims and v.dtype.kind == "f"]
    found = at[kept].astype(np.float64)
    if DIVERGED not in runs:
        return found
    when = runs[DIVERGED]
    return found.where(~((when >= 0) & (when <= found[step])))


def _names(others: dict[str, Any]) -> list[str]:
    pairs = [CHANGE, "conditional_loss_change_variance", *others]
    return [name + end for name in pairs for end in ("", "_stderr")] + ["window_runs"]


def _window(count: int, quantile: float, width: float) -> slice:
    """Ranks (k + 1/2) / count within width / 2 of the quantile, or the nearest one."""
    if not count:
        return slice(0, 0)
    ranks = (np.arange(count) + 0.5) / count
    inside = np.flatnonzero(np.abs(ranks - quantile) <= width / 2)
    if not len(inside):
        inside = np.array([int(np.abs(ranks - quantile).argmin())])
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _of_window(
    change: NDArray[np.float64], others: dict[str, NDArray[np.float64]], place: tuple[int, ...], window: Any
) -> dict[str, float]:
    """Means over some runs (rows), errors from their redraws (columns)."""
    rows, k = change.shape
    u = (change - change.mean(1, keepdims=True)) ** 2
    variance = u.sum(1) / (k - 1)
    spread = ((u - u.mean(1, keepdims=True)) ** 2).sum(1)
    jackknife = k / ((k - 1) * (k - 2) ** 2) * spread  # squared standard error, as in `statistics`
    found = {
        CHANGE: change.mean(),
        f"{CHANGE}_stderr": np.sqrt(variance.sum() / k) / rows,
        "conditional_loss_change_variance": variance.mean(),
        "conditional_loss_change_variance_stderr": np.sqrt(jackknife.sum()) / rows,
        "window_runs": float(rows),
    }
    for name, values in others.items():
        here = values[place][window]
        found[name] = here.mean()
        found[f"{name}_stderr"] = here.std(ddof=1) / np.sqrt(rows) if rows > 1 else np.nan
    return found
