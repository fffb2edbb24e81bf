"""What the per-sample quantities cost, in units of one plain forward and backward pass, beside peers.

    .venv-peers/bin/python benchmarks/per_sample.py [--rounds 15] [--case mlp]

Every result is first checked against the plain loop over samples (relative error below 1e-4, or the run
stops). Writes results/per_sample.json and prints one table per network.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cases import CASES, Case
from methods import Method, available, plain_loop, relative_error
from protocol import cpu_seconds, save

TOLERANCE = 1e-4
# At most this many plain passes, on one CPU thread.
TARGETS = {
    "mlp": {"norms": 1.10, "trace": 1.10, "gram": 1.3, "variance": 2.2},
    "cnn": {"norms": 2.0, "trace": 2.0, "gram": 2.2, "variance": 3.9},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each method (at least 5)")
    parser.add_argument("--case", choices=CASES, help="one network only")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # Peers hook modules whose inputs need no gradient, which torch remarks upon at every first layer.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    console = Console(width=110)
    report: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for case in CASES.values() if chosen.case is None else [CASES[chosen.case]]:
        with console.status(f"{case.name}: the plain loop, then {chosen.rounds} rounds"):
            rows, missing = run(case, chosen.rounds)
        report[case.name] = {"batch": case.batch, "rows": rows}
        console.print(table(case, rows))
    for what, why in missing.items():
        console.print(f"not measured: {what}: {why}")
    print("written:", save("per_sample", {"rounds": chosen.rounds, "cases": report, "not_measured": missing}))


def run(case: Case, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row per method: milliseconds, ratio to the plain pass, error against the loop."""
    model, (x, y) = case.model(), case.data()
    methods, missing = available(model, x, y)
    errors = check(methods, plain_loop(model, x, y))
    taken = cpu_seconds({method.name: method.run for method in methods}, rounds)
    plain = min(taken[methods[0].name])
    rows = [
        {
            "quantity": method.quantity,
            "tool": method.tool,
            "ms": 1e3 * min(taken[method.name]),
            "ms_median": 1e3 * sorted(taken[method.name])[len(taken[method.name]) // 2],
            "calls": len(taken[method.name]),
            "ratio": min(taken[method.name]) / plain,
            "relative_error": errors.get(method.name),
        }
        for method in methods
    ]
    order = ("pass", "norms", "trace", "gram", "variance")
    return sorted(rows, key=lambda row: order.index(row["quantity"])), missing


def check(methods: Sequence[Method], true: dict[str, torch.Tensor]) -> dict[str, float]:
    """The relative error of every method, by name. Raises SystemExit when one is not small."""
    errors = {m.name: relative_error(m.run(), true[m.quantity]) for m in methods if m.quantity != "pass"}
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    if wrong:
        raise SystemExit(f"results differ from the plain loop by more than {TOLERANCE}: {wrong}")
    return errors


def table(case: Case, rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title=f"{case.name}, batch {case.batch}, {torch.get_num_threads()} thread")
    shown.add_column("quantity")
    shown.add_column("tool")
    for heading in ("CPU ms", "x plain pass", "at most", "relative error"):
        shown.add_column(heading, justify="right")
    for row in rows:
        target = TARGETS[case.name].get(row["quantity"]) if row["tool"].startswith("shotnoise") else None
        met = "" if target is None else f"{target:.2f} {'met' if row['ratio'] <= target else 'MISSED'}"
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.0e}"
        shown.add_row(row["quantity"], row["tool"], f"{row['ms']:.1f}", f"{row['ratio']:.2f}", met, error)
    return shown


if __name__ == "__main__":
    main()
