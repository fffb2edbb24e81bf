"""Bounds of "Hessian based analysis of SGD for deep nets" on Gauss-10: one step (sec. 5.2), generalization (figs 11,
25).

The recipe that trains (see `datasets.gauss`): inputs / 5, network 50-10-30-10 with all weights and biases from 0.1
N(0, I), learning rate 0.1, batches with replacement; 400 steps with the true labels, 10,000 with 15 % of them drawn
anew. As printed (raw inputs, weights from N(0, I)) nothing trains.

    loss-change   the distribution of the change of the loss by one step along a training, and its bounds
    fig11, fig25  over runs: diagonal of the Hessian, effective curvature, weighted norm, bound; batch 5 and batch 50
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import mannwhitneyu
from torch import nn

from shotnoise import datasets, results, show, simulate, training
from shotnoise.errors import InputError
from shotnoise.predict import bounds, generalization
from shotnoise.problem import Problem
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD
from shotnoise.sampling import WithReplacement
from shotnoise.show.captions import Caption
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number

RATE, SPREAD = 0.1, 0.1  # learning rate; standard deviation of the first weights
LABELS = {"true labels": (0.0, 400), "15 % random labels": (0.15, 10_000)}  # share drawn anew, steps
LOOKS = {"true labels": (0, 20, 50, 100, 400), "15 % random labels": (0, 100, 500, 2000, 10_000)}
FIGURES = {"loss-change": 5, "fig11": 5, "fig25": 50}  # batch size
ALARM = 1e-3


@dataclass(frozen=True)
class Preset:
    """Runs of the figures over runs; draws of the posterior in each; batches at each step of one run."""

    runs: int
    draws: int
    batches: int


PRESETS = {"quick": Preset(40, 60, 1000), "paper": Preset(10_000, 500, 10_000)}


def gauss_bounds(
    folder: str | Path,
    figure: str,
    *,
    preset: str = "quick",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """One of `GAUSS_BOUNDS`: "loss-change", "fig11" or "fig25", with the verdict in words and numbers.

    folder: of the runs, which the same call continues. Raises InputError for an unknown figure or preset.
    """
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: one of {', '.join(FIGURES)}")
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if figure == "loss-change":
        return _loss_change(chosen, seed)
    found = {
        name: _over_runs(
            Path(folder) / f"{figure}_{k}_{preset}.zarr", name, FIGURES[figure], chosen, seed, workers, progress
        )
        for k, name in enumerate(LABELS)
    }
    return _generalization(figure, found)


def problem_of(labels: str, seed: int) -> Problem:
    """Gauss-10 with these labels, and the network."""
    data = datasets.load("gauss-10", random_labels=LABELS[labels][0], seed=seed)
    model = nn.Sequential(nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 10))
    problem = Problem(model, "cross_entropy", data.inputs, data.targets)
    problem.place(SPREAD * np.random.default_rng(seed).standard_normal(1150))
    return problem


def _loss_change(preset: Preset, seed: int) -> Reproduction:
    size, found, figures, sentences, rows = FIGURES["loss-change"], {}, {}, [], []
    for k, labels in enumerate(LABELS):
        problem = problem_of(labels, seed)
        rule = training.SGD(RATE, size, WithReplacement(), seed)
        parts = [
            (t, bounds.one_step(problem, RATE, size, draws=preset.batches, seed=seed))
            for t in training.stops(problem, rule, LOOKS[labels])
        ]
        whole = results.along_steps(parts, {"data": f"Gauss-10, {labels}"})
        found[f"loss_change_{k}"] = whole
        words = Caption(
            f"Change of the loss by one step, {labels}",
            "Real batches of 5 at fixed weights, the interval of the mean change, and changes that are exceeded with "
            "at most 1 % by each bound, with the largest curvature found along steps in place of a Lipschitz constant.",
            "Histograms of the loss change at five steps with bounds right of them.",
        )
        figures[f"loss_change_{k}"] = (show.loss_change(whole), words)
        sentences.append(_slack_sentence(labels, parts))
        rows += [_row(labels, t, here) for t, here in parts]
    columns = ["labels", "step", "mean", "std", "U-", "U+", "U+ printed", "1 % bound", "slack (std)", "broken", "L"]
    every = [here for part in found.values() for here in (part.isel(step=t) for t in range(part.sizes["step"]))]
    holds = all(
        bool((_exceeded(here) <= 1e-12).all()) for here in every if float(here["smoothness_violations"].max()) == 0
    )
    inside = sum(_inside(here) for here in every)
    sentences.append(f"The mean change lies in its interval in {inside} of {len(every)} cases.")
    return Reproduction(
        title="Hessian based analysis of SGD: bounds on one step, Gauss-10",
        sentences=sentences,
        data=found,
        figures=figures,
        agreement=None,
        holds=holds,
        tables=[Sheet("Change of the loss by one step", columns, rows)],
    )


def _exceeded(here: xr.Dataset) -> xr.DataArray:
    """By how much real batches exceed the bounds for real batches more often than stated, in excess of 4 errors."""
    real = here.where(here["bound_model"] == "real batches", drop=True)
    stated = real["tail_probability"]
    return real["exceedance"] - stated - 4 * np.sqrt(stated * (1 - stated) / here.sizes["draw"])


def _inside(here: xr.Dataset) -> bool:
    slack = 3 * float(here["loss_change_mean_stderr"]) if "loss_change_mean_stderr" in here else 0.0
    low, high = (float(here[f"loss_change_{end}"].sel(form="batch")) for end in ("lower", "upper"))
    return low - slack <= float(here["loss_change_mean"]) <= high + slack


def _row(labels: str, step: int, here: xr.Dataset) -> list[str]:
    at = {"side": "upper", "bound": "chernoff"}
    low, high = (float(here[f"loss_change_{end}"].sel(form="batch")) for end in ("lower", "upper"))
    printed, broken = float(here["loss_change_upper"].sel(form="printed")), float(here["smoothness_violations"].max())
    bound, slack = (float(here[n].sel(at).sel(tail_probability=0.01)) for n in ("loss_change_bound", "bound_slack"))
    spread = float(here["loss_change_variance"]) ** 0.5
    numbers = [float(here["loss_change_mean"]), spread, low, high, printed, bound]
    cells = [number(value, 3) for value in numbers]
    return [labels, f"{step:,}", *cells, f"{slack:.1f}", f"{100 * broken:.3g} %", number(float(here["smoothness"]), 3)]


def _slack_sentence(labels: str, parts: list[tuple[int, xr.Dataset]]) -> str:
    every = [here["bound_slack"].sel(side="upper", tail_probability=0.01) for _, here in parts]
    slacks = {name: [float(slack.sel(bound=name)) for slack in every] for name in ("chernoff", "printed, c = 1/10")}
    slacks["the best for batches"] = [
        float(slack.where(slack["bound_model"] == "real batches").min()) for slack in every
    ]
    words = ", ".join(f"{min(values):.1f} to {max(values):.1f} ({name})" for name, values in slacks.items())
    broken = max(float(here["smoothness_violations"].max()) for _, here in parts)
    promised = sum(float(here["loss_change_upper"].sel(form="batch")) < 0 for _, here in parts)
    return (
        f"{labels.capitalize()}: the 1 % bounds lie {words} standard deviations beyond the 99 % quantile of real "
        f"batches; the interval promises a decrease at {promised} of {len(parts)} steps; at most {100 * broken:.2g} % "
        "of the batches break the smoothness inequality with the curvature found."
    )


def _over_runs(
    store: Path,
    labels: str,
    size: int,
    preset: Preset,
    seed: int,
    workers: int | None,
    progress: Callable[[Any], None] | None,
) -> xr.Dataset:
    problem, steps = problem_of(labels, seed), LABELS[labels][1]
    runs = simulate(
        problem, SGD(RATE), [size], steps, preset.runs, initial=_first, seed=seed, every=steps,
        record=["loss", simulate.weights(steps=[steps])], raw=True, store=store, workers=workers, progress=progress,
    ).load()  # fmt: skip
    weights = runs["weights"].values.reshape(preset.runs, -1)
    loss = runs["loss"].isel(batch_size=0, step=-1).values
    finite = np.isfinite(weights).all(1)
    rows = [_of_run(problem, w, preset, seed + r) for r, w in enumerate(weights[finite])]
    found = {name: ("run", np.array([row[name] for row in rows])) for name in rows[0]}
    found["loss"] = ("run", loss[finite])
    attributes = {
        "data": f"Gauss-10, {labels}", "batch_size": size, "learning_rate": RATE, "steps": steps, "seed": seed,
        "prior_std": 1.0, "delta": 0.05, "runs_diverged": int((~finite).sum()),
    }  # fmt: skip
    return results.dataset(found, {}, attributes)


def _first(rng: np.random.Generator) -> np.ndarray:
    return SPREAD * rng.standard_normal(1150)


def _of_run(problem: Problem, weights: np.ndarray, preset: Preset, seed: int) -> dict[str, float]:
    """The panels of the figure for one run: prior N(0, I), as in the paper; the better bound of tau = 1 and n."""
    found = generalization.pac_bayes(problem, weights, draws=preset.draws, seed=seed)
    diagonal, published = found["hessian_diagonal"].values, found.sel(curvature_scale=1.0).squeeze()
    laplace = found.sel(curvature_scale=float(problem.n)).squeeze()
    return {
        "hessian_diagonal": float(diagonal.mean()),
        "curved_directions": float(published["curved_directions"]),
        "effective_curvature": float(laplace["effective_curvature"]),
        "weighted_frobenius": float(published["weighted_frobenius"]),
        "kl_budget": float(published["kl_budget"].sel(constant="n + 1")),
        "risk_bound": float(found["best_risk_bound"]),
        "posterior_error": float(published["posterior_error"]),
    }


LABEL = {
    "hessian_diagonal": "mean of diag $H$",
    "effective_curvature": "effective curvature ($\\tau=n$)",
    "weighted_frobenius": "$\\|w\\|^2/\\sigma^2$",
    "kl_budget": "right-hand side of (51), nats",
}


def _generalization(figure: str, found: dict[str, xr.Dataset]) -> Reproduction:
    true, random = found.values()
    sentences = []
    for name in LABEL:
        a, b = (each[name].values for each in (true, random))
        p = float(mannwhitneyu(b, a, alternative="greater").pvalue)
        verdict = (
            f"larger with random labels (p = {p:.1g})" if p < ALARM else f"not larger with random labels (p = {p:.2g})"
        )
        plain = LABEL[name].replace("$", "").replace("\\|", "|").replace("\\sigma", "s").replace("\\tau", "tau")
        sentences.append(
            f"{plain}: median {number(float(np.median(a)), 3)} against {number(float(np.median(b)), 3)}, {verdict}."
        )
    crossing = max(float(each["curved_directions"].max()) for each in found.values())
    sentences.append(f"Entries of diag H above the prior's precision 1, in any run: at most {crossing:.0f} of 1,150.")
    vacuous = [f"{100 * float((each['risk_bound'] >= 0.9).mean()):.3g} % ({name})" for name, each in found.items()]
    sentences.append(f"The inverted bound is no better than guessing (0.9) in {' and '.join(vacuous)} of the runs.")
    losses = " and ".join(f"{number(float(np.median(d['loss'])), 2)} ({n})" for n, d in found.items())
    sentences.append(f"Final loss, median: {losses}.")
    grown = float(mannwhitneyu(random["weighted_frobenius"], true["weighted_frobenius"], alternative="greater").pvalue)
    caption = Caption(
        f"{figure}: what the bound is made of",
        f"Distributions over {true.sizes['run']:,} runs with prior N(0, I): mean diagonal of the Hessian, effective "
        "curvature at the scale tau = n (at tau = 1, as published, no entry crosses), weighted norm, and right-hand "
        "side before inversion. Dashed: medians.",
        "Four histograms, true labels against 15 % random labels.",
    )
    rows = [
        [name, *(number(float(np.median(each[v])), 3) for v in [*LABEL, "posterior_error", "risk_bound", "loss"])]
        for name, each in found.items()
    ]
    columns = ["labels", "mean diag H", "eff. curvature", "norm²/σ²", "(51), nats", "error of Q", "bound", "loss"]
    logarithmic = ["hessian_diagonal"]
    return Reproduction(
        title=f"Hessian based analysis of SGD, {figure}: Gauss-10, batch {true.attrs['batch_size']}",
        sentences=sentences,
        data={f"{figure}_{k}": each for k, each in enumerate(found.values())},
        figures={figure: (show.distributions(found, LABEL, logarithmic), caption)},
        agreement=None,
        holds=grown < ALARM,
        tables=[Sheet("Medians over runs", columns, rows)],
    )
