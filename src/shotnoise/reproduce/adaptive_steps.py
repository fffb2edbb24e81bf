"""AdaptiveSGD and PreconditionedSGD beside SGD, Adam and AdamW, every one at the learning rate that suits it best.

"Hessian based analysis of SGD for deep nets" (Li, Gu, Zhou, Chen, Banerjee) suggests the two in sec. 5.4 and leaves the
experiment to others. Each learning rate (1/L for ours) is chosen on runs of their own by the training loss at the
end, then fresh runs are counted; the optimizers share initial weights and batches. Two more rows have nothing tuned:
L from secants along the steps, for which every tenth step takes a second gradient.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from shotnoise import results, show
from shotnoise.errors import DataError, InputError, NonFiniteError
from shotnoise.optim import AdaptiveSGD, Observed, PreconditionedSGD, Secant
from shotnoise.reproduce import optimizer_tasks as tasks
from shotnoise.reproduce.optimizer_tasks import Task
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.show.captions import Caption
from shotnoise.show.sweeps import Panel
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, with_stderr

Make = Callable[[nn.Module, Task, float], torch.optim.Optimizer]
LOOKS = 10  # at the training loss, along a run
SEEN = 1000  # samples that the training loss is taken over, at most
CLEAR = 3.0  # standard errors


@dataclass(frozen=True)
class Preset:
    """Runs per candidate and per result, candidates per factor of ten, steps of each task, sizes of the data."""

    tuning_runs: int
    runs: int
    per_decade: int
    steps: dict[str, int]
    images: int
    reviews: int


PRESETS = {
    "quick": Preset(2, 5, 2, {"gauss-10": 400, "mnist": 250, "yelp": 150}, 5000, 2000),
    "paper": Preset(3, 20, 3, {"gauss-10": 10_000, "mnist": 2000, "yelp": 1500}, 20_000, 10_000),
}


@dataclass(frozen=True)
class Method:
    """An optimizer, and the powers of ten between which its rate is looked for; none: nothing is tuned."""

    name: str
    make: Make
    range: tuple[float, float] | None = None

    def rates(self, per_decade: int) -> list[float]:
        if self.range is None:
            return [float("nan")]
        low, high = self.range
        return [float(r) for r in 10 ** np.linspace(low, high, round((high - low) * per_decade) + 1)]


METHODS = (
    Method("SGD", lambda m, t, r: torch.optim.SGD(m.parameters(), r), (-2, 1)),
    Method("Adam", lambda m, t, r: torch.optim.Adam(m.parameters(), r), (-4, -1)),
    Method("AdamW", lambda m, t, r: torch.optim.AdamW(m.parameters(), r), (-4, -1)),
    Method("AdaptiveSGD", lambda m, t, r: AdaptiveSGD(m.parameters(), _seen(m, t), 1 / r), (-2, 1)),
    Method("PreconditionedSGD", lambda m, t, r: PreconditionedSGD(m.parameters(), _seen(m, t), 1 / r), (-2, 1)),
    Method("AdaptiveSGD, secants", lambda m, t, r: AdaptiveSGD(m.parameters(), _seen(m, t), Secant())),
    Method("PreconditionedSGD, secants", lambda m, t, r: PreconditionedSGD(m.parameters(), _seen(m, t), Secant())),
)
BASELINES = ("SGD", "Adam", "AdamW")


def adaptive_steps(
    *,
    preset: str = "quick",
    data_dir: Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Reproduction:
    """The table, a figure of the training losses, and in sentences where our optimizers win and where they lose.

    data_dir: a folder with MNIST's files and the Yelp reviews (or its folders mnist and yelp); a task whose files are
    missing is left out, and a sentence says why. preset: "quick", or "paper" for more and longer runs. One thread.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    size = PRESETS[preset]
    there, sentences = _tasks(data_dir, size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [_compare(task, size, seed, progress) for task in there]
    finally:
        torch.set_num_threads(threads)
    sheets = [_sheet(task, result, size) for task, result in zip(there, found, strict=True)]
    said = [s for task, result in zip(there, found, strict=True) for s in _sentences(task, result)]
    panels = [
        Panel(
            result["loss"].rename(optimizer="theory"),
            None,
            "training loss",
            "step",
            task.title,
            errors=result["loss_stderr"].rename(optimizer="theory"),
        )
        for task, result in zip(there, found, strict=True)
    ]
    caption = Caption(
        "Training loss of each optimizer at its best rate",
        f"Mean over {size.runs} runs with 95 % intervals, initial weights and batches in common; rates chosen on other "
        "runs.",
        "Training loss against the step, one panel per task, one line per optimizer.",
    )
    return Reproduction(
        title="Step sizes from the noise, beside SGD, Adam and AdamW",
        sentences=[*said, *sentences],
        data={task.name: result for task, result in zip(there, found, strict=True)},
        figures={"losses": (show.sweeps(*panels), caption)},
        agreement=None,
        holds=all(bool(np.isfinite(result["loss"]).all()) for result in found),
        tables=sheets,
    )


def _tasks(data_dir: Path | None, size: Preset) -> tuple[list[Task], list[str]]:
    there, missing = [tasks.gauss()], []
    makers: list[tuple[str, Callable[[], Task]]] = [
        ("MNIST", lambda: tasks.mnist(data_dir, size.images)),
        ("The transformer on reviews", lambda: tasks.reviews(data_dir, size.reviews)),
    ]
    for name, make in makers:
        try:
            there.append(make())
        except DataError as error:
            missing.append(f"{name} is left out: {str(error).splitlines()[0]}")
    return there, missing


def _compare(task: Task, size: Preset, seed: int, progress: Callable[[str], None] | None) -> xr.Dataset:
    """All methods: the rate chosen, loss by step, held-out loss and error, cost; over runs with standard errors."""
    steps = size.steps[task.name]
    stops = np.unique(np.linspace(0, steps, LOOKS + 1).round().astype(int))
    chosen, edge, losses, after, cost = [], [], [], [], []
    for method in METHODS:
        rates = method.rates(size.per_decade)
        ends = []
        for k, rate in enumerate(rates if len(rates) > 1 else []):
            if progress is not None:
                progress(f"{task.name}: {method.name}, rate {k + 1} of {len(rates)}")
            tried = [_run(task, method, rate, [steps], (seed, 1, r))[0][-1] for r in range(size.tuning_runs)]
            ends.append(np.mean(tried))
        best = int(np.argmin(np.nan_to_num(ends, nan=np.inf))) if ends else 0
        chosen.append(rates[best])
        edge.append(len(rates) > 1 and best in (0, len(rates) - 1))
        if progress is not None:
            progress(f"{task.name}: {method.name}, {size.runs} runs")
        runs = [_run(task, method, rates[best], list(stops), (seed, 2, r)) for r in range(size.runs)]
        losses.append([run[0] for run in runs])
        after.append([(float("inf"), 1.0) if run[1] is None else _evaluate(run[1], *task.held_out) for run in runs])
        cost.append(min(run[2] for run in runs))
    by_run, ends_by_run = np.array(losses), np.array(after)  # (optimizer, run, step), (optimizer, run, 2)
    with np.errstate(invalid="ignore"):  # of runs that diverged
        pairs = by_run[:, None, :, -1] - by_run[None, :, :, -1]
        root = np.sqrt(size.runs)
        variables = {
            "loss": (("optimizer", "step"), by_run.mean(1)),
            "loss_stderr": (("optimizer", "step"), by_run.std(1, ddof=1) / root),
            "held_out_loss": ("optimizer", ends_by_run[..., 0].mean(1)),
            "held_out_loss_stderr": ("optimizer", ends_by_run[..., 0].std(1, ddof=1) / root),
            "held_out_error": ("optimizer", ends_by_run[..., 1].mean(1)),
            "held_out_error_stderr": ("optimizer", ends_by_run[..., 1].std(1, ddof=1) / root),
            "loss_advantage": (("optimizer", "other"), pairs.mean(2)),
            "loss_advantage_stderr": (("optimizer", "other"), pairs.std(2, ddof=1) / root),
            "chosen_learning_rate": ("optimizer", np.array(chosen)),
            "chosen_at_edge": ("optimizer", np.array(edge)),
            "relative_cost": ("optimizer", np.array(cost) / cost[0]),
        }
    names = [method.name for method in METHODS]
    attributes = {
        "data": task.title, "sampling": str(task.sampling), "batch_size": task.batch_size, "runs": size.runs,
        "tuning_runs": size.tuning_runs, "seed": seed, "torch_version": torch.__version__,
    }  # fmt: skip
    return results.dataset(variables, {"optimizer": names, "other": names, "step": stops}, attributes)


def _run(
    task: Task, method: Method, rate: float, stops: Sequence[int], seed: tuple[int, ...]
) -> tuple[list[float], nn.Module | None, float]:
    """One training: the loss at each of `stops`, the model (None if it diverged), CPU seconds per step."""
    streams = np.random.SeedSequence(seed).spawn(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(streams[0].generate_state(1)[0]))
        model = task.build()
    optimizer = method.make(model, task, rate)
    batches = task.sampling.batches(task.batch_size, len(task.inputs), np.random.default_rng(streams[1]))
    losses: list[float] = []
    spent, done = 0.0, 0
    for stop in stops:
        start = time.process_time()
        try:
            while done < stop:
                batch = torch.as_tensor(next(batches))
                optimizer.step(_closure(optimizer, model, task.inputs[batch], task.targets[batch]))
                done += 1
        except NonFiniteError:  # a rate that is too large: how it ends is known
            return [*losses, *[float("inf")] * (len(stops) - len(losses))], None, float("inf")
        spent += time.process_time() - start
        losses.append(_evaluate(model, task.inputs[:SEEN], task.targets[:SEEN])[0])
    return losses, model, spent / max(1, done)


def _closure(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    return closure


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    outputs = model(x)
    return float(F.cross_entropy(outputs, y)), float((outputs.argmax(1) != y).double().mean())


def _seen(model: nn.Module, task: Task) -> Observed:
    return Observed(model, task.population)


def _sheet(task: Task, found: xr.Dataset, size: Preset) -> Sheet:
    rows = []
    for k, name in enumerate(found["optimizer"].values):
        here = found.isel(optimizer=k, step=-1)
        rate = float(here["chosen_learning_rate"])
        cells: list[Any] = [
            "nothing tuned" if np.isnan(rate) else number(rate, 2) + " (edge)" * bool(here["chosen_at_edge"])
        ]
        for variable in ("loss", "held_out_loss", "held_out_error"):
            cells.append(with_stderr(float(here[variable]), float(here[f"{variable}_stderr"])))
        rows.append([str(name), *cells, number(float(here["relative_cost"]), 3)])
    columns = ["optimizer", "rate, or 1/L", "training loss", "held-out loss", "held-out error", "CPU time, SGD = 1"]
    return Sheet(f"{task.title}: {size.steps[task.name]:,} steps, {size.runs} runs", columns, rows)


def _sentences(task: Task, found: xr.Dataset) -> list[str]:
    """For each of ours: against which baselines its training loss is clearly lower, higher, or neither."""
    said = []
    for method in METHODS[len(BASELINES) :]:
        words: dict[str, list[str]] = {
            "lower than that of": [],
            "higher than that of": [],
            "not clearly apart from": [],
        }
        for other in BASELINES:
            here = found.sel(optimizer=method.name, other=other)
            gap, error = float(here["loss_advantage"]), float(here["loss_advantage_stderr"])
            kind = (
                "not clearly apart from"
                if not abs(gap) > CLEAR * error
                else f"{'lower' if gap < 0 else 'higher'} than that of"
            )
            words[kind].append(f"{other} ({gap:+.2g} ± {error:.1g})")
        parts = [f"{kind} {', '.join(names)}" for kind, names in words.items() if names]
        said.append(f"{task.name}: the final training loss of {method.name} is {'; '.join(parts)}.")
    return said
