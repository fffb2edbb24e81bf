"""Ensembles of trainings: what a step of one run costs on one core, beside JAX and a plain loop; and whole studies.

    .venv-peers/bin/python benchmarks/ensembles.py [--part speed] [--rounds 15] [--full]

    speed       Gauss-10 network, 1,150 parameters, batch 5: run-steps per second
    larger      the same with batch 50
    recording   the same with full loss, norm of the full gradient and cosine of successive gradients at every step
    regression  100 samples, 20 inputs, batch 10, 1,024 runs
    store       what writing the results to disk adds
    study       10,000 runs x 400 steps of Gauss-10 with the full loss at every step, on all cores, into a store; with
                --full all of it, else a tenth of the runs
    teacher     time and memory of 1,000 runs x 1,000 steps of a linear 64-256-128 network; with --full all of it (some
                ten minutes on two cores), else from a part

Each part checks its answers before the clock starts and prints a table; results/ensembles.json keeps the latest
numbers of every part, with their date and the load of the machine.
"""

import argparse
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from protocol import RESULTS, save

TARGETS = {"jax": 8.0, "jax recording": 5.0, "sgemm": 0.6, "loop": 40.0, "regression": 0.1, "store": 1.1, "study": 60.0}
MINUTES, GIBIBYTES = 15.0, 4.0
PARTS = ("speed", "larger", "recording", "regression", "store", "study", "teacher")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="one part only (may be given again)")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each method (at least 5)")
    parser.add_argument("--full", action="store_true", help="carry out all of the teacher-student study")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.child:
        from ensemble_studies import study_in_this_process

        *numbers, records = chosen.child
        print(json.dumps(study_in_this_process(*map(int, numbers), tuple(records.split(",")))))
        return
    console = Console(width=120)
    path = RESULTS / "ensembles.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept.pop("machine", None)
    for part in chosen.part or PARTS:
        load = os.getloadavg()[0]
        with console.status(f"{part}: {chosen.rounds} rounds"):
            found = measured(part, chosen.rounds, chosen.full)
        if part == "teacher" and "whole" in kept.get(part, {}):
            found = {"whole": kept[part]["whole"]} | found
        kept[part] = found | {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": [load, os.getloadavg()[0]],
        }
        console.print(SHOWN[part](kept[part]))
    print("written:", save("ensembles", kept))


def measured(part: str, rounds: int, full: bool) -> dict[str, Any]:
    if part in ("speed", "larger", "recording"):
        import ensemble_speed  # brings JAX, which the other parts do without

        return getattr(ensemble_speed, part)(rounds)
    import ensemble_studies as studies

    if part in ("study", "teacher"):
        return studies.gauss_study(full) if part == "study" else studies.teacher_study(rounds, full)
    return studies.regression_study(rounds) if part == "regression" else studies.store_study(rounds)


def speed_table(found: dict[str, Any]) -> Table:
    shown = _table(
        f"Gauss-10, batch {found['batch']}, one thread",
        "runs",
        "M run-steps/s",
        "CPU us",
        "median",
        "x shotnoise",
        "of sgemm",
        "(needed)",
        "",
    )
    rows = found["rows"]
    own = next(iter(rows.values()))["us"]
    for name, row in rows.items():
        flops = found.get("flops_per_run_step", {})
        share = {count: number / row["us"] / 1e3 / found["sgemm_gflops"] for count, number in flops.items()}
        shown.add_row(
            name,
            str(row["runs"] or 1),
            f"{1 / row['us']:.4f}",
            f"{row['us']:.2f}",
            f"{row['us_median']:.2f}",
            f"{row['us'] / own:.2f}",
            *(f"{share[count]:.1%}" if share else "" for count in ("usual", "needed")),
            _speed_target(name, found, own, share.get("usual")),
        )
    return shown


def _speed_target(name: str, found: dict[str, Any], own: float, share: float | None) -> str:
    """Of the machine's products, at the plain loop, and for small batches at the fastest of JAX's transformations."""
    rows = found["rows"]
    if name in ("shotnoise, native engine", "its kernel, batches given"):
        return "" if share is None else _verdict(share, least=TARGETS["sgemm"])
    transformed = [form for form in ("JAX vmap", "JAX runs outside") if form in rows]
    if found["batch"] < 10 and name == min(transformed, key=lambda form: rows[form]["us"]):
        return _verdict(rows[name]["us"] / own, least=TARGETS["jax" if share is not None else "jax recording"])
    return _verdict(rows[name]["us"] / own, least=TARGETS["loop"]) if name.startswith("plain loop") else ""


def regression_table(found: dict[str, Any]) -> Table:
    shown = _table("Linear regression, 100 x 20, batch 10, one thread", "runs", "CPU us per run-step", "median", "")
    for name, row in found["rows"].items():
        met = _verdict(row["us"], most=TARGETS["regression"])
        shown.add_row(name, str(row["runs"]), f"{row['us']:.3f}", f"{row['us_median']:.3f}", met)
    return shown


def store_table(found: dict[str, Any]) -> Table:
    shown = _table(
        f"Gauss-10, {found['runs']} runs x {found['steps']} steps, loss at every step", "CPU s", "wall s", ""
    )
    ratio = found["ratio"]
    for name, row in found["rows"].items():
        shown.add_row(name, f"{row['cpu_seconds']:.3f}", f"{row['wall_seconds']:.3f}", "")
    met = _verdict(max(ratio.values()), most=TARGETS["store"])
    shown.add_row("ratio", f"{ratio['cpu_seconds']:.3f}", f"{ratio['wall_seconds']:.3f}", met)
    return shown


def study_table(found: dict[str, Any]) -> Table:
    shown = _table("Gauss-10, batch 5, loss at every step, into a store", "runs x steps", "wall s", "CPU s", "")
    met = _verdict(found["wall_seconds"], most=TARGETS["study"] * found["runs"] / 10_000)
    size = f"{found['runs']} x {found['steps']}"
    shown.add_row(found["engine"], size, f"{found['wall_seconds']:.1f}", f"{found['cpu_seconds']:.1f}", met)
    return shown


def teacher_table(found: dict[str, Any]) -> Table:
    shown = _table("Teacher and student, 64-256-128, batch 64", "runs x steps", "wall s", "CPU s", "minutes", "GiB", "")
    rows = {
        f"{name}, scaled up": row | {"minutes": row["whole_minutes_on_two_cores"]}
        for name, row in found["rows"].items()
    }
    if "whole" in found:
        rows["gradient_variance, all of it"] = found["whole"] | {"minutes": found["whole"]["wall_seconds"] / 60}
    for name, row in rows.items():
        size = row["peak_bytes"] / 2**30
        shown.add_row(
            name,
            f"{row['runs']} x {row['steps']}",
            f"{row['wall_seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['minutes']:.1f}",
            f"{size:.2f}",
            _verdict(max(row["minutes"] / MINUTES, size / GIBIBYTES), most=1.0, number=False),
        )
    return shown


SHOWN: dict[str, Callable[[dict[str, Any]], Table]] = {
    "speed": speed_table,
    "larger": speed_table,
    "recording": speed_table,
    "regression": regression_table,
    "store": store_table,
    "study": study_table,
    "teacher": teacher_table,
}


def _table(title: str, *headings: str) -> Table:
    shown = Table(title=title)
    shown.add_column("")
    for heading in headings:
        shown.add_column(heading, justify="right")
    return shown


def _verdict(value: float, *, least: float | None = None, most: float | None = None, number: bool = True) -> str:
    met = (least is None or value >= least) and (most is None or value <= most)
    bound = f"at least {least:g} " if least is not None else f"at most {most:g} "
    return f"{bound if number else ''}{'met' if met else 'MISSED'}"


if __name__ == "__main__":
    main()
