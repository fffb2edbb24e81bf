"""Memory that norms and Gram matrix take beyond the plain pass: the peak resident set of a fresh process.

    .venv-peers/bin/python benchmarks/memory.py

One process per method and batch size does the work three times and reports its own peak; the peak of the
plain pass at the same batch size is subtracted. A line through the differences gives bytes per sample;
writing the per-sample gradients out would take 4 bytes x parameters for each. Writes results/memory.json.
"""

import argparse
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cases import CASES, Case
from methods import available
from protocol import save

BATCHES = {"mlp": (128, 256, 512, 1024, 2048), "cnn": (32, 64, 128, 256, 512)}
PLAIN = "pass: forward + backward"
METHODS = ("norms: shotnoise", "gram: shotnoise", "norms: BackPACK BatchL2Grad", "gram: nngeometry")
REPEATS = 3  # processes for each point, of which the smallest peak counts
UNIT = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in, bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, metavar=("CASE", "BATCH", "METHOD"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.child:
        name, batch, method = chosen.child
        print(peak_of_this_process(CASES[name], int(batch), method))
        return
    console = Console()
    report = {}
    for case in CASES.values():
        peaks = measure(case)
        report[case.name] = {
            "batches": BATCHES[case.name],
            "peak_bytes": peaks,
            "growth": growth(case, peaks),
        }
        console.print(table(case, peaks, report[case.name]["growth"]))
    print("written:", save("memory", {"repeats": REPEATS, "cases": report}))


def peak_of_this_process(case: Case, batch: int, wanted: str) -> int:
    """Run one method three times; the peak resident set in bytes. Exits with 3 where it cannot be had."""
    methods, _ = available(case.model(), *case.data(batch))
    run = {method.name: method.run for method in methods}.get(wanted)
    if run is None:
        raise SystemExit(3)
    for _ in range(3):
        run()
    return UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(case: Case) -> dict[str, list[int]]:
    """For each method the smallest peak (bytes) of a few processes, for each batch size."""
    points = [(method, batch) for method in (PLAIN, *METHODS) for batch in BATCHES[case.name]]
    found: dict[str, list[int]] = {}
    for method, batch in track(points, description=f"{case.name}: fresh processes", transient=True):
        peaks = [peak for _ in range(REPEATS) if (peak := in_fresh_process(case, batch, method)) is not None]
        if peaks:
            found.setdefault(method, []).append(min(peaks))
    return found


def in_fresh_process(case: Case, batch: int, method: str) -> int | None:
    command = [sys.executable, __file__, "--child", case.name, str(batch), method]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout)


def growth(case: Case, peaks: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    """By method: bytes beyond the plain pass, the line through them, and how straight it is."""
    batches = np.array(BATCHES[case.name], float)
    written_out = 4 * sum(p.numel() for p in case.model().parameters())
    found = {}
    for method in [m for m in peaks if m != PLAIN]:
        extra = np.array(peaks[method], float) - peaks[PLAIN]
        slope, start = np.polyfit(batches, extra, 1)
        found[method] = {
            "extra_bytes": extra.tolist(),
            "bytes_per_sample": slope,
            "bytes_at_zero": start,
            "largest_residual": float(np.abs(extra - start - slope * batches).max()),
            "written_out_bytes_per_sample": written_out,
        }
    return found


def table(case: Case, peaks: dict[str, list[int]], lines: dict[str, dict[str, Any]]) -> Table:
    shown = Table(title=f"{case.name}: peak resident set beyond the plain pass, MiB")
    shown.add_column("method")
    for batch in BATCHES[case.name]:
        shown.add_column(str(batch), justify="right")
    shown.add_column("KiB per sample", justify="right")
    shown.add_row(f"({PLAIN}, all of it)", *[f"{peak / 2**20:.0f}" for peak in peaks[PLAIN]], "")
    for method, line in lines.items():
        extra = [f"{value / 2**20:.1f}" for value in line["extra_bytes"]]
        shown.add_row(method, *extra, f"{line['bytes_per_sample'] / 2**10:.1f}")
    written_out = 4 * sum(p.numel() for p in case.model().parameters())
    shown.add_row("(gradients written out)", *[""] * len(BATCHES[case.name]), f"{written_out / 2**10:.1f}")
    return shown


if __name__ == "__main__":
    main()
