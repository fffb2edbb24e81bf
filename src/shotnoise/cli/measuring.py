"""`shotnoise measure`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from rich.text import Text

from shotnoise import results, show
from shotnoise.cli.common import ERR, OUT, scheme, whole_numbers
from shotnoise.cli.outputs import Machine, Outputs, Page, Store
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError, NonFiniteError
from shotnoise.experiment import sources
from shotnoise.measure import measure as measure_noise
from shotnoise.measure import observed as observe
from shotnoise.measure.observed import check_draws
from shotnoise.measure.verb import check as check_measure
from shotnoise.problem import Problem
from shotnoise.sampling import SCHEMES, ReshuffledEpochs, Sampling
from shotnoise.training import SGD, check_steps, stops


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
    report: Page = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Measure how large the minibatch gradient noise is, where it sits, and what another batch size would give."""
    outputs = Outputs(json, save, report)
    plan = Plan(
        batch_sizes=whole_numbers("--batch-sizes", batch_sizes),
        sampling=scheme(sampling),
        samples=samples,
        draws=draws,
        top=top,
        seed=seed,
    )
    steps = whole_numbers("--at", at)
    subject = problem_from(problem, data, model, data_dir, target, l2, seed)
    rule = SGD(learning_rate, min(train_batch_size, subject.n), ReshuffledEpochs(), seed)
    _check(subject, plan, rule, steps)
    found = Found([], [])
    stopped = _along_training(subject, plan, rule, steps, found)
    if found.measured:
        _deliver(found.combined(steps, rule), outputs)
    if stopped:
        ERR.print(Text(stopped, "bold red"))
        raise typer.Exit(1)


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


def _deliver(found: tuple[xr.Dataset, xr.Dataset | None], outputs: Outputs) -> None:
    result, seen = found
    agreement: Agreement | None = None if seen is None else compare(result, seen)
    OUT.print(show.table(result, seen))
    for sentence in show.reading(result, seen, agreement):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(result, report=lambda path: show.report(result, path, seen, agreement))


def problem_from(
    given: str | None, data: str | None, model: str, data_dir: Path | None, target: str | None, l2: float, seed: int
) -> Problem:
    """By name with a network, or from the user's own function."""
    if (given is None) == (data is None):
        raise InputError("say which problem: --data (digits, mnist, a CSV file, ...) or --problem module:function")
    if given is not None:
        try:
            return sources.imported(given, (Problem,))
        except InputError as error:
            raise InputError(f"--problem {error}") from error
    assert data is not None
    options = {}
    if data.endswith(".csv"):
        if target is None:
            raise InputError(f"--data {data} is a table: name the column to predict with --target")
        options["target"] = target
    return sources.problem(sources.load(data, data_dir, **options), model, l2=l2, seed=seed)
