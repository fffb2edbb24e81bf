"""What lecture notes say on the continuous-time limit of SGD, statement by statement: theory, SGD itself, verdict.

    scaling      accumulated noise at fixed weights: variance t eta with the noise of SGD, t with the "sqrt(eta)
    scaling" weak-order   a regression at several learning rates: SGD, and the equations of first and second order
    double-well  position-dependent noise in a double well: Ito, Stratonovich and the printed Fokker-Planck equation
    current      two weights, Hessian and noise that do not commute: a stationary law with a current in it posterior
    logistic regression: the tempered posterior, and the covariance of SGD momentum     both limits of SGD with momentum
    against the learning rate's memory singular     noise in one direction only, sharp and isotropic minimum epochs
    reshuffled epochs: weights fluctuate less along slow directions

The notes have no numbers: settings are ours, in the table at the head of each function. The runs are SGD by `simulate`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from scipy.integrate import cumulative_trapezoid

from shotnoise import show, simulate
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError
from shotnoise.predict import diffusion
from shotnoise.problem import Problem
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.reproduce.tilted import quadratic, tilted
from shotnoise.rules import SGD
from shotnoise.sampling import ReshuffledEpochs, Sampling, WithoutReplacement, WithReplacement
from shotnoise.show.captions import Caption
from shotnoise.show.sweeps import Panel

ALARM = 1e-3
H, C = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 0.6]])
Array = np.ndarray
RUNS = {"quick": 1.0, "paper": 10.0}  # times the runs of the quick preset


@dataclass(frozen=True)
class Workshop:
    folder: Path
    preset: str
    seed: int
    workers: int | None
    progress: Callable[[Any], None] | None

    def weights(
        self, name: str, problem: Problem, rule: SGD, size: int, at: Sequence[int], runs: int,
        sampling: Sampling | None = None, stream: int = 0,
    ) -> Array:  # fmt: skip
        """The weights of all runs (runs, steps, d) at these steps."""
        found = simulate(
            problem, rule, [size], max(at), round(runs * RUNS[self.preset]), sampling=sampling or WithReplacement(),
            record=[simulate.weights(steps=list(at))], raw=True, seed=self.seed + stream, workers=self.workers,
            store=self.folder / f"{name}_{self.preset}.zarr", progress=self.progress,
        ).load()  # fmt: skip
        values = found["weights"].isel(batch_size=0)
        (step,) = (dim for dim in values.dims if "step" in str(dim))
        return np.asarray(values.transpose("run", step, ...).values, np.float64).reshape(
            values.sizes["run"], len(at), -1
        )


def continuous_limit(
    folder: Path,
    figure: str,
    *,
    preset: str = "quick",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Reproduction:
    """One figure of the gallery, by its name in `FIGURES`: theory, runs over it, and the verdict of `compare`."""
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: one of {', '.join(FIGURES)}")
    if preset not in RUNS:
        raise InputError(f"preset {preset!r}: one of {', '.join(RUNS)}")
    return FIGURES[figure](Workshop(folder, preset, seed, workers, progress))


def scaling(shop: Workshop) -> Reproduction:
    """Gradients of 16 samples that do not depend on the weights, B = 2, times up to 4, 1,000 runs."""
    tilts = np.random.default_rng(0).normal(size=(16, 1))
    tilts -= tilts.mean(0)
    strength = float((tilts**2).mean()) / 2
    problem = tilted(np.zeros(1), lambda w: 0 * w.sum(), lambda w: w, tilts)
    rates, times = (0.1, 0.025, 0.00625), np.array([0.4, 1.0, 2.0, 4.0])
    panels: list[Panel] = []
    stored: dict[str, xr.Dataset] = {}
    verdicts = []
    for which, label in (("noise of SGD", "step $\\eta$"), ("another algorithm", "step $\\sqrt{\\eta}$")):
        curves, marks = [], []
        for k, rate in enumerate(rates):
            step = rate if which == "noise of SGD" else float(np.sqrt(rate))
            at = [round(t / rate) for t in times]
            found = shop.weights(f"scaling_{len(panels)}_{k}", problem, SGD(step), 2, at, 1000, stream=7 * len(panels))[
                :, :, 0
            ]
            curves.append(times * strength * (rate if which == "noise of SGD" else 1.0))
            marks.append(((found**2).mean(0), (found**2).std(0, ddof=1) / np.sqrt(len(found))))
        names = [f"$\\eta$ = {rate:g}" for rate in rates]
        dims, coordinates = ("theory", "time"), {"theory": names, "time": times}
        theory = xr.DataArray(curves, coordinates, dims)
        runs = xr.Dataset(
            {"value": (dims, [m[0] for m in marks]), "value_stderr": (dims, [m[1] for m in marks])}, coordinates
        )
        verdicts.append(_verdict(theory, runs))
        panels.append(Panel(runs["value"], None, "variance", "time $t$ (updates times $\\eta$)", label, "xy",
                            errors=runs["value_stderr"]))  # fmt: skip
        key = which.replace(" ", "_")
        stored |= {f"{key}_theory": theory.to_dataset(name="value"), f"{key}_runs": runs}
    sentences = [
        *_said(verdicts, ["noise of SGD, variance t eta Sigma / B", "square-root scaling, variance t Sigma / B"]),
        "With the noise of SGD the accumulated variance at fixed time falls with the learning rate: the limit is "
        "gradient flow. The scaling that keeps it describes another algorithm.",
    ]
    return _made("scaling", sentences, stored, show.sweeps(*panels), verdicts)


def weak_order(shop: Workshop) -> Reproduction:
    """Twelve samples, two features, B = 2, w = (0.3, -0.4) at the start, time 0.8, 20,000 runs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    y = x.sum(1) + 0.7 * rng.normal(size=12)
    line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    start = [0.3, -0.4]
    with torch.no_grad():
        line.weight.copy_(torch.tensor([start]))
    problem = Problem(line, "mse", torch.from_numpy(x), torch.from_numpy(y[:, None]))
    model, rates = diffusion.LinearModel.of_data(x, y), (0.2, 0.1, 0.05, 0.025, 0.0125)
    names = ["discrete", "first order", "second order"]
    marks = []
    values, errors = np.empty((3, len(rates))), np.empty((2, len(rates)))
    for k, rate in enumerate(rates):
        steps = round(0.8 / rate)
        moments = diffusion.regression_moments(model, rate, 2, [steps], start)
        mean, covariance = (
            moments[name].sel(theory=names).values[:, 0] for name in ("mean_weights", "weight_covariance")
        )
        off = mean - model.minimum
        values[:, k] = np.trace(covariance, axis1=1, axis2=2) + (off**2).sum(1)
        errors[:, k] = np.abs(values[1:, k] - values[0, k])
        found = shop.weights(f"weak_order_{k}", problem, SGD(rate), 2, [steps], 20_000)[:, 0]
        squares = ((found - model.minimum) ** 2).sum(1)
        marks.append((squares.mean(), squares.std(ddof=1) / np.sqrt(len(squares))))
    dims, coordinates = ("theory", "learning_rate"), {"theory": names, "learning_rate": list(rates)}
    theory = xr.DataArray(values, coordinates, dims)
    weak = xr.DataArray(np.concatenate([np.full((1, len(rates)), np.nan), errors]), coordinates, dims)
    runs = _runs(np.array(marks), "learning_rate", rates)
    verdicts = [_verdict(theory.sel(theory="discrete", drop=True), runs)]
    slopes = [float(np.polyfit(np.log(rates[1:]), np.log(e[1:]), 1)[0]) for e in errors]
    first = _verdict(theory.sel(theory="first order", drop=True), runs)
    sentences = [
        *_said(verdicts, ["exact moments of SGD"]),
        f"At fixed time the weak error of the first-order equation falls as the learning rate to the power "
        f"{slopes[0]:.2f}, that of the second-order one to the power {slopes[1]:.2f}.",
        f"The first-order equation against the same runs: {first.detail}.",
    ]
    axis = "learning rate $\\eta$"
    panels = [
        Panel(theory, runs, "$E\\,|w - w^*|^2$ at $t$ = 0.8", axis, "", "x"),
        Panel(weak, None, "weak error", axis, f"slopes {slopes[0]:.2f} and {slopes[1]:.2f}", "xy"),
    ]
    right = abs(slopes[0] - 1) < 0.15 and abs(slopes[1] - 2) < 0.15
    kept = {"theory": theory.to_dataset(name="value"), "runs": runs}
    return _made("weak_order", sentences, kept, show.sweeps(*panels), verdicts, right)


WELL = 1.5  # depth of the double well L = WELL (w^2 - 1)^2 / 4
LEFT, RIGHT = 1.0, 0.3  # the noise's root falls from the sum of both on the left to their difference on the right


def _phi(w: torch.Tensor) -> torch.Tensor:
    """phi' = LEFT - RIGHT w / sqrt(1 + w^2): noisier on the left."""
    return LEFT * w - RIGHT * torch.sqrt(1 + w**2)


def _root(w: torch.Tensor) -> torch.Tensor:
    return LEFT - RIGHT * w / torch.sqrt(1 + w**2)


def double_well(shop: Workshop) -> Reproduction:
    """Learning rate 0.02, B = 1, two samples tilted by +-4, 4,000 runs of 6,000 updates from the top in the middle."""
    rate, size, tilt = 0.02, 1, 4.0
    land = diffusion.Landscape(1, lambda w: WELL * (w**3 - w), lambda w: (tilt * _root(w)).square()[:, :, None])
    x = np.linspace(-3.0, 3.0, 3001)
    theory = diffusion.tempered_posterior(land, rate, size, x)
    grid = diffusion.FokkerPlanck(land, rate, size, [(-3.0, 3.0)], 1500).stationary()
    off = float(np.abs(np.interp(grid["x"], x, theory["density"].sel(theory="ito")) - grid["density"]).max())
    problem = tilted(np.zeros(1), lambda w: WELL * ((w**2 - 1) ** 2 / 4).sum(), _phi, np.array([[tilt], [-tilt]]))
    found = shop.weights("double_well", problem, SGD(rate), size, [6000], 4000)[:, 0, 0]
    edges = np.linspace(-2.2, 2.0, 22)
    counts, centres, width = np.histogram(found, edges)[0], (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    share = (counts + 0.5) / (len(found) + 1)  # no bin is ever sure to be empty
    histogram = xr.Dataset(
        {
            "density": ("x", counts / len(found) / width),
            "density_stderr": ("x", np.sqrt(share * (1 - share) / len(found)) / width),
        },
        {"x": centres},
    )
    names = ["ito", "stratonovich", "hanggi-klimontovich", "printed, eq. 29"]
    fine = theory["density"].sel(theory=names)
    below = cumulative_trapezoid(fine.values, x, axis=1, initial=0)
    within = np.array([np.diff(np.interp(edges, x, own)) / width for own in below])
    masses = xr.DataArray(within, {"theory": names, "x": centres}, ("theory", "x"))
    verdicts = {
        name: compare(xr.Dataset({"density": masses.sel(theory=name, drop=True)}), histogram, variables=["density"],
                      alarm=ALARM)
        for name in names
    }  # fmt: skip
    rejected = [name for name in names[1:] if not verdicts[name].agrees]
    sentences = [
        *_said([verdicts["ito"]], ["Ito's density"]),
        *(f"{name}: {verdicts[name].detail}." for name in names[1:]),
        f"The finite volumes differ from the quadrature by at most {off:.1g} in the density.",
    ]
    kept = {"theory": theory, "masses": masses.to_dataset(name="density"), "runs": histogram, "finite_volumes": grid}
    drawn = show.densities(fine, histogram)
    return _made("double_well", sentences, kept, drawn, [verdicts["ito"]], len(rejected) == 3)


def current(shop: Workshop) -> Reproduction:
    """H, C of the worked example, learning rate 0.1, B = 4, 8,000 runs."""
    rate, size = 0.1, 4
    grid = diffusion.FokkerPlanck(diffusion.Quadratic(H, C), rate, size, [(-0.45, 0.45), (-0.5, 0.5)], 120).stationary()
    turn = diffusion.rotation(H, C, rate, size)
    lagged = diffusion.autocorrelation(H, C, rate, size, [0, 1])["weight_autocovariance"].sel(theory="discrete")
    found = shop.weights("current", quadratic(H, C), SGD(rate), size, [200, 201], 8000)
    pairs = np.einsum("ri,rj->rij", found[:, 1], found[:, 0]).reshape(len(found), 4)
    areas = pairs[:, 1] - pairs[:, 2]
    squares = np.einsum("ri,rj->rij", found[:, 0], found[:, 0]).reshape(len(found), 4)[:, [0, 1, 3]]
    entries = ["X_11", "X_12", "X_22", "area"]
    still, later = lagged.values
    exact = [*still[np.triu_indices(2)].tolist(), float(later[0, 1] - later[1, 0])]
    balanced = [*exact[:3], 0.0]
    everything = np.column_stack([squares, areas])
    marks = np.column_stack([everything.mean(0), everything.std(0, ddof=1) / np.sqrt(len(found))])
    runs = _runs(marks, "entry", entries)
    verdict = _verdict(xr.DataArray(exact, {"entry": entries}, ("entry",)), runs)
    balance = _verdict(xr.DataArray(balanced, {"entry": entries}, ("entry",)), runs)
    sentences = [
        *_said([verdict], ["covariance, and area swept per update"]),
        f"Were there no current, the area swept would be zero: {balance.detail}.",
        f"Entropy is produced at {float(turn['entropy_production']):.4f} per unit time (on the grid "
        f"{float(grid['entropy_production']):.4f}); the curl of the mean velocity is "
        f"{float(turn['velocity_curl']):.4f}.",
    ]
    kept = {"theory": grid, "rotation": turn, "runs": runs}
    return _made("current", sentences, kept, show.current(grid), [verdict], not balance.agrees)


def posterior(shop: Workshop) -> Reproduction:
    """Logistic regression, 60 samples, features of unequal size, l2 = 0.05, learning rate 0.4, B = 6, 6,000 runs."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 2)) * [2.0, 0.6]
    chance = 1 / (1 + np.exp(-(x @ [0.6, -1.5])))
    labels = rng.random(60) < chance

    def problem_at(weights: Array) -> Problem:
        line = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            line.weight.copy_(torch.from_numpy(weights[None]))
        return Problem(line, "logistic", torch.from_numpy(x), torch.from_numpy(labels), l2=0.05)

    weights = np.zeros(2)
    for _ in range(30):  # Newton's method
        at = diffusion.Network(problem_at(weights))
        w = at.start
        hessian = torch.cat([at.curved(w, e[None]) for e in torch.eye(2, dtype=torch.float64)]).numpy()
        weights = weights - np.linalg.solve(hessian, at.gradient(w)[0].numpy())
    at = diffusion.Network(problem_at(weights))
    noise = at.covariance(at.start)[0].numpy()
    rate, size, sampling = 0.4, 6, WithoutReplacement()
    local = diffusion.ornstein_uhlenbeck(hessian, noise, rate, size, sampling=sampling, n=60)
    judged = diffusion.approximate_inference(hessian, noise, rate, size, 60, sampling=sampling)
    tempered = np.linalg.inv(hessian) / float(judged["inverse_temperature"])
    names = ["discrete", "first order", "tempered posterior", "posterior"]
    matrices = np.array([
        *local["weight_covariance"].sel(theory=names[:2]).values, tempered, judged["posterior_covariance"].values
    ])  # fmt: skip
    found = shop.weights("posterior", problem_at(weights), SGD(rate), size, [400], 6000, sampling)[:, 0] - weights
    centred = found - found.mean(0)
    products = np.einsum("ri,rj->rij", centred, centred).reshape(len(found), 4)[:, [0, 1, 3]]
    entries = ["X_11", "X_12", "X_22"]
    runs = _runs(np.column_stack([products.mean(0), products.std(0, ddof=1) / np.sqrt(len(found))]), "entry", entries)
    flat = xr.DataArray(matrices[:, [0, 0, 1], [0, 1, 1]], {"theory": names, "entry": entries}, ("theory", "entry"))
    verdicts = {name: _verdict(flat.sel(theory=name, drop=True), runs) for name in names}
    curves = xr.DataArray(matrices[None], {"theory": names}, ("panel", "theory", "parameter", "parameter_"))
    points = xr.DataArray(found[None], dims=("panel", "run", "parameter"))
    sentences = [
        *_said([verdicts["discrete"]], ["linearised SGD"]),
        f"The tempered posterior: {verdicts['tempered posterior'].detail}.",
        f"The stationary law is {float(judged['tempered_divergence']):.3f} nats from the nearest tempered posterior "
        f"and {float(judged['posterior_divergence']):.3f} from the posterior itself, at best "
        f"{float(judged['least_divergence']):.3f} at a learning rate of {float(judged['optimal_learning_rate']):.3f}.",
    ]
    kept = {"theory": flat.to_dataset(name="value"), "runs": runs}
    drawn = show.ellipses(curves, points, ["logistic regression"])
    return _made("posterior", sentences, kept, drawn, [verdicts["discrete"]], not verdicts["tempered posterior"].agrees)


def momentum(shop: Workshop) -> Reproduction:
    """H, C of the worked example, learning rate 0.1, B = 4, momenta 0.3 to 0.95, 4,000 runs."""
    rate, size, fine, marked = 0.1, 4, np.linspace(0.02, 0.97, 60), (0.3, 0.6, 0.8, 0.9, 0.95)
    names = ["discrete", "underdamped", "overdamped"]

    def variance(mu: float) -> Array:
        found = diffusion.ornstein_uhlenbeck(H, C, rate, size, mu)["weight_covariance"].sel(theory=names)
        return np.asarray(found.values[:, 0, 0])

    marks = []
    for mu in marked:
        settled = int(30 / (1 - mu)) + 150
        found = shop.weights(f"momentum_{mu:g}", quadratic(H, C), SGD(rate, momentum=mu), size, [settled], 4000)[
            :, 0, 0
        ]
        marks.append(((found**2).mean(), (found**2).std(ddof=1) / np.sqrt(len(found))))
    theory = xr.DataArray(np.array([variance(mu) for mu in fine]).T, {"theory": names, "momentum": fine},
                          ("theory", "momentum"))  # fmt: skip
    at = xr.DataArray(np.array([variance(mu) for mu in marked]).T, {"theory": names, "momentum": list(marked)},
                      ("theory", "momentum"))  # fmt: skip
    runs = _runs(np.array(marks), "momentum", marked)
    verdicts = {name: _verdict(at.sel(theory=name, drop=True), runs) for name in names}
    off = 100 * (at / at.sel(theory="discrete") - 1)
    low, high = off.min("momentum"), off.max("momentum")
    sentences = _said([verdicts["discrete"]], ["exact covariance"])
    for name in names[1:]:
        span = f"{float(low.sel(theory=name)):+.1f} to {float(high.sel(theory=name)):+.1f} %"
        sentences.append(f"{name}: off by {span}; against the runs, {verdicts[name].detail}.")
    axis, exact = "momentum $\\mu$", at.sel(theory="discrete", drop=True)
    shares = runs.assign(value=runs["value"] / exact, value_stderr=runs["value_stderr"] / exact)
    panels = [
        Panel(theory, runs, "variance of $w_1$", axis, "", "y"),
        Panel(theory / theory.sel(theory="discrete"), shares, "over the exact one", axis, "", ""),
    ]
    kept = {"theory": theory.to_dataset(name="value"), "runs": runs}
    drawn = show.sweeps(*panels)
    return _made("momentum", sentences, kept, drawn, [verdicts["discrete"]], not verdicts["overdamped"].agrees)


def singular(shop: Workshop) -> Reproduction:
    """Noise along (1, 1) alone; curvatures (1, 3) and (1.5, 1.5), learning rate 0.1, B = 2, 4,000 runs."""
    rate, size, noise = 0.1, 2, np.ones((2, 2))
    panels, clouds, exact, marks = [], [], [], []
    for k, curvatures in enumerate(([1.0, 3.0], [1.5, 1.5])):
        local = diffusion.ornstein_uhlenbeck(curvatures, noise, rate, size)["weight_covariance"]
        panels.append(local.sel(theory=["discrete", "first order"]).values)
        found = shop.weights(f"singular_{k}", quadratic(np.diag(curvatures), noise), SGD(rate), size, [200], 4000)[:, 0]
        products = np.einsum("ri,rj->rij", found, found).reshape(len(found), 4)[:, [0, 1, 3]]
        exact.append(panels[-1][0][[0, 0, 1], [0, 1, 1]])
        marks.append(np.column_stack([products.mean(0), products.std(0, ddof=1) / np.sqrt(len(found))]))
        clouds.append(found)
    entries = [f"{which}_{entry}" for which in ("sharp", "isotropic") for entry in ("11", "12", "22")]
    runs = _runs(np.concatenate(marks), "entry", entries)
    verdict = _verdict(xr.DataArray(np.concatenate(exact), {"entry": entries}, ("entry",)), runs)
    thin = np.array(
        [np.linalg.eigvalsh(np.cov(cloud.T))[0] / np.linalg.eigvalsh(np.cov(cloud.T))[1] for cloud in clouds]
    )
    curves = xr.DataArray(np.array(panels), {"theory": ["discrete", "first order"]},
                          ("panel", "theory", "parameter", "parameter_"))  # fmt: skip
    points = xr.DataArray(np.array(clouds), dims=("panel", "run", "parameter"))
    sentences = [
        *_said([verdict], ["singular noise"]),
        f"With unequal curvatures the law fills the plane (smallest variance {thin[0]:.3f} of the largest in runs); "
        f"in an isotropic minimum it stays on a line ({thin[1]:.1g}).",
    ]
    titles = ["curvatures 1, 3", "curvatures 1.5, 1.5"]
    kept = {"theory": curves.to_dataset(name="value"), "runs": runs}
    drawn = show.ellipses(curves, points, titles)
    return _made("singular", sentences, kept, drawn, [verdict], bool(thin[1] < 1e-12))


def epochs(shop: Workshop) -> Reproduction:
    """Five directions of curvature 0.03 to 3, 40 samples, B = 4, learning rate 0.2, 3,000 runs over one late epoch."""
    curvatures, n, size, rate = np.array([0.03, 0.1, 0.3, 1.0, 3.0]), 40, 4, 0.2
    tilts = np.linalg.qr(np.column_stack([np.ones(n), np.random.default_rng(1).normal(size=(n, 5))]))[0][:, 1:]
    tilts *= np.sqrt(n)  # covariance I, mean 0
    h = torch.from_numpy(curvatures)
    problem = tilted(np.zeros(5), lambda w: 0.5 * (h * w**2).sum(), lambda w: w, tilts)
    fine = np.geomspace(0.02, 4, 40)

    def ratio(values: Array) -> Array:
        return np.asarray(
            diffusion.epoch_covariance(values, np.ones(len(values)), rate, size, n)["mean_variance_ratio"]
        )

    per_epoch, late = n // size, 60 * (n // size)
    found = shop.weights("epochs", problem, SGD(rate), size, range(late, late + per_epoch), 3000, ReshuffledEpochs())
    fresh = np.diag(diffusion.epoch_covariance(curvatures, np.ones(5), rate, size, n)["weight_covariance_fresh"])
    squares = (found**2).mean(1) / fresh
    marks = np.column_stack([squares.mean(0), squares.std(0, ddof=1) / np.sqrt(len(found))])
    runs = _runs(marks, "curvature", curvatures)
    exact = xr.DataArray(ratio(curvatures), {"curvature": curvatures}, ("curvature",))
    white = xr.ones_like(exact)
    verdict, other = _verdict(exact, runs), _verdict(white, runs)
    names = ["reshuffled epochs", "white noise"]
    theory = xr.DataArray([ratio(fine), np.ones(40)], {"theory": names, "curvature": fine},
                          ("theory", "curvature"))  # fmt: skip
    sentences = [
        *_said([verdict], ["reshuffled epochs"]),
        f"White noise against the same runs: {other.detail}.",
        f"Along curvature {curvatures[0]:.2g} reshuffling leaves {100 * float(exact[0]):.1f} % of the variance, along "
        f"{curvatures[-1]:.2g} {100 * float(exact[-1]):.0f} %.",
    ]
    panel = Panel(theory, runs, "variance over that\nof fresh batches", "curvature $h$", f"$M$ = {per_epoch}", "xy")
    kept = {"theory": theory.to_dataset(name="value"), "runs": runs}
    return _made("epochs", sentences, kept, show.sweeps(panel), [verdict], not other.agrees)


CAPTIONS = {
    "scaling": "Variance of the accumulated noise of runs at three learning rates, with 95 % intervals.",
    "weak_order": "Above: mean squared distance to the minimum of a regression after the same time at several learning "
    "rates, by theory and in runs. Below: errors of both equations.",
    "double_well": "Stationary densities of a double well whose noise is larger on the left, read in three conventions "
    "and as printed in the notes, and the histogram of SGD.",
    "current": "Stationary density (shades) and probability current (lines) of SGD at a minimum where Hessian and "
    "noise do not commute.",
    "posterior": "Weights of runs of SGD on logistic regression, and two standard deviations by SGD linearised at the "
    "minimum, its diffusion, and both posteriors.",
    "momentum": "Stationary variance of a weight against momentum, and over the exact one: theories and runs.",
    "singular": "Weights of runs under noise along one direction alone, and two standard deviations by theory.",
    "epochs": "Stationary variance under reshuffled epochs, mean over an epoch, against the curvature.",
}

FIGURES: dict[str, Callable[[Workshop], Reproduction]] = {
    "scaling": scaling,
    "weak-order": weak_order,
    "double-well": double_well,
    "current": current,
    "posterior": posterior,
    "momentum": momentum,
    "singular": singular,
    "epochs": epochs,
}


def _runs(marks: Array, axis: str, places: Sequence[Any] | Array) -> xr.Dataset:
    """From rows of value and standard error."""
    variables = {
        "value": (axis, marks[:, 0]),
        "value_stderr": (axis, marks[:, 1]),
        "judged": (axis, np.full(len(marks), True)),
    }
    return xr.Dataset(variables, {axis: list(places)})


def _verdict(theory: xr.DataArray, runs: xr.Dataset) -> Agreement:
    return compare(xr.Dataset({"value": theory}), runs, variables=["value"], alarm=ALARM)


def _said(verdicts: Sequence[Agreement], names: Sequence[str]) -> list[str]:
    return [
        f"{name[0].upper()}{name[1:]} and the runs {'agree' if verdict.agrees else 'disagree'}: {verdict.detail}."
        for verdict, name in zip(verdicts, names, strict=True)
    ]


def _made(
    name: str, sentences: list[str], stored: Mapping[str, xr.Dataset], figure: Figure, verdicts: Sequence[Agreement],
    besides: bool = True,
) -> Reproduction:  # fmt: skip
    """besides: what is asked beyond the verdicts, such as that a wrong theory is refused."""
    title = f"Continuous-time limit: {name.replace('_', ' ')}"
    return Reproduction(
        title=title,
        sentences=sentences,
        data={f"{name}_{key}": values for key, values in stored.items()},
        figures={name: (figure, Caption(title, CAPTIONS[name], CAPTIONS[name]))},
        agreement=min(verdicts, key=lambda verdict: verdict.p_value),
        holds=all(verdict.agrees for verdict in verdicts) and besides,
    )
