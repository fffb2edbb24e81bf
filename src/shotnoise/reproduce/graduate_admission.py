"""Fig. 2 of "The Impact of the Mini-batch Size on the Variance of Gradients in SGD": linear regression on real data.

Left: variance of the minibatch gradient and of the full gradient against the step. Right: the former against the batch
size at steps 10 to 40, where the paper fits polynomials of degree 6 in 1/b to simulated values. Here both are exact,
with the simulation laid over them. a_t = 1 / (2 (t + 1)), batches without replacement, intercept, standardised columns.
The text does not say the batch sizes of the left panel, the initial weights, nor which six of the seven
features it used: here 8, 32, 128 and 256, standard normal weights of a fixed seed, and all seven.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from shotnoise import datasets, predict, show, simulate
from shotnoise.compare import Agreement, compare
from shotnoise.datasets import Data
from shotnoise.errors import InputError
from shotnoise.problem import Problem
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD
from shotnoise.sampling import WithoutReplacement
from shotnoise.schedules import InverseTime
from shotnoise.show.captions import Caption
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, percent

TARGET, RUNNING_NUMBER = "Chance of Admit", "Serial No."
RATE = InverseTime(0.5, 1.0)
LEFT_SIZES, RIGHT_STEPS, DEGREE = (8, 32, 128, 256), (10, 20, 30, 40), 6
ALARM = 1e-3
VARIABLES = ["gradient_variance", "full_gradient_variance", "loss", "gradient_norm_sq"]
HOW_TO_GET_IT = (
    "download Admission_Predict_Ver1.1.csv, 500 rows, from the Graduate Admission set of M. S. Acharya (Kaggle, "
    "mohansacharya/graduate-admissions) and give its path with --csv"
)


@dataclass(frozen=True)
class Preset:
    """Runs and steps of the left panel, runs of the right one."""

    left_runs: int
    left_steps: int
    every: int
    right_runs: int


PRESETS = {"quick": Preset(400, 200, 10, 1000), "paper": Preset(1000, 2000, 10, 10_000)}


class PrintedLemma(WithoutReplacement):
    """Lemma 2 as printed lacks the factor 1/2 of its double sum: the noise that a step adds is counted twice."""

    def variance_factor(self, batch_size: int, n: int | None) -> float:
        return 2 * super().variance_factor(batch_size, n)


def graduate_admission(
    folder: Path,
    *,
    preset: str = "quick",
    csv: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """Exact curves, the simulated ensemble over them, and the verdict.

    folder: where the stores of the runs live; a second call continues or reuses them. csv: the data's file; None
    takes the embedded diabetes set, so that the recipe always runs. preset: "quick", or "paper" (1,000 runs of 2,000
    steps; 10,000 runs of 40 steps at each of the right panel's batch sizes).
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    size, data = PRESETS[preset], _data(csv)
    x, y = data.inputs.double().numpy(), data.targets.double().numpy()
    start = np.random.default_rng(seed).normal(size=x.shape[1] + 1)
    setting = _Setting(x, y, start, data.name, folder, seed, workers, progress)

    left_steps = list(range(0, size.left_steps + 1, size.every))
    left = setting.predicted(LEFT_SIZES, size.left_steps)
    left_runs = setting.simulated(f"left_{preset}", LEFT_SIZES, size.left_steps, size.left_runs, size.every)
    sizes = paper_sizes(len(x))
    right = setting.predicted(range(1, len(x) + 1), max(RIGHT_STEPS)).sel(step=list(RIGHT_STEPS))
    right_runs = setting.simulated(f"right_{preset}", sizes, max(RIGHT_STEPS), size.right_runs, RIGHT_STEPS[0])
    right_runs = right_runs.sel(step=list(RIGHT_STEPS))
    fitted = fit(right_runs, len(x))

    later = left_steps[1:]  # the start is known, and its loss no estimate
    inner = [b for b in sizes if b < len(x)]  # at b = n there is no noise to compare
    left_agrees = _verdict(left.sel(step=later), left_runs.sel(step=later))
    right_agrees = _verdict(right.sel(batch_size=inner), right_runs.sel(batch_size=inner))
    printed = setting.printed(LEFT_SIZES, size.left_steps)
    printed_agrees = _verdict(printed.sel(step=later), left_runs.sel(step=later), VARIABLES[:2])
    agreement = left_agrees if left_agrees.p_value <= right_agrees.p_value else right_agrees
    off = _fit_errors(right, fitted)
    return Reproduction(
        title=f"Variance of gradients on {data.name}: exact and simulated",
        sentences=_sentences(left_agrees, right_agrees, printed_agrees, off, right, csv is None, size, len(sizes)),
        data={"left_predicted": left, "left_simulated": left_runs, "right_predicted": right,
              "right_simulated": right_runs, "right_fitted": fitted},
        figures=_figures(left, left_runs, right.sel(batch_size=slice(2, None)), right_runs,
        fitted), agreement=agreement,
        holds=left_agrees.agrees and right_agrees.agrees and not printed_agrees.agrees,
        tables=[off],
    )  # fmt: skip


@dataclass(frozen=True)
class _Setting:
    """One regression: its data, where it starts, and how its runs are computed."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    start: NDArray[np.float64]
    name: str
    folder: Path
    seed: int
    workers: int | None
    progress: Callable[[Any], None] | None

    def predicted(self, sizes: Any, steps: int, sampling: WithoutReplacement | None = None) -> xr.Dataset:
        found = predict.regression(
            self.x, self.y, self.start, RATE, list(sizes), steps, intercept=True, sampling=sampling
        )
        return found.assign_attrs(data=self.name, learning_rate=repr(RATE))

    def printed(self, sizes: Any, steps: int) -> xr.Dataset:
        """What the lemma as printed would give: the batch that is only looked at adds its noise once."""
        found = self.predicted(sizes, steps, PrintedLemma())
        full = found["full_gradient_variance"]
        return found.assign(gradient_variance=full + (found["gradient_variance"] - full) / 2)

    def simulated(self, store: str, sizes: Any, steps: int, runs: int, every: int) -> xr.Dataset:
        model = torch.nn.Linear(self.x.shape[1], 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(self.start[None, :-1]))
            model.bias.fill_(float(self.start[-1]))
        problem = Problem(model, "mse", torch.from_numpy(self.x), torch.from_numpy(self.y))
        found = simulate(
            problem, SGD(RATE), list(sizes), steps, runs, sampling=WithoutReplacement(), seed=self.seed + 1,
            every=every, record=VARIABLES, raw=False, store=self.folder / f"{store}_runs.zarr", workers=self.workers,
            progress=self.progress,
        )  # fmt: skip
        return simulate.summary(found.load())


def paper_sizes(n: int) -> list[int]:
    """Powers of two and multiples of 40 from 2 on, and n: 21 with the paper's n = 500 (the text counts 20 and 21).

    >>> len(paper_sizes(500))
    21
    """
    return sorted({b for b in range(2, n + 1) if b & (b - 1) == 0 or b % 40 == 0} | {n})


def fit(simulated: xr.Dataset, n: int) -> xr.Dataset:
    """The paper's polynomials of degree 6 in 1/b, by least squares on the simulated values, at b = 2 .. n."""
    u, everywhere = 1 / simulated["batch_size"].values, np.arange(2, n + 1)
    values = [
        np.polynomial.Polynomial.fit(u, simulated["gradient_variance"].sel(step=t).values, DEGREE)(1 / everywhere)
        for t in simulated["step"].values
    ]
    found = {"gradient_variance": (("step", "batch_size"), np.array(values))}
    coordinates = {"step": simulated["step"].values, "batch_size": everywhere}
    return xr.Dataset(found, coordinates, {"fit": f"fit of degree {DEGREE},\nas in the paper"})


def _data(csv: Path | None) -> Data:
    if csv is None:
        return datasets.load("diabetes")
    if not csv.expanduser().is_file():
        raise InputError(f"no file {csv}: {HOW_TO_GET_IT}, or leave --csv out to use the embedded diabetes data")
    return datasets.load("csv", path=csv, target=TARGET, drop=[RUNNING_NUMBER])


def _verdict(predicted: xr.Dataset, simulated: xr.Dataset, variables: Sequence[str] = VARIABLES) -> Agreement:
    """Variances are judged by their relative standard error: an estimate that is low by chance has a low error too.

    At 1,000 runs the plain z falls below -4 six times as often as stated (in 20,000 resampled ensembles).
    """
    errors = {
        f"{name}_stderr": simulated[f"{name}_stderr"] * predicted[name] / simulated[name]
        for name in variables if name.endswith("variance")
    }  # fmt: skip
    return compare(predicted, simulated.assign(errors), variables=list(variables), alarm=ALARM)


def _fit_errors(right: xr.Dataset, fitted: xr.Dataset) -> Sheet:
    """How far the fit is from the exact polynomial: where it was fitted, and continued to b = 1."""
    rows = []
    for t in RIGHT_STEPS:
        exact = right["gradient_variance"].sel(step=t)
        inner = exact.sel(batch_size=slice(2, int(exact["batch_size"][-1]) - 1))
        off = abs(fitted["gradient_variance"].sel(step=t, batch_size=inner["batch_size"]) / inner - 1)
        worst = int(off["batch_size"][int(off.values.argmax())])
        half = off.sel(batch_size=slice(2, int(exact["batch_size"][-1]) // 2))
        negative = int((fitted["gradient_variance"].sel(step=t) < 0).sum())
        cells = [percent(float(half.max())), f"{percent(float(off.max()))} at b = {worst:,}", f"{negative:,}"]
        rows.append([f"{t:,}", f"{t + 1}", *cells])
    columns = [
        "step",
        "exact degree",
        "largest error up to b = n / 2",
        "largest error below n",
        "batch sizes fitted below 0",
    ]
    return Sheet(f"The fit of degree {DEGREE} against the exact polynomial", columns, rows)


def _sentences(
    left: Agreement, right: Agreement, printed: Agreement, off: Sheet, exact: xr.Dataset, stand_in: bool, size: Preset,
    sizes: int,
) -> list[str]:  # fmt: skip
    found = [
        f"Theory and simulation {'agree' if left.agrees and right.agrees else 'disagree'} at a false-alarm rate of "
        f"{ALARM:g} each: along the steps {left.detail}; against the batch size {right.detail} (b = n, "
        "where there is no noise, left out).",
        f"Lemma 2 as printed is {'rejected' if not printed.agrees else 'NOT rejected'}: {printed.detail}.",
    ]
    variance = exact["gradient_variance"]
    falling = bool(
        (np.diff(variance.transpose("batch_size", "step").values, axis=0) <= 1e-12 * variance.max().item()).all()
    )
    words = "falls" if falling else "does not fall"
    found.append(f"The exact variance {words} from every batch size to the next at all four steps, as Theorem 2 says.")
    worst = max(off.rows, key=lambda row: float(row[2].split()[0].replace(",", "")) if row[2][0].isdigit() else 1e3)
    found.append(
        f"The paper's fit of degree {DEGREE} stands for polynomials of degree 11 to 41: up to b = n / 2 it is off by "
        "up to "
        f"{worst[2]} (step {worst[0]}), and near b = n, where the variance vanishes, it turns negative at "
        f"{max(int(row[4].replace(',', '')) for row in off.rows)} batch sizes."
    )
    found.append(
        f"{size.left_runs:,} runs of {size.left_steps:,} steps at {len(LEFT_SIZES)} batch sizes, {size.right_runs:,} "
        "runs of "
        f"{max(RIGHT_STEPS)} steps at {sizes}; the exact curves need none. Largest variance on the right: "
        f"{number(variance.max().item(), 3)}."
    )
    if stand_in:
        found.append(f"This is the embedded diabetes set, a stand-in. For the paper's data {HOW_TO_GET_IT}.")
    return found


def _figures(
    left: xr.Dataset, left_runs: xr.Dataset, right: xr.Dataset, right_runs: xr.Dataset, fitted: xr.Dataset
) -> dict[str, Any]:
    return {
        "left": (
            show.prediction(left, left_runs),
            Caption(
                "Fig. 2, left: along the steps",
                "Variance, given the first weights, of the minibatch gradient and of the full gradient. Lines: "
                "exact. Marks: "
                "runs, with 95 % intervals.",
                "Both variances against the step for four batch sizes; the marks of the runs lie on the exact lines.",
            ),
        ),
        "right": (
            show.against_batch_size(right, right_runs, fitted),
            Caption(
                "Fig. 2, right: against the batch size",
                "Variance of the minibatch gradient at four steps. Lines: exact. Marks: runs, with 95 % intervals. "
                "Dashed: the "
                "paper's polynomial fits to the runs.",
                "Variance against the batch size at steps 10 to 40: exact lines, marks on them, and fitted "
                "polynomials.",
            ),
        ),
    }
