"""Figures of Ziyin, Liu, Mori and Ueda, "Strength of Minibatch Noise in SGD" (2022).

    fig3   left: fluctuation against batch size (a = 1.5, rate 1, label variance 0.25); right: test loss against weight
           decay (a = 1, rate 0.5, S = 1, no label noise)
    fig4   (a) fluctuation against learning rate in one dimension; (b, c) two dimensions, Hessian 1 and 0.5, rate 1.5,
    at
           a large and a small batch
    fig5   test loss against weight decay where the best is negative (a = 4, rate 1, S = 64)
    fig1   networks of growing width, and logistic regression (see networks_and_width)
    fig2, fig7   tail index against batch size at a lambda = 1, and at 0.2, 1 and 1.8
    fig6   high-dimensional regression: tr(A Sigma) against n / p (rate 0.01, S = 32)

What the text does not say: in fig4 (a) label variance 1 and S = 8, in (b, c) S = 100 and S = 8 with label variance 1,
in fig5 a target of 1. Runs start at the minimum and are looked at when second moments have settled. Where the tail of
the stationary distribution is so heavy that eighth moments do not exist, standard errors of second moments mean
little: such runs are drawn and not judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import gammaln

from shotnoise import show, simulate
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError
from shotnoise.population import TeacherStudent
from shotnoise.predict import stationary
from shotnoise.problem import Problem
from shotnoise.reproduce import networks_and_width
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD
from shotnoise.sampling import WithReplacement
from shotnoise.show.captions import Caption
from shotnoise.show.sweeps import Panel
from shotnoise.simulate.state import State

ALARM = 1e-3
MOMENT = 8  # must exist for a judgement
LABEL_VARIANCE = 0.25  # of fig3
HEAVY = "The tail is so heavy that squared weights have no finite variance, and their mean no standard error."
HILL_GOOD = 3.0  # tail index up to which Hill's estimator is within a few per cent on such samples
RIVALS = ["exact", "discrete-hessian", "continuous-hessian"]
Array = NDArray[Any]


@dataclass(frozen=True)
class Preset:
    """Runs; steps that are looked at after `settle` times the slowest rate; features of fig6."""

    runs: int
    looks: int
    features: int


PRESETS = {"quick": Preset(1000, 10, 40), "paper": Preset(10_000, 20, 1000)}


@dataclass(frozen=True)
class Workshop:
    """What every figure needs: where runs are kept, how many, and how they are computed."""

    folder: Path
    preset: Preset
    name: str
    seed: int
    workers: int | None
    progress: Callable[[Any], None] | None
    data_dir: Path | None

    def runs(
        self, store: str, covariance: Array, rates: Sequence[float], sizes: Sequence[int], *, label_variance: float,
        l2: float = 0.0, settle: int, looks: int | None = None,
    ) -> xr.Dataset:  # fmt: skip
        """Deviations from the minimum, squared and multiplied, on average over the steps looked at; and the last
        weights.

        `fluctuation` (learning_rate, batch_size, run, entry) with entry the pairs of parameters; target 1 in every
        direction.
        """
        p = len(covariance)
        student = torch.nn.Linear(p, 1, bias=False, dtype=torch.float64)
        root = np.linalg.inv(covariance + l2 * np.eye(p)) @ covariance @ np.ones(p)
        with torch.no_grad():
            student.weight.copy_(torch.from_numpy(root[None]))
        population = TeacherStudent(
            student, torch.ones(1, p, dtype=torch.float64), dimension=p, covariance=torch.from_numpy(covariance),
            label_noise=float(np.sqrt(label_variance)), l2=l2,
        )  # fmt: skip
        minimum = torch.from_numpy(root)

        def fluctuation(state: State) -> torch.Tensor:
            off = state.weights - minimum
            return (off[:, :, None] * off[:, None, :]).flatten(1)

        def deviation(state: State) -> torch.Tensor:
            return state.weights - minimum

        every = max(settle // 10, 1)
        steps = settle + every * ((self.preset.looks if looks is None else looks) - 1)
        found = simulate(
            population, [SGD(rate) for rate in rates], list(sizes), steps, self.preset.runs, seed=self.seed,
            every=every, record={"fluctuation": fluctuation, "deviation": deviation}, raw=True,
            store=self.folder / f"{store}_{self.name}.zarr", workers=self.workers, progress=self.progress,
        ).load()  # fmt: skip
        late = found.sel(step=slice(settle, None))
        if "learning_rate" not in late.dims:
            late = late.expand_dims(learning_rate=list(rates))
        return late


def strength_of_noise(
    folder: Path,
    figure: str,
    *,
    preset: str = "quick",
    data_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """One figure, by its name in the paper (`FIGURES`): theories, runs over them, and the verdict on the exact one."""
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: one of {', '.join(FIGURES)}")
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r}: one of {', '.join(PRESETS)}")
    return FIGURES[figure](Workshop(folder, PRESETS[preset], preset, seed, workers, progress, data_dir))


def figure_3(shop: Workshop) -> Reproduction:
    sizes = [7, 8, 10, 12, 16, 24, 32, 64, 128]
    left = stationary.rivals([1.5], 1.0, sizes, label_variance=LABEL_VARIANCE)
    curves = left["weight_covariance"].isel(parameter=0, parameter_=0).sel(theory=RIVALS)
    # The approximations put the Hessian for the noise; where they are to be good at large batches, it is sigma^2 H.
    curves = curves.where(curves["theory"] == "exact", LABEL_VARIANCE * curves)
    runs = shop.runs("fig3_left", np.array([[1.5]]), [1.0], sizes, label_variance=LABEL_VARIANCE, settle=200)
    marks = _marks(runs.isel(learning_rate=0), "batch_size", [tail_exists(1.5, 1.0, b) for b in sizes])
    right, right_marks, window = _decay_sweep(shop, "fig3_right", 1.0, 0.5, 1)
    panels = [
        Panel(curves, marks, "fluctuation\n$\\mathrm{var}(w)$", "batch size $S$ (samples)", "label noise", "xy"),
        Panel(right, right_marks, "test loss", "weight decay $\\gamma$", "L2 regularisation", "", window,
              highest=1.1 * float(right_marks["value"].max())),
    ]  # fmt: skip
    verdicts = [_verdict(curves, marks), _verdict(right, right_marks)]
    best = stationary.optimal_weight_decay([1.0], [1.0], 0.5, 1)
    sentences = [
        *_said(verdicts, ["left", "right"]),
        *_rivals_said(curves, marks),
        f"The best weight decay on the right is {abs(round(float(best['optimal_l2']), 6)):g}; the stable interval goes "
        f"from {window[0]:.3f} to {window[1]:.3f}.",
    ]
    return _made("fig3", sentences, {"left": curves, "right": right}, {"left": marks, "right": right_marks},
                 panels, verdicts)  # fmt: skip


def figure_4(shop: Workshop) -> Reproduction:
    size, rates = 8, [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.25, 1.4, 1.5]
    fine = np.linspace(0.02, 1.98, 99)
    theory = stationary.rivals([1.0], fine, size, label_variance=1.0)
    curves = theory["weight_covariance"].isel(parameter=0, parameter_=0).sel(theory=RIVALS)
    critical = float(stationary.label_noise([1.0], 1.0, 0.1, size)["critical_learning_rate"])
    runs = shop.runs("fig4_a", np.array([[1.0]]), rates, [size], label_variance=1.0, settle=300)
    marks = _marks(runs.isel(batch_size=0), "learning_rate", [tail_exists(1.0, rate, size) for rate in rates])
    at_rates = stationary.rivals([1.0], rates, size, label_variance=1.0)["weight_covariance"]
    at_rates = at_rates.isel(parameter=0, parameter_=0).sel(theory=RIVALS)
    covariance, sizes = np.diag([1.0, 0.5]), [100, 8]
    clouds = shop.runs("fig4_bc", covariance, [1.5], sizes, label_variance=1.0, settle=300).isel(learning_rate=0)
    matrices = stationary.rivals(covariance, 1.5, sizes, label_variance=1.0)["weight_covariance"].sel(theory=RIVALS)
    matrices = matrices.rename(batch_size="panel").transpose("panel", "theory", "parameter", "parameter_")
    last = clouds["deviation"].isel(step=-1).rename(batch_size="panel", deviation_0="parameter")
    flat = matrices.sel(theory="exact").stack(entry=("parameter", "parameter_")).drop_vars(
        ["entry", "parameter", "parameter_"], errors="ignore"
    )  # fmt: skip
    seen = clouds["fluctuation"].mean("step").rename(batch_size="panel", fluctuation_0="entry")
    pair = xr.Dataset({
        "value": seen.mean("run"), "value_stderr": seen.std("run", ddof=1) / np.sqrt(seen.sizes["run"])
    })  # fmt: skip
    large = compare(xr.Dataset({"value": flat.isel(panel=[0])}), pair.isel(panel=[0]), variables=["value"], alarm=ALARM)
    verdicts = [_verdict(at_rates, marks), large]
    panels = [Panel(curves, marks, "fluctuation\n$\\mathrm{var}(w)$", "learning rate $\\lambda$", f"$S$ = {size}", "y",
                    (critical,), highest=100.0)]  # fmt: skip
    figures: dict[str, tuple[Any, Caption]] = {
        "b_c": (
            show.ellipses(matrices, last.transpose("panel", "run", "parameter"), [f"$S$ = {b}" for b in sizes]),
            Caption(
                "Fig. 4 (b, c): two dimensions",
                "Final weights of runs, and two standard deviations by each theory (continuous time and Hessian "
                "approximations are "
                "smaller, and do not lengthen along the sharp direction).",
                "Two clouds of final weights with the ellipses of three theories; the exact one encloses them.",
            ),
        )
    }
    sentences = [
        *_said(verdicts, ["(a)", "(b), S = 100"]),
        *_rivals_said(at_rates, marks),
        f"Second moments diverge at a rate of {critical:.4f} (the mean at 2).",
    ]
    return _made("fig4", sentences, {"a": curves}, {"a": marks}, panels, verdicts, figures)


def figure_5(shop: Workshop) -> Reproduction:
    """The paper's S = 64, where the tail is too heavy for a judgement, and S = 256, where it is not."""
    sizes = (64, 256)
    made = [_decay_sweep(shop, f"fig5_{size}", 4.0, 1.0, size) for size in sizes]
    best = [stationary.optimal_weight_decay([4.0], [1.0], 1.0, size) for size in sizes]
    verdicts = [_verdict(curves, marks) for curves, marks, _ in made]
    panels = [
        Panel(curves, marks, "test loss", "weight decay $\\gamma$", f"$S$ = {size}", "y", window,
              highest=1.1 * float(marks["value"].max()))
        for size, (curves, marks, window) in zip(sizes, made, strict=True)
    ]  # fmt: skip
    sentences = [
        *_said(verdicts, [f"S = {size:,}" for size in sizes]),
        *(
            f"At S = {size:,} the best weight decay is negative, {float(own['optimal_l2']):.3f}, with a test loss of "
            f"{float(own['test_loss']):.4f}; second moments exist between {window[0]:.3f} and {window[1]:.3f}, so that "
            "without decay training diverges."
            for size, own, (_, _, window) in zip(sizes, best, made, strict=True)
        ),
    ]
    theories = {f"S{size}": curves for size, (curves, _, _) in zip(sizes, made, strict=True)}
    runs = {f"S{size}": marks for size, (_, marks, _) in zip(sizes, made, strict=True)}
    return _made("fig5", sentences, theories, runs, panels, verdicts)


def figure_6(shop: Workshop) -> Reproduction:
    p, rate, size, label = shop.preset.features, 0.01, 32, 1.0
    ratios = [0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0, 5.0]
    limit, hessian, exact = [], [], []
    marks: dict[str, list[float]] = {"value": [], "value_stderr": []}
    for k, ratio in enumerate(ratios):
        n = round(ratio * p)
        rng = np.random.default_rng([shop.seed, k])
        x, noise = rng.normal(size=(n, p)), rng.normal(size=n)
        limit.append(float(stationary.high_dimensional_limit(n, p, label, rate, size)["feature_fluctuation"]))
        A = x.T @ x / n
        values = np.linalg.eigvalsh(A)
        hessian.append(float((rate / size * values / (2 - rate * values)).sum()))
        settled = stationary.finite_data(x, noise, rate, size, sampling=WithReplacement())
        exact.append(float((A * settled["weight_covariance"].values).sum()))
        mean, error = _data_runs(shop, f"fig6_{k}", x, noise, A, settled["mean_weights"].values, rate, size)
        marks["value"].append(mean)
        marks["value_stderr"].append(error)
    names = ["exact on these data", "high-dimensional formula", "discrete-hessian"]
    curves = xr.DataArray([exact, limit, hessian], {"theory": names, "ratio": ratios}, ("theory", "ratio"))
    runs = xr.Dataset({name: ("ratio", values) for name, values in marks.items()}, {"ratio": ratios})
    runs["judged"] = ("ratio", np.array(ratios) > 1)  # below, there is nothing to estimate
    verdict = _verdict(curves, runs, names[0])
    panel = Panel(curves, runs, "$\\mathrm{tr}\\,A\\Sigma$", "samples per feature, $n / p$", f"$p$ = {p}", "x")
    off = np.abs(np.array(limit)[3:] / np.array(exact)[3:] - 1)
    sentences = [
        *_said([verdict], [""]),
        f"With fewer samples than features there is no fluctuation: at most {max(marks['value'][:3]):.1g} in the "
        "runs. The formula for many "
        f"features is off by up to {100 * off.max():.0f} % on these data (n / p = "
        f"{ratios[3 + int(off.argmax())]:g}); the Hessian "
        "approximation predicts fluctuation where there is none.",
    ]
    return _made("fig6", sentences, {"curves": curves}, {"runs": runs}, [panel], [verdict])


def figure_2(shop: Workshop) -> Reproduction:
    return _tails(shop, "fig2", {1.0: (2, 3, 4, 6, 8)})


def figure_7(shop: Workshop) -> Reproduction:
    return _tails(shop, "fig7", {0.2: (1, 2), 1.0: (2, 3, 4, 6, 8), 1.8: (4, 8, 16, 32, 64)})


def _tails(shop: Workshop, name: str, sizes_by_rate: Mapping[float, tuple[int, ...]]) -> Reproduction:
    """Tail index against batch size at a lambda = rate: three formulas, and Hill's estimator on the runs."""
    panels, theories, runs, verdicts, words = [], {}, {}, [], []
    for rate, sizes in sizes_by_rate.items():
        found = stationary.tail_index(1.0, rate, list(sizes))
        own = [found[v] for v in ("tail_index", "tail_index_paper", "tail_index_continuous")]
        names = ["exact", "paper's formula", "continuous time"]
        curves = xr.concat([v.drop_vars(["learning_rate"], errors="ignore") for v in own],
                           xr.Variable("theory", names)).rename("value")  # fmt: skip
        made = shop.runs(f"tails_{rate}", np.array([[1.0]]), [rate], sizes, label_variance=1.0, settle=200, looks=60)
        estimates = []
        for b in sizes:
            weights = made["deviation"].sel(batch_size=b).isel(learning_rate=0, deviation_0=0)
            samples = weights.transpose("run", "step").values
            estimates.append(stationary.hill(samples, max(samples.size // 500, 100), seed=shop.seed))
        marks = xr.Dataset(
            {
                "value": ("batch_size", [float(own["tail_index"]) for own in estimates]),
                "value_stderr": ("batch_size", [float(own["tail_index_stderr"]) for own in estimates]),
                "judged": ("batch_size", curves.sel(theory="exact").values < HILL_GOOD),
            },
            {"batch_size": list(sizes)},
        )
        key = f"rate{rate}"
        theories[key], runs[key] = curves, marks
        verdicts.append(_verdict(curves, marks))
        panels.append(Panel(curves, marks, "tail index $\\beta$", "batch size $S$ (samples)",
                            f"$a\\lambda$ = {rate}", "xy"))  # fmt: skip
        off = curves.sel(theory=names[1]).values / curves.sel(theory="exact").values - 1
        words.append(f"{100 * off.min():+.0f} to {100 * off.max():+.0f} % at a rate of {rate}")
    sentences = [
        *_said(
            verdicts, [f"rate {rate}" for rate in sizes_by_rate], "All tail indices are too large for the estimator."
        ),
        f"The paper's formula 2 S / (a lambda) - S is off by {', '.join(words)}; it is exact at an index of 2 alone. "
        "The "
        "continuous-time one is nowhere right.",
        f"Hill's estimator takes the largest 0.2 % of the weights; it is judged below an index of {HILL_GOOD:g}, "
        "above which "
        "it needs far more samples than these and comes out too low.",
    ]
    return _made(name, sentences, theories, runs, panels, verdicts)


def figure_1(shop: Workshop) -> Reproduction:
    return networks_and_width.figure_1(
        shop.folder, preset=shop.name, data_dir=shop.data_dir, seed=shop.seed, workers=shop.workers,
        progress=shop.progress,
    )  # fmt: skip


FIGURES: dict[str, Callable[[Workshop], Reproduction]] = {
    "fig1": figure_1, "fig2": figure_2, "fig3": figure_3, "fig4": figure_4, "fig5": figure_5, "fig6": figure_6,
    "fig7": figure_7,
}  # fmt: skip


def tail_exists(a: float, rate: float, size: int, l2: float = 0.0, order: int = MOMENT) -> bool:
    """Whether E|w|^order is finite in one dimension: its `growth` is below one; order even.

    >>> tail_exists(1.0, 0.1, 8), tail_exists(1.0, 1.5, 8)
    (True, False)
    """
    return growth(a, rate, size, l2, order) < 1


def growth(a: float, rate: float, size: int, l2: float, order: int) -> float:
    """E (1 - rate l2 - rate s)^order, s the mean of S squares of variance a: a step multiplies E w^order by it.

    >>> round(growth(1.0, 0.5, 2, 0.0, 2), 12)  # 1 - 2 / 2 + (1 + 2 / 2) / 4
    0.5
    """
    powers = np.arange(order + 1)
    moments = np.exp(powers * np.log(2 * a / size) + gammaln(size / 2 + powers) - gammaln(size / 2))  # E s^k
    binomial = np.array([float(np.prod([(order - j) / (j + 1) for j in range(k)])) for k in powers])
    return float((binomial * (1 - rate * l2) ** (order - powers) * (-rate) ** powers * moments).sum())


def _decay_sweep(
    shop: Workshop, store: str, a: float, rate: float, size: int
) -> tuple[xr.DataArray, xr.Dataset, tuple[float, float]]:
    """Test loss against weight decay, no label noise, target 1: theories, runs, and the stable interval."""
    found = stationary.optimal_weight_decay([a], [1.0], rate, size)
    low, high = float(found["lowest_l2"]), float(found["highest_l2"])
    inside = low + (high - low) * np.linspace(0.02, 0.98, 97)
    decays = inside[12:-12:9]

    def theories(gammas: Array) -> xr.DataArray:
        losses = [
            stationary.rivals([a], rate, size, l2=float(g), target=[1.0])["test_loss"].sel(theory=RIVALS).values
            for g in gammas
        ]
        return xr.DataArray(np.array(losses).T, {"theory": RIVALS, "l2": gammas}, ("theory", "l2"))

    values, errors = [], []
    for k, g in enumerate(decays):
        runs = shop.runs(f"{store}_{k}", np.array([[a]]), [rate], [size], label_variance=0.0, l2=float(g), settle=200)
        off = 1 - a / (a + g)
        here = runs.isel(learning_rate=0, batch_size=0)
        squared, straight = here["fluctuation"].isel(fluctuation_0=0), here["deviation"].isel(deviation_0=0)
        own = (a / 2 * (squared - 2 * off * straight + off**2)).mean("step")
        values.append(float(own.mean("run")))
        errors.append(float(own.std("run", ddof=1)) / np.sqrt(own.sizes["run"]))
    marks = xr.Dataset({"value": ("l2", values), "value_stderr": ("l2", errors)}, {"l2": decays})
    marks["judged"] = ("l2", [tail_exists(a, rate, size, float(g)) for g in decays])
    return theories(inside), marks, (low, high)


def _data_runs(
    shop: Workshop, store: str, x: Array, y: Array, A: Array, minimum: Array, rate: float, size: int
) -> tuple[float, float]:
    """Mean of (w - w*)^T A (w - w*) over runs on these data, with its standard error."""
    model = torch.nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(minimum[None]))
    problem = Problem(model, "mse", torch.from_numpy(x), torch.from_numpy(y[:, None]))
    matrix, centre = torch.from_numpy(A), torch.from_numpy(minimum)

    def fluctuation(state: State) -> torch.Tensor:
        off = state.weights - centre
        return ((off @ matrix) * off).sum(1)

    few = max(shop.preset.runs // 50, 20)
    found = simulate(
        problem, SGD(rate), [size], 4000, few, sampling=WithReplacement(), seed=shop.seed, every=500, raw=True,
        record={"fluctuation": fluctuation}, store=shop.folder / f"{store}_{shop.name}.zarr", workers=shop.workers,
        progress=shop.progress,
    ).load()  # fmt: skip
    own = found["fluctuation"].isel(batch_size=0).sel(step=slice(2000, None)).mean("step")
    return float(own.mean()), float(own.std(ddof=1)) / np.sqrt(few)


def _marks(runs: xr.Dataset, axis: str, judged: list[bool]) -> xr.Dataset:
    own = runs["fluctuation"].isel(fluctuation_0=0).mean("step")
    found = xr.Dataset({"value": own.mean("run"), "value_stderr": own.std("run", ddof=1) / np.sqrt(own.sizes["run"])})
    return found.assign(judged=(axis, judged)).drop_vars(
        [name for name in found.coords if name != axis], errors="ignore"
    )


def _verdict(curves: xr.DataArray, marks: xr.Dataset, exact: str = "exact") -> Agreement | None:
    """The exact theory against the runs that may be judged; None if there are none."""
    (axis,) = marks["value"].dims
    kept = marks.isel({axis: marks["judged"].values})
    if not kept.sizes[axis]:
        return None
    theory = curves.sel(theory=exact).sel({axis: kept[axis].values}).drop_vars("theory")
    theory = theory.drop_vars([name for name in theory.coords if name != axis])
    return compare(xr.Dataset({"value": theory}), kept, variables=["value"], alarm=ALARM)


def _said(verdicts: Sequence[Agreement | None], names: Sequence[str], why_not: str = HEAVY) -> list[str]:
    known = [(name, verdict) for name, verdict in zip(names, verdicts, strict=True) if verdict is not None]
    agree = all(verdict.agrees for _, verdict in known)
    details = "; ".join(f"{name + ': ' if name else ''}{verdict.detail}" for name, verdict in known)
    found = [f"The exact theory and the runs {'agree' if agree else 'disagree'}: {details}."] if known else []
    found += [
        f"{name}: not judged. {why_not}"
        for name, verdict in zip(names, verdicts, strict=True) if verdict is None
    ]  # fmt: skip
    return found


def _rivals_said(curves: xr.DataArray, marks: xr.Dataset) -> list[str]:
    """How far the approximations are from the runs that are judged."""
    (axis,) = marks["value"].dims
    kept = marks.isel({axis: marks["judged"].values})
    words = []
    for name in RIVALS[1:]:
        off = curves.sel(theory=name).sel({axis: kept[axis].values}).values / kept["value"].values - 1
        words.append(f"{name} by {100 * np.nanmin(off):+.0f} to {100 * np.nanmax(off):+.0f} %")
    return [f"Against the same runs the approximations are off: {' and '.join(words)}."]


def _made(
    name: str,
    sentences: list[str],
    curves: Mapping[str, xr.DataArray],
    marks: Mapping[str, xr.Dataset],
    panels: Sequence[Panel],
    verdicts: Sequence[Agreement | None],
    more: Mapping[str, tuple[Any, Caption]] | None = None,
) -> Reproduction:
    number, known = name.removeprefix("fig"), [verdict for verdict in verdicts if verdict is not None]
    stored = {f"{name}_{key}_theory": values.to_dataset(name="value") for key, values in curves.items()}
    stored |= {f"{name}_{key}_runs": values for key, values in marks.items()}
    drawn = Caption(
        f"Fig. {number}: theories and runs",
        "Lines: theories, the exact one solid. Marks: runs with 95 % intervals; hollow where moments needed for a "
        "judgement do not "
        "exist. Vertical lines: where second moments diverge by the exact theory.",
        f"Figure {number} of the paper: curves of {len(RIVALS)} theories; the marks of runs lie on the exact one.",
    )
    return Reproduction(
        title=f"Strength of minibatch noise, Fig. {number}",
        sentences=sentences,
        data=stored,
        figures={name: (show.sweeps(*panels), drawn)} | {f"{name}_{key}": pair for key, pair in (more or {}).items()},
        agreement=min(known, key=lambda verdict: verdict.p_value) if known else None,
        holds=all(verdict.agrees for verdict in known),
    )
