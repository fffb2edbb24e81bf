"""Fig. 3 of "The Impact of the Mini-batch Size ..." and Fig. 1 of its successor: a two-layer linear student online.

64-256-128, x ~ N(0, I), a_t = 1 / (10 (t + 1)), squared loss against a linear teacher, fresh batches. For both layers:
variance over runs of the minibatch gradient and of the population gradient (closed form), with the law beta_1 / b from
noise propagation over it; at step 1 the exact polynomial in 1/b; and beside it a network on other data where a batch
of 2 is noisier than a batch of 1.

The text does not say how the weights are drawn. Here all are normal with standard deviation 0.3 / sqrt(fan-in): with
PyTorch's own, 0.58 / sqrt(fan-in), every run at batch size 1 diverges within 30 steps, since ||x||^2 is about 64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.special import ndtri
from torch import nn

from shotnoise import predict, show, simulate
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError
from shotnoise.population import Population, TeacherStudent
from shotnoise.predict import networks
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD
from shotnoise.schedules import InverseTime
from shotnoise.show.captions import Caption
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, percent

WIDTHS = (64, 256, 128)
SCALE = 0.3
RATE = InverseTime(0.1, 1.0)
LAYERS = ("first", "second")
VARIANCES = ("gradient_variance", "full_gradient_variance")
ALARM = 1e-3
# The counterexample: w = (1, 2), W* = 1, a = 1/2, x in {0, 2} with probability 1/2 each, first layer, step 1.
STUDENT, TARGET, STEP, POINTS = ([[1]], [[2]]), [[1]], "1/2", [["0"], ["2"]]
SMALL_SIZES = [1, 2, 3, 4, 8, 16]


@dataclass(frozen=True)
class Preset:
    """Runs and steps of the study, its batch sizes, and the runs that are laid over exact polynomials."""

    runs: int
    steps: int
    every: int
    sizes: tuple[int, ...]
    probes: int
    exact_runs: int
    small_runs: int


PRESETS = {
    "quick": Preset(64, 40, 5, (1, 4, 16, 64), 64, 200, 20_000),
    "paper": Preset(1000, 1000, 10, (1, 2, 4, 8, 16, 32, 64, 128, 256), 256, 1000, 100_000),
}


def teacher_student(
    folder: Path,
    *,
    preset: str = "quick",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """The ensemble, the law and the exact polynomial over it, and whether larger batches were less noisy throughout.

    folder: where the stores of the runs live; a second call continues or reuses them. preset: "quick", or "paper"
    (1,000 runs of 1,000 steps at nine batch sizes from 1 up).
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    size = PRESETS[preset]
    setting = _Setting(folder, preset, seed, workers, progress)
    students = _linear_networks(seed)
    population = TeacherStudent(*students)

    names = [f"layer_{name}" for name in VARIANCES]
    runs = setting.simulated("study", population, size.sizes, size.steps, size.runs, size.every, RATE, [*names, "loss"])
    law = predict.propagation(
        population, None, RATE, size.steps, list(size.sizes), size.probes, seed=seed + 2
    ).sel(step=runs["step"].values)  # fmt: skip
    first_runs = setting.simulated("first_step", population, size.sizes, 1, size.exact_runs, 1, RATE, names)
    exact = [_exact(students, k, size.sizes) for k in range(2)]
    small = _counterexample()
    small_runs = setting.simulated("counterexample", _two_points(seed), SMALL_SIZES, 1, size.small_runs, 1,
                                   float(Fraction(STEP)), names)  # fmt: skip

    at_first = [first_runs.isel(layer=k, step=-1) for k in range(2)]
    exact_agrees = [_verdict(_as_layer(e), _as_layer(r)) for e, r in zip(exact, at_first, strict=True)]
    small_at = _as_layer(small_runs.isel(layer=0, step=-1))
    small_agrees = _verdict(small, small_at)
    judged = [b for b in size.sizes if _law_is_judged(law, runs, b)]
    law_agrees = _law_verdict(law, runs, judged) if judged else None
    falls = _decreasing(runs)
    rises = float(small["gradient_variance"].sel(batch_size=2) / small["gradient_variance"].sel(batch_size=1))
    agreements = [*exact_agrees, small_agrees, *([law_agrees] if law_agrees else [])]
    worst = min(agreements, key=lambda agreement: agreement.p_value)
    data = {"study": runs, "law": law, "first_step": first_runs, "counterexample": small,
            "counterexample_runs": small_runs}  # fmt: skip
    return Reproduction(
        title="Variance of gradients of a linear student network: runs, the 1/b law, and exactly",
        sentences=_sentences(size, falls, exact_agrees, law_agrees, judged, law, runs, small_agrees, rises),
        data=data | {f"exact_{name}": e for name, e in zip(LAYERS, exact, strict=True)},
        figures=_figures(law, runs, exact, at_first, small, small_at),
        agreement=worst,
        holds=all(agreement.agrees for agreement in agreements) and rises > 1,
        tables=[falls.sheet, _ratios(law, runs)],
    )


@dataclass(frozen=True)
class _Setting:
    folder: Path
    preset: str
    seed: int
    workers: int | None
    progress: Callable[[Any], None] | None

    def simulated(
        self, store: str, population: Population, sizes: Any, steps: int, runs: int, every: int, rate: Any,
        record: list[str],
    ) -> xr.Dataset:  # fmt: skip
        found = simulate(
            population, SGD(rate), list(sizes), steps, runs, seed=self.seed + 1, every=every, record=record, raw=False,
            store=self.folder / f"{store}_{self.preset}_runs.zarr", workers=self.workers, progress=self.progress,
        )  # fmt: skip
        return simulate.summary(found.load())


def _linear_networks(seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Student and teacher, normal weights."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        layers = [nn.Linear(m, n, bias=False) for m, n in pairwise(WIDTHS)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=SCALE / layer.in_features**0.5, generator=generator)
        made.append(nn.Sequential(*layers))
    return made[0], made[1]


def _exact(pair: tuple[nn.Sequential, nn.Sequential], layer: int, sizes: tuple[int, ...]) -> xr.Dataset:
    """One layer's variance after the first update, as a polynomial in 1/b."""
    student, teacher = ([w.detach().double().numpy() for w in net.parameters()] for net in pair)
    found = networks.gradient_variance_polynomial(student, teacher, [RATE(0)], 1, layer)
    return networks.tabulate(found, sizes)


def _counterexample() -> xr.Dataset:
    found = networks.gradient_variance_polynomial(STUDENT, TARGET, STEP, 1, 0, inputs=networks.Points(POINTS))
    return networks.tabulate(found, SMALL_SIZES)


def _two_points(seed: int) -> Population:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        for weight, value in zip(model.parameters(), STUDENT, strict=True):
            weight.copy_(torch.tensor(value))

    def draw(rng: np.random.Generator, count: int) -> tuple[Any, Any]:
        x = 2.0 * rng.integers(2, size=(count, 1))
        return x, TARGET[0][0] * x

    return Population(model, "mse", draw, evaluation_samples=64, seed=seed)


def _as_layer(result: xr.Dataset) -> xr.Dataset:
    """With the names of the whole gradient, for what belongs to one layer."""
    return result.rename(
        {str(n): str(n).removeprefix("layer_") for n in result.data_vars if str(n).startswith("layer_")}
    )


def _relative(predicted: xr.Dataset, simulated: xr.Dataset, names: tuple[str, ...]) -> xr.Dataset:
    """Simulated with the predicted value's share of the error: an estimate low by chance has a low error too."""
    errors = {f"{n}_stderr": simulated[f"{n}_stderr"] * predicted[n] / simulated[n] for n in names}
    return simulated.assign(errors)


def _verdict(predicted: xr.Dataset, simulated: xr.Dataset) -> Agreement:
    name = ("gradient_variance",)
    kept = [b for b in predicted["batch_size"].values if b >= predicted.attrs["simulation_agrees_from"]]
    own, runs = predicted.sel(batch_size=kept), simulated.sel(batch_size=kept)
    return compare(own[list(name)], _relative(own, runs, name)[[*name, f"{name[0]}_stderr"]], alarm=ALARM)


def _law_is_judged(law: xr.Dataset, runs: xr.Dataset, b: int) -> bool:
    """Where what the law leaves out is smaller than the runs' relative standard errors."""
    left_out = abs(float(law["next_order"].sel(batch_size=b))) + 2 * float(law["next_order_stderr"].sel(batch_size=b))
    here = runs.sel(batch_size=b)
    return left_out <= float((here["layer_gradient_variance_stderr"] / here["layer_gradient_variance"]).median())


def _law_verdict(law: xr.Dataset, runs: xr.Dataset, sizes: list[int]) -> Agreement:
    names = tuple(f"layer_{name}" for name in VARIANCES)
    own, found = law.sel(batch_size=sizes), runs.sel(batch_size=sizes)
    kept = own["step"].values[1:]  # at the start the full gradient is known
    own, found = own.sel(step=kept), found.sel(step=kept)
    return compare(own, _relative(own, found, names), variables=list(names), alarm=ALARM)


@dataclass(frozen=True)
class _Falls:
    """Every batch size against the next, at every step: how often the larger one had the larger variance."""

    sheet: Sheet
    pairs: int
    risen: int
    beyond_chance: int


def _decreasing(runs: xr.Dataset) -> _Falls:
    rows, pairs, risen, beyond = [], 0, 0, 0
    for k, layer in enumerate(LAYERS):
        for name in VARIANCES:
            here = runs.isel(layer=k, step=slice(1, None))
            values = here[f"layer_{name}"].transpose("batch_size", "step").values
            errors = here[f"layer_{name}_stderr"].transpose("batch_size", "step").values
            z = (values[:-1] - values[1:]) / np.hypot(errors[:-1], errors[1:])
            limit = -_normal_limit(z.size)
            place = np.unravel_index(int(np.nanargmin(z)), z.shape)
            sizes = runs["batch_size"].values
            where = f"{int(sizes[place[0]]):,} to {int(sizes[place[0] + 1]):,}, step {int(here['step'][place[1]]):,}"
            rows.append([layer, name.replace("_", " "), f"{z.size:,}", f"{int((z < 0).sum()):,}",
                         f"{int((z < limit).sum()):,}", f"{float(z[place]):+.1f} ({where})"])  # fmt: skip
            pairs, risen, beyond = pairs + z.size, risen + int((z < 0).sum()), beyond + int((z < limit).sum())
    columns = ["layer", "quantity", "pairs of batch size and step", "larger batch noisier", "beyond chance",
               "least fall, in standard errors"]  # fmt: skip
    return _Falls(Sheet("Does the next larger batch have the smaller variance?", columns, rows), pairs, risen, beyond)


def _normal_limit(count: int) -> float:
    return float(-ndtri(ALARM / count))


def _ratios(law: xr.Dataset, runs: xr.Dataset) -> Sheet:
    """Simulated over beta_1 / b at the last step, and how much of the estimate few runs carry."""
    rows = []
    for b in runs["batch_size"].values:
        cells = [f"{int(b):,}"]
        for k in range(2):
            here, own = (d.isel(layer=k, step=-1).sel(batch_size=b) for d in (runs, law))
            ratio = float(here["layer_gradient_variance"] / own["layer_gradient_variance"])
            error = float(here["layer_gradient_variance_stderr"] / own["layer_gradient_variance"])
            cells.append(f"{ratio:.3f} ± {error:.3f}")
        share = float(runs["layer_gradient_variance_top_share"].isel(step=-1).sel(batch_size=b).max())
        rows.append([*cells, percent(float(law["next_order"].sel(batch_size=b))), percent(share)])
    columns = ["batch size", "first layer", "second layer", "next order", "carried by 1 % of runs"]
    return Sheet(f"Runs over the law beta_1 / b at step {int(runs['step'][-1]):,}", columns, rows)


def _sentences(
    size: Preset, falls: _Falls, exact: list[Agreement], law_agrees: Agreement | None, judged: list[int],
    law: xr.Dataset, runs: xr.Dataset, small: Agreement, rises: float,
) -> list[str]:  # fmt: skip
    held = "held" if not falls.beyond_chance else "did NOT hold"
    found = [
        f"The decreasing property {held}: of {falls.pairs:,} pairs of neighbouring batch sizes at one step "
        "(both layers, "
        f"both gradients) {falls.risen:,} had the larger variance at the larger batch, {falls.beyond_chance} "
        "of them by "
        f"more than chance allows at a false-alarm rate of {ALARM:g} per quantity.",
    ]
    for layer, agreement in zip(LAYERS, exact, strict=True):
        words = "agrees" if agreement.agrees else "DISAGREES"
        found.append(f"At step 1 the exact polynomial of the {layer} layer {words} with runs: {agreement.detail}.")
    if law_agrees is None:
        found.append("At no batch size is what beta_1 / b leaves out smaller than the runs' errors: it is not judged.")
    else:
        words, at = "agrees" if law_agrees.agrees else "DISAGREES", ", ".join(f"{b:,}" for b in judged)
        found.append(
            f"beta_1 / b, computed before any training, {words} with the runs over all steps at b = {at}, where "
            f"what it leaves out is below their errors: {law_agrees.detail}."
        )
    valid = int(law.attrs["valid_from"])
    found.append(
        f"By its own indicator the law is within 10 % from b = {valid:,} on."
        if valid
        else "By its own indicator the law is within 10 % at none of these batch sizes."
    )
    share = float(runs["layer_gradient_variance_top_share"].max())
    found.append(
        f"At most {percent(share)} of a variance is carried by 1 % of the {size.runs:,} runs: with Gaussian inputs "
        "rare events that no run met may still carry the exact moments at small batches."
    )
    words, times = "agree" if small.agrees else "DISAGREE", number(rises, 3)
    found.append(
        f"The property is no law of nature: a two-layer scalar network on x in {{0, 2}} has {times} times the variance "
        "at b = 2 that it has at b = 1 (17 against 12, step 1, first layer); "
        f"{size.small_runs:,} runs {words}: {small.detail}."
    )
    found.append(
        f"{size.runs:,} runs of {size.steps:,} steps at {len(size.sizes)} batch sizes; first weights normal with "
        f"standard deviation {SCALE:g} / sqrt(fan-in), which the text does not say."
    )
    return found


def _figures(
    law: xr.Dataset, runs: xr.Dataset, exact: list[xr.Dataset], at_first: list[xr.Dataset], small: xr.Dataset,
    small_runs: xr.Dataset,
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {}
    for k, layer in enumerate(LAYERS):
        own, seen = (_as_layer(d.isel(layer=k)[_layered(d)]) for d in (law, runs))
        found[f"{layer}_layer"] = (
            show.prediction(own, seen, lines=r"$\beta_1/b$"),
            Caption(
                f"The {layer} layer along the steps",
                f"Variance, given the first weights, of the {layer} layer's minibatch gradient and population "
                "gradient. "
                "Lines: beta_1 / b from noise propagation, before any run. Marks: runs, with 95 % intervals.",
                f"Both variances of the {layer} layer against the step, by batch size; the marks of the runs lie on "
                "the "
                "lines at large batches and above them at small ones.",
            ),
        )
    for layer, predicted, seen in zip(LAYERS, exact, at_first, strict=True):
        found[f"exact_{layer}"] = (
            show.polynomial(predicted, _as_layer(seen)),
            Caption(
                f"The {layer} layer at step 1, exactly",
                "Above: the exact polynomial in 1/b over the runs. Below: its coefficients; hollow where negative.",
                "The exact curve against the batch size with the runs on it, and six coefficients.",
            ),
        )
    predicted, seen = predict.batch_exponent(exact[0]), predict.batch_exponent(_as_layer(at_first[0]))
    found["exponents"] = (
        show.exponents(predicted, seen),
        Caption(
            "The exponent of the fall with the batch size",
            "First layer at step 1, between neighbouring batch sizes: exact as a line, runs as marks with 95 % "
            "intervals; the thin line is the law 1/b.",
            "Local exponents against the batch size; they tend to one.",
        ),
    )
    found["counterexample"] = (
        show.polynomial(small, small_runs),
        Caption(
            "Where a larger batch is noisier",
            "First layer of a scalar network on x in {0, 2}, step 1: exact, and runs.",
            "The variance rises from batch size 1 to 2 and falls from there on.",
        ),
    )
    return found


def _layered(result: xr.Dataset) -> list[str]:
    return [str(name) for name in result.data_vars if str(name).startswith("layer_")]
