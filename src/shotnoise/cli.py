"""The verbs on the command line: options in, files and tables out. No science in here."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from rich.console import Console
from rich.text import Text

from shotnoise import __version__, experiment, results, show
from shotnoise.compare import Agreement, compare
from shotnoise.errors import InputError, NonFiniteError, ShotnoiseError
from shotnoise.experiment import Experiment, Job, sources
from shotnoise.files import check_writable, write_atomically
from shotnoise.measure import measure as measure_noise
from shotnoise.measure import observed as observe
from shotnoise.measure.observed import check_draws
from shotnoise.measure.verb import check as check_measure
from shotnoise.problem import Problem
from shotnoise.sampling import SCHEMES, ReshuffledEpochs, Sampling
from shotnoise.show.ensemble_progress import duration, ensemble_progress
from shotnoise.show.ensemble_table import ensemble_table
from shotnoise.simulate.engines.installed import installation
from shotnoise.simulate.outcome import summary
from shotnoise.simulate.plan import in_bytes
from shotnoise.simulate.store import inventory
from shotnoise.training import SGD, check_steps, stops

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
OUT, ERR = Console(), Console(stderr=True)
WIDE = 160  # columns of a table that goes into a file


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


@app.command()
def simulate(
    config: Annotated[Path, typer.Argument(help="A TOML file; docs/simulate-config.md explains its keys.")],
    store: Annotated[Path | None, typer.Option(help="Folder of the results, instead of the file's.")] = None,
    shard: Annotated[str | None, typer.Option(help="Compute only part I/N of the work, I = 1 .. N.")] = None,
    merge_check: Annotated[bool, typer.Option("--merge-check", help="Say what the store has and lacks.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how large and how long it will be.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one per core.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to compute there.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write summaries over the runs for machines (JSON).")] = None,
) -> None:
    """Train thousands of independent copies of a model, into a store that the same command continues after a stop."""
    if json is not None:
        check_writable(json)
    if merge_check + dry_run + (json is not None) > 1:
        raise InputError("--merge-check, --dry-run and --json exclude each other; give one of them")
    described = experiment.read(config)
    folder = described.store if store is None else store
    if merge_check:
        _merge_check(folder)
        return
    job = _job(described, folder, shard, workers, scheduler)
    finished = job.finished()
    if dry_run:
        _dry_run(job, finished)
        return
    for line in _intentions(job, finished):
        _tell(ERR, line)
    result = _run(job)
    (OUT if OUT.is_terminal else Console(width=WIDE)).print(ensemble_table(result))
    for line in _whereabouts(job, result):
        _tell(OUT, line)
    if json is not None:
        _tell(ERR, f"wrote {write_atomically(json, results.to_json(summary(result)))}")


@app.command()
def info() -> None:
    """Print versions, the engines of `simulate` that are there, and why one is missing."""
    for line in installation():
        OUT.print(line, highlight=False, markup=False, soft_wrap=True)


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


def _merge_check(folder: Path) -> None:
    """Exit status 1 unless everything is there."""
    with show.progress(ERR) as bar:
        found = inventory(folder, bar("reading"))
    _tell(OUT, found.sentence)
    if not found.complete:
        raise typer.Exit(1)


def _job(described: Experiment, folder: Path, shard: str | None, workers: int | None, scheduler: str | None) -> Job:
    """Workers or a scheduler on the command line replace both of the file."""
    if workers is not None and scheduler is not None:
        raise InputError("--workers are processes on this machine, --scheduler computes elsewhere; give one of the two")
    if workers is None and scheduler is None:
        compute = described.configuration.compute
        workers, scheduler = compute.workers, compute.scheduler
    part = None if shard is None else _shard(shard)
    if not folder.exists():
        check_writable(folder)
    return Job(described.plan(), folder, part, workers, scheduler)


def _intentions(job: Job, finished: set[int]) -> list[str]:
    lines = [job.plan.sentence, f"results in {job.store.resolve()}"]
    if finished:
        lines[-1] += f", where {len(finished)} of {job.plan.layout.pieces} pieces are finished"
    if job.shard is not None:
        index, count = job.shard
        lines.append(f"shard {index}/{count}: {len(job.pieces)} of the pieces")
    return lines


def _dry_run(job: Job, finished: set[int]) -> None:
    plan, seconds = job.plan, experiment.piece_seconds(job.plan)
    for line in _intentions(job, finished):
        _tell(OUT, line)
    files = plan.layout.pieces * (len(plan.layout.fields) + 1)
    _tell(OUT, f"size on disk: about {in_bytes(plan.nbytes)}, in {files:,} files and some more")
    _tell(OUT, f"memory: about {in_bytes(plan.nbytes_at_work)} per worker, beside Python and PyTorch themselves")
    left = [piece for piece in range(plan.layout.pieces) if piece not in finished]
    _tell(OUT, f"time: {_time(job, [seconds[piece] for piece in left])}")
    if job.shard is not None:
        own = [seconds[piece] for piece in job.pieces if piece not in finished]
        _tell(OUT, f"time for this shard: {_time(job, own)}")


def _time(job: Job, seconds: list[float]) -> str:
    if not seconds:
        return "nothing is left to do"
    found = experiment.together(job.plan, seconds, job.workers)
    if job.scheduler is not None:
        return f"about {duration(found.core_seconds)} of one core, to be divided by those of the cluster"
    core = "" if found.workers == 1 else f", {duration(found.core_seconds)} of one core"
    return f"about {duration(found.seconds)} with {found.workers} worker{'s' * (found.workers > 1)}{core}"


def _run(job: Job) -> xr.Dataset:
    try:
        with _warnings_as_lines(), ensemble_progress(ERR) as progress:
            return job.run(progress)
    except KeyboardInterrupt:
        done = len(job.finished().intersection(job.pieces))
        _tell(
            ERR, f"interrupted: {done} of {len(job.pieces)} pieces are finished; the same command continues", "bold red"
        )
        raise typer.Exit(130) from None


def _whereabouts(job: Job, result: xr.Dataset) -> list[str]:
    """Where the results are, how much of them, and how to open them."""
    finished, pieces = result.attrs["pieces_finished"], result.attrs["pieces"]
    store = str(job.store.resolve())
    lines = [f"results in {store}"]
    if finished < pieces:
        lines[0] += f": {finished} of {pieces} pieces are finished, and the table is about those"
    return [*lines, f"  shotnoise.simulate.load({store!r})", f"  xarray.open_zarr({store!r}, consolidated=False)"]


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def tell(message: Warning | str, *where: Any, **rest: Any) -> None:
        _tell(ERR, f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        yield


def _tell(console: Console, line: str, style: str = "") -> None:
    """One line as it is: paths are not broken, nor read as markup."""
    console.print(Text(line, style), soft_wrap=True)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {text!r}: expected I/N with I = 1 .. N, such as 3/100")
    return int(match[1]), int(match[2])


def _problem(
    given: str | None, data: str | None, model: str, data_dir: Path | None, target: str | None, l2: float, seed: int
) -> Problem:
    if (given is None) == (data is None):
        raise InputError("say what to measure: --data (digits, mnist, a CSV file, ...) or --problem module:function")
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


def _scheme(name: str) -> Sampling:
    if name not in SCHEMES:
        raise InputError(f"--sampling {name!r} is not known; use one of {', '.join(SCHEMES)}")
    return SCHEMES[name]()


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected whole numbers with commas, such as 1,8,64") from None
