"""`shotnoise simulate`."""

import re
from pathlib import Path
from typing import Annotated

import typer
import xarray as xr

from shotnoise import experiment, results, show
from shotnoise.cli.common import ERR, OUT, print_table, tell, warnings_as_lines
from shotnoise.errors import InputError
from shotnoise.experiment import Experiment, Job
from shotnoise.files import check_writable, write_atomically
from shotnoise.show.ensemble_progress import duration, ensemble_progress
from shotnoise.show.ensemble_table import ensemble_table
from shotnoise.simulate.outcome import summary
from shotnoise.simulate.plan import in_bytes
from shotnoise.simulate.store import inventory


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
        tell(ERR, line)
    result = _run(job)
    print_table(ensemble_table(result))
    for line in _whereabouts(job, result):
        tell(OUT, line)
    if json is not None:
        tell(ERR, f"wrote {write_atomically(json, results.to_json(summary(result)))}")


def _merge_check(folder: Path) -> None:
    """Exit status 1 unless everything is there."""
    with show.progress(ERR) as bar:
        found = inventory(folder, bar("reading"))
    tell(OUT, found.sentence)
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
        tell(OUT, line)
    files = plan.layout.pieces * (len(plan.layout.fields) + 1)
    tell(OUT, f"size on disk: about {in_bytes(plan.nbytes)}, in {files:,} files and some more")
    tell(OUT, f"memory: about {in_bytes(plan.nbytes_at_work)} per worker, beside Python and PyTorch themselves")
    left = [piece for piece in range(plan.layout.pieces) if piece not in finished]
    tell(OUT, f"time: {_time(job, [seconds[piece] for piece in left])}")
    if job.shard is not None:
        own = [seconds[piece] for piece in job.pieces if piece not in finished]
        tell(OUT, f"time for this shard: {_time(job, own)}")


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
        with warnings_as_lines(), ensemble_progress(ERR) as progress:
            return job.run(progress)
    except KeyboardInterrupt:
        done = len(job.finished().intersection(job.pieces))
        tell(
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


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {text!r}: expected I/N with I = 1 .. N, such as 3/100")
    return int(match[1]), int(match[2])
