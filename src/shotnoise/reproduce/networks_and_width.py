"""Fig. 1 of "Strength of Minibatch Noise in SGD": what the theory suggests, on networks, where it proves nothing.

Left and middle: variance of the minibatch loss within the first epoch of a two-layer tanh network against its width
d, with SGD (rate 0.5) and with Adam, the rate fixed or scaled by 1/d. Right: test error of logistic regression
against weight decay at a large rate (1.5, S = 32). Digits by default; with the folder of MNIST's files the first
10,000 of its images. What the text does not say: batch 32, Adam's rate 0.05, the scaled rates equal the fixed ones at
d = 32, two epochs of logistic regression.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from shotnoise import datasets, show, simulate
from shotnoise.compare import compare
from shotnoise.datasets import Data
from shotnoise.problem import Problem
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD, Adam, Rule
from shotnoise.sampling import ReshuffledEpochs
from shotnoise.show.captions import Caption
from shotnoise.show.sweeps import Panel

SIZE, BASE = 32, 32  # batch, and the width at which both rates are equal
RULES: dict[str, Callable[[float], Rule]] = {"SGD": lambda s: SGD(0.5 * s), "Adam": lambda s: Adam(0.05 * s)}
WIDTHS = {"quick": (32, 64, 128, 256, 512, 1024), "paper": (32, 64, 128, 256, 512, 1024, 2048)}
RUNS = {"quick": 8, "paper": 40}
DECAYS = (-0.016, -0.008, -0.004, -0.002, -0.001, -0.0005, 0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)
AT = {"fixed rate": "a fixed rate", "rate over width": "a rate that falls as 1 / width"}
ALARM = 1e-3
TRAINED, EPOCHS = 0.7, 2  # share of the samples that is trained on


@dataclass(frozen=True)
class Bench:
    folder: Path
    preset: str
    data: Data
    seed: int
    workers: int | None
    progress: Callable[[Any], None] | None

    def runs(self, name: str, problem: Problem, rule: Rule, steps: int, record: Any) -> xr.Dataset:
        store = self.folder / f"fig1_{name}_{self.data.name}_{self.preset}.zarr"
        return simulate(
            problem, rule, [SIZE], steps, RUNS[self.preset], initial="resampled", sampling=ReshuffledEpochs(),
            seed=self.seed, record=record, raw=True, store=store, workers=self.workers, progress=self.progress,
        ).load()  # fmt: skip


def figure_1(
    folder: Path,
    *,
    preset: str = "quick",
    data_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """The three panels; no theory predicts them, so what is judged is whether the variance grows with the width."""
    data = datasets.load("digits") if data_dir is None else datasets.load("mnist", data_dir=data_dir)
    inputs, targets = data.inputs.flatten(1)[:10_000].clone(), data.targets[:10_000].clone()
    bench = Bench(folder, preset, data, seed, workers, progress)
    swept = {name: _width_sweep(bench, name, inputs, targets) for name in RULES}
    decayed = _decay_sweep(bench, inputs, targets)
    panels = [
        Panel(found["value"], None, "variance of the loss\nin the first epoch", "width $d$", name, "xy",
              errors=found["value_stderr"])
        for name, found in swept.items()
    ]  # fmt: skip
    panels.append(Panel(decayed["value"], None, "test error", "weight decay $\\gamma$", "logistic regression", "",
                        errors=decayed["value_stderr"]))  # fmt: skip
    errors = decayed["value"].isel(theory=0)
    best = int(errors.values.argmin())
    spread = decayed["value_stderr"].isel(theory=0)
    off = float(errors[best] - errors.sel(l2=0.0)), float(np.hypot(spread[best], spread.sel(l2=0.0)))
    sentences = [_growth(name, found) for name, found in swept.items()]
    sentences.append(
        f"Logistic regression at a rate of 1.5 has its least test error, {float(errors[best]):.4f}, at a weight "
        "decay of "
        f"{float(errors['l2'][best]):g}; that differs from no decay by {off[0]:+.4f} with a standard error of "
        f"{off[1]:.4f}"
        f"{', which is no more than chance' if abs(off[0]) < 2 * off[1] else ''}."
    )
    caption = Caption(
        "Fig. 1: networks",
        "Variance of the minibatch loss over the second half of the first epoch, mean over runs with standard "
        "errors, and test error of "
        "logistic regression after training with weight decay.",
        "Loss variance against width for fixed and scaled rates, and test error against weight decay.",
    )
    stored = {f"fig1_{name}": found for name, found in swept.items()} | {"fig1_decay": decayed}
    return Reproduction(
        title=f"Strength of minibatch noise, Fig. 1 on {data.name}",
        sentences=sentences,
        data=stored,
        figures={"fig1": (show.sweeps(*panels), caption)},
        agreement=None,
        holds=True,
    )


def _width_sweep(bench: Bench, name: str, inputs: torch.Tensor, targets: torch.Tensor) -> xr.Dataset:
    widths, steps = WIDTHS[bench.preset], len(inputs) // SIZE - 1
    values, errors = np.empty((2, 2, len(widths)))
    for k, width in enumerate(widths):
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed)
            model = torch.nn.Sequential(
                torch.nn.Linear(inputs.shape[1], width), torch.nn.Tanh(), torch.nn.Linear(width, 10)
            )
        problem = Problem(model, "cross_entropy", inputs, targets)
        for j, scale in enumerate((1.0, BASE / width)):
            if scale == 1.0 and j == 1:
                values[1, k], errors[1, k] = values[0, k], errors[0, k]
                continue
            found = bench.runs(f"{name}_{width}_{j}", problem, RULES[name](scale), steps, ["minibatch_loss"])
            late = found["minibatch_loss"].isel(batch_size=0, step=slice(steps // 2, None)).var("step")
            values[j, k], errors[j, k] = float(late.mean()), float(late.std(ddof=1)) / np.sqrt(late.size)
    dims, coordinates = ("theory", "width"), {"theory": ["fixed rate", "rate over width"], "width": list(widths)}
    return xr.Dataset(
        {"value": (dims, values), "value_stderr": (dims, errors)}, coordinates, {"draws": RUNS[bench.preset]}
    )


def _decay_sweep(bench: Bench, inputs: torch.Tensor, targets: torch.Tensor) -> xr.Dataset:
    order = torch.from_numpy(np.random.default_rng(bench.seed).permutation(len(inputs)))
    kept = int(TRAINED * len(inputs))
    train, test = order[:kept], order[kept:]
    steps = EPOCHS * (kept // SIZE)
    values, errors = [], []
    for k, decay in enumerate(DECAYS):
        model = torch.nn.Linear(inputs.shape[1], 10)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
        problem = Problem(model, "cross_entropy", inputs[train], targets[train], l2=decay)
        found = bench.runs(f"decay_{k}", problem, SGD(1.5), steps, [simulate.weights(steps=[steps])])
        weights = torch.from_numpy(found["weights"].isel(batch_size=0).values.reshape(RUNS[bench.preset], -1))
        matrix, bias = weights[:, : inputs.shape[1] * 10].reshape(-1, 10, inputs.shape[1]), weights[:, -10:]
        guesses = (inputs[test] @ matrix.mT + bias[:, None]).argmax(-1)
        wrong = (guesses != targets[test]).double().mean(1)
        values.append(float(wrong.mean()))
        errors.append(float(wrong.std()) / np.sqrt(len(wrong)))
    dims, coordinates = ("theory", "l2"), {"theory": ["fixed rate"], "l2": list(DECAYS)}
    return xr.Dataset({"value": (dims, [values]), "value_stderr": (dims, [errors])}, coordinates)


def _growth(name: str, found: xr.Dataset) -> str:
    """By how much the variance grows with the width at either rate, and whether that is more than chance."""
    first, last = int(found["width"][0]), int(found["width"][-1])
    words = []
    for rate in found["theory"].values:
        ends = found.sel(theory=rate).drop_vars("theory")
        verdict = compare(*(ends.isel(width=k, drop=True) for k in (-1, 0)), variables=["value"], alarm=ALARM)
        ratio = float(ends["value"][-1] / ends["value"][0])
        chance = "no more than chance" if verdict.agrees else f"p = {verdict.p_value:.1g}"
        words.append(f"by a factor of {ratio:.3g} at {AT[str(rate)]} ({chance})")
    return f"{name}: from width {first} to {last:,} the variance of the loss changes {' and '.join(words)}."
