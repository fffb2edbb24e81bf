"""Three studies by shotnoise alone: a linear regression, a wide teacher-student network, and one written to a store."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import shotnoise as sn
from ensemble_cases import (
    BATCH,
    RATE,
    REGRESSION_BATCH,
    REGRESSION_RATE,
    TEACHER_BATCH,
    TEACHER_RATE,
    batches,
    gauss,
    largest_difference,
    regression,
    regression_by_definition,
    teacher,
    whole,
)
from ensemble_timing import Work, timed
from protocol import FEWEST, clocked

REGRESSION_RUNS, REGRESSION_STEPS = 1024, 500
CHECKED_RUNS, CHECKED_STEPS, TOLERANCE = 8, 50, 1e-4
STORE_RUNS, STORE_STEPS = 4096, 400
RUNS, STEPS = 1000, 1000  # of the teacher-student study, and of the part of it that stands for all
SMALL_RUNS, SMALL_STEPS = 64, 100
RECORDS = ("gradient_variance", "full_gradient_variance")
LOOK_EVERY = 0.1  # seconds between two looks at the memory of another process


# ---- linear regression ------------------------------------------------------------------------------------------


def regression_study(rounds: int) -> dict[str, Any]:
    """Microseconds per run-step with and without replacement, drawing the batches included."""
    problem = regression()
    works, differences = {}, {}
    for sampling in (sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()):
        name = "with replacement" if isinstance(sampling, sn.sampling.WithReplacement) else "without replacement"
        differences[name] = check_regression(problem, sampling)
        plan = regression_plan(problem, sampling, REGRESSION_RUNS, REGRESSION_STEPS)
        works[name] = Work(whole(plan), REGRESSION_RUNS * REGRESSION_STEPS, plan.block)
    return {"rows": timed(works, rounds), "largest_difference": differences}


def regression_plan(problem: sn.Problem, sampling: Any, runs: int, steps: int, **options: Any) -> Any:
    options = {"record": ["minibatch_loss"], "every": steps} | options
    return sn.simulate.plan(
        problem, sn.rules.SGD(REGRESSION_RATE), REGRESSION_BATCH, steps, runs, sampling=sampling, **options
    )


def check_regression(problem: sn.Problem, sampling: Any) -> float:
    at_end = sn.simulate.weights(steps=[CHECKED_STEPS])
    plan = regression_plan(problem, sampling, CHECKED_RUNS, CHECKED_STEPS, record=[at_end])
    drawn = batches(plan, REGRESSION_BATCH, CHECKED_STEPS)
    found = largest_difference(whole(plan)()[0]["weights"][:, 0], regression_by_definition(problem, drawn))
    if not found < TOLERANCE:
        raise SystemExit(f"regression, {sampling!r}: weights differ from the definition's by {found:.1e}")
    return found


# ---- ten thousand runs ------------------------------------------------------------------------------------------


def gauss_study(full: bool) -> dict[str, Any]:
    """Seconds of 10,000 runs x 400 steps with the full loss at every step, or of a tenth, with workers and a store."""
    runs, steps = (10_000 if full else 1_000), 400
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), _cpu_of_all()
        found = sn.simulate(
            gauss(), sn.rules.SGD(RATE), BATCH, steps, runs, store=Path(folder) / "study.zarr",
            workers=len(os.sched_getaffinity(0)),
        )  # fmt: skip
        wall, cpu = time.perf_counter() - start, _cpu_of_all() - before
        if not np.isfinite(found["loss"].mean("run")).all():
            raise SystemExit("the mean loss is not finite")
    return {"runs": runs, "steps": steps, "engine": found.attrs["engine"], "wall_seconds": wall, "cpu_seconds": cpu}


def _cpu_of_all() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


# ---- what a store adds ------------------------------------------------------------------------------------------


def store_study(rounds: int) -> dict[str, Any]:
    """The Gauss-10 study, full loss at every step, in memory and with store=; all files written inside the clock."""
    problem = gauss()
    with tempfile.TemporaryDirectory() as folder:
        stores = (Path(folder) / str(k) for k in range(10**6))

        def study(store: Path | None) -> xr.Dataset:
            return sn.simulate(problem, sn.rules.SGD(RATE), BATCH, STORE_STEPS, STORE_RUNS, store=store, workers=1)

        kept, stored = study(None), study(next(stores)).load()
        xr.testing.assert_equal(kept, stored)
        calls = {"in memory": lambda: study(None), "with a store": lambda: study(next(stores))}
        taken = clocked(calls, max(FEWEST, rounds // 2))
        size = sum(f.stat().st_size for f in (Path(folder) / "0").rglob("*") if f.is_file())
    rows = {
        name: {
            "cpu_seconds": min(cpu for cpu, _ in calls),
            "wall_seconds": min(wall for _, wall in calls),
            "cpu_median": float(np.median([cpu for cpu, _ in calls])),
            "calls": len(calls),
        }
        for name, calls in taken.items()
    }
    ratios = {
        clock: rows["with a store"][clock] / rows["in memory"][clock] for clock in ("cpu_seconds", "wall_seconds")
    }
    return {"rows": rows, "ratio": ratios, "bytes": size, "runs": STORE_RUNS, "steps": STORE_STEPS}


# ---- teacher and student ----------------------------------------------------------------------------------------


def teacher_study(rounds: int, full: bool) -> dict[str, Any]:
    """A part of the study in fresh processes, which is scaled up to all of it; with `full` all of it as well."""
    parts: dict[str, Any] = {"difference": check_teacher(), "rows": {}}
    for records in (RECORDS[:1], RECORDS):
        tries = [in_fresh_process(SMALL_RUNS, SMALL_STEPS, 1, records) for _ in range(max(3, rounds // FEWEST))]
        best = min(tries, key=lambda found: found["cpu_seconds"])
        scale = RUNS * STEPS / (SMALL_RUNS * SMALL_STEPS)
        parts["rows"][", ".join(records)] = best | {
            "peak_bytes": max(found["peak_bytes"] for found in tries),
            "whole_minutes_on_two_cores": best["cpu_seconds"] * scale / 2 / 60,
        }
    if full:
        parts["whole"] = in_fresh_process(RUNS, STEPS, 2, RECORDS[:1])
    return parts


def check_teacher() -> float:
    """The full gradient is the closed form: that of 1/2 ||(W2 W1 - T) x||^2 over x from N(0, I)."""
    population = teacher()
    assert population.full_quantities == "closed form"
    w1, w2 = (p.detach().double() for p in population.problem.parameters.values())
    error = w2 @ w1 - population.teacher(torch.eye(64)).T.double()
    expected = torch.cat([(w2.T @ error).flatten(), (error @ w1.T).flatten()])
    found = torch.cat([g.flatten() for g in population.problem.gradient().values()])
    difference = largest_difference(found.double().numpy(), expected.detach().numpy())
    if not difference < TOLERANCE:
        raise SystemExit(f"the full gradient differs from the closed form by {difference:.1e}")
    return difference


def study_in_this_process(runs: int, steps: int, workers: int, records: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of the study alone, and its first and last record."""
    population = teacher()
    with tempfile.TemporaryDirectory() as folder:
        start, clock = time.perf_counter(), sum(_cpu_seconds())
        found = sn.simulate(
            population, sn.rules.SGD(TEACHER_RATE), TEACHER_BATCH, steps, runs, record=records,
            store=Path(folder) / "store", workers=workers,
        )  # fmt: skip
        wall, cpu = time.perf_counter() - start, sum(_cpu_seconds()) - clock
        ends = {name: [float(found[name].isel(step=k, batch_size=0)) for k in (0, -1)] for name in records}
        assert int(found["runs_excluded"].max()) == 0 and bool(np.isfinite(found[records[0]]).all())
    return {"runs": runs, "steps": steps, "workers": workers, "wall_seconds": wall, "cpu_seconds": cpu, "ends": ends}


def in_fresh_process(runs: int, steps: int, workers: int, records: tuple[str, ...]) -> dict[str, Any]:
    """A study and the largest memory of its process and that one's children together, looked at every 0.1 seconds."""
    program = Path(__file__).with_name("ensembles.py")
    command = [sys.executable, str(program), "--child", str(runs), str(steps), str(workers), ",".join(records)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(LOOK_EVERY):
            peak = max(peak, resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(output) | {"peak_bytes": peak}


def resident_bytes(process: int) -> int:
    """Of a process and all its descendants, pages that they share counted for each (Linux; 0 elsewhere)."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = [
            child for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:  # over in between
        return 0
    return pages * resource.getpagesize() + sum(resident_bytes(int(child)) for child in children)


def _cpu_seconds() -> list[float]:
    """Of this process and of its children that are done."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [u.ru_utime + u.ru_stime for u in used]
