"""The verbs on the command line: options in, files and tables out. No science in here."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from rich.console import Console
from rich.text import Text

from shotnoise import __version__, datasets, models, results, show
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError, NonFiniteError, ShotnoiseError
from shotnoise.files import check_writable, write_atomically
from shotnoise.measure import measure as measure_noise
from shotnoise.measure import observed as observe
from shotnoise.measure.observed import check_draws
from shotnoise.measure.verb import check as check_measure
from shotnoise.problem import Problem
from shotnoise.sampling import SCHEMES, ReshuffledEpochs, Sampling
from shotnoise.training import SGD, check_steps, stops

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
OUT, ERR = Console(), Console(stderr=True)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Measure, predict and simulate the noise of minibatch gradients."""
    if version:
        OUT.print(f"shotnoise {__version__}")
        raise typer.Exit


@app.command()
def measure(
    data: Annotated[str | None, typer.Option(help="A data set by name (digits, mnist, ...), or a CSV file.")] = None,
    model: Annotated[str, typer.Option(help="linear, mlp:64,32 or cnn:16,32.")] = "mlp:64,32",
    problem: Annotated[str | None, typer.Option(help="package.module:function returning a shotnoise.Problem.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; default $SHOTNOISE_DATA.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict, for a CSV file.")] = None,
    l2: Annotated[float, typer.Option(help="Penalty (l2/2) ||w||^2.")] = 0.0,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to predict for.")] = "1,8,64,512",
    sampling: Annotated[
        str, typer.Option(help=f"How batches are drawn: {', '.join(SCHEMES)}.")
    ] = "without-replacement",
    samples: Annotated[int | None, typer.Option(help="Spend only so many samples, with standard errors.")] = None,
    at: Annotated[str, typer.Option(help="Steps of training at which to measure.")] = "0",
    learning_rate: Annotated[float, typer.Option(help="Of SGD between the measurements.")] = 0.1,
    train_batch_size: Annotated[int, typer.Option(help="Of SGD between the measurements.")] = 64,
    draws: Annotated[int, typer.Option(help="Check against so many real minibatches per batch size.")] = 0,
    top: Annotated[int, typer.Option(help="Add so many eigenvalues of the noise covariance.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and chosen samples.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write a page for people (HTML).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result for machines (JSON).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the result as a Zarr store (folder or .zip).")] = None,
) -> None:
    """Measure how large the minibatch gradient noise is, where it sits, and what another batch size would give."""
    for path in (report, json, save):
        if path is not None and not (path is save and path.is_dir()):
            check_writable(path)
    plan = Plan(
        batch_sizes=_whole_numbers("--batch-sizes", batch_sizes),
        sampling=_scheme(sampling),
        samples=samples,
        draws=draws,
        top=top,
        seed=seed,
    )
    steps = _whole_numbers("--at", at)
    subject = _problem(problem, data, model, data_dir, target, l2, seed)
    rule = SGD(learning_rate, min(train_batch_size, subject.n), ReshuffledEpochs(), seed)
    _check(subject, plan, rule, steps)
    found = Found([], [])
    stopped = _along_training(subject, plan, rule, steps, found)
    if found.measured:
        _deliver(found.combined(steps, rule), report=report, json=json, save=save)
    if stopped:
        ERR.print(Text(stopped, "bold red"))
        raise typer.Exit(1)


def main() -> None:
    """The entry point: errors made on purpose end in one line, not in a traceback."""
    try:
        app()
    except ShotnoiseError as error:
        ERR.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)


@dataclass(frozen=True)
class Plan:
    """What to measure at each stop."""

    batch_sizes: list[int]
    sampling: Sampling
    samples: int | None
    draws: int
    top: int
    seed: int


def _check(subject: Problem, plan: Plan, rule: SGD, steps: list[int]) -> None:
    """Refuse now what would otherwise be refused after the training."""
    check_steps(steps)
    rule.sampling.check(rule.batch_size, subject.n)
    check_measure(subject, plan.batch_sizes, plan.sampling, samples=plan.samples, top=plan.top)
    if plan.draws:
        check_draws(plan.draws)
    subject.examine()


@dataclass(frozen=True)
class Found:
    """The results so far, one per stop; they outlive an interruption."""

    measured: list[tuple[int, xr.Dataset]]
    observed: list[tuple[int, xr.Dataset]]

    def combined(self, steps: list[int], rule: SGD) -> tuple[xr.Dataset, xr.Dataset | None]:
        if steps == [0]:
            return self.measured[0][1], self.observed[0][1] if self.observed else None
        training = {"learning_rate": rule.learning_rate, "train_batch_size": rule.batch_size}
        whole = results.along_steps(self.measured, training | {"train_sampling": str(rule.sampling)})
        return whole, results.along_steps(self.observed, training) if self.observed else None


def _along_training(subject: Problem, plan: Plan, rule: SGD, steps: list[int], found: Found) -> str | None:
    """Measure at every stop; the reason if it ended before the last one."""
    with show.progress(ERR) as bar:
        try:
            for step in stops(subject, rule, steps, bar("training") if steps[-1] else None):
                _measure_here(subject, plan, step, bar, found)
        except KeyboardInterrupt:
            return f"interrupted: {len(found.measured)} of {len(steps)} measurements were done and are kept"
        except NonFiniteError as error:
            done = f"{len(found.measured)} of {len(steps)} measurements were done and are kept"
            return f"training at learning rate {rule.learning_rate:g} stopped: {error}. {done}."
    return None


def _measure_here(
    subject: Problem, plan: Plan, step: int, bar: Callable[[str], show.ProgressReport], found: Found
) -> None:
    measured = measure_noise(
        subject,
        plan.batch_sizes,
        plan.sampling,
        samples=plan.samples,
        seed=plan.seed,
        top=plan.top,
        progress=bar(f"measuring at step {step:,}"),
    )
    if plan.draws:
        drawing = bar(f"real minibatches at step {step:,}")
        seen = observe(
            subject, plan.batch_sizes, plan.sampling, draws=plan.draws, seed=plan.seed + step, progress=drawing
        )
        found.observed.append((step, seen))
    found.measured.append((step, measured))


def _deliver(
    found: tuple[xr.Dataset, xr.Dataset | None], report: Path | None, json: Path | None, save: Path | None
) -> None:
    result, seen = found
    agreement: Agreement | None = None if seen is None else compare(result, seen)
    OUT.print(show.table(result, seen))
    for sentence in show.reading(result, seen, agreement):
        OUT.print(Text(f"• {sentence}"))
    written = []
    if report is not None:
        written.append(show.report(result, report, seen, agreement))
    if json is not None:
        written.append(write_atomically(json, results.to_json(result)))
    if save is not None:
        written.append(results.save(result, save))
    for path in written:
        ERR.print(Text(f"wrote {path}"))


def _problem(
    given: str | None, data: str | None, model: str, data_dir: Path | None, target: str | None, l2: float, seed: int
) -> Problem:
    if (given is None) == (data is None):
        raise InputError("say what to measure: --data (digits, mnist, a CSV file, ...) or --problem module:function")
    if given is not None:
        return _imported(given)
    assert data is not None
    if data.endswith(".csv"):
        if target is None:
            raise InputError(f"--data {data} is a table: name the column to predict with --target")
        loaded = datasets.load("csv", data_dir=data_dir, path=data, target=target)
    else:
        loaded = datasets.load(data, data_dir=data_dir)
    loss = "mse" if loaded.classes is None else "cross_entropy"
    return Problem(models.build(model, loaded, seed), loss, loaded.inputs, loaded.targets, l2=l2)


def _imported(name: str) -> Problem:
    """The Problem that package.module:function returns, found as Python would find it from here."""
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(f"--problem {name!r}: expected package.module:function, as in mypackage.data:make_problem")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"--problem {name!r}: importing {module_name} failed ({type(error).__name__}: {error})"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--problem {name!r}: {module_name} has no function {function_name!r}")
    made = function()
    if not isinstance(made, Problem):
        raise InputError(f"--problem {name!r}: it returned {type(made).__name__}, expected a shotnoise.Problem")
    return made


def _scheme(name: str) -> Sampling:
    if name not in SCHEMES:
        raise InputError(f"--sampling {name!r} is not known; use one of {', '.join(SCHEMES)}")
    return SCHEMES[name]()


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected whole numbers with commas, such as 1,8,64") from None
