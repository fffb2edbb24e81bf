"""What a training step costs with the optimizers of `shotnoise.optim`, beside those of torch: the benchmark's MLP.

    .venv/bin/python benchmarks/optim.py [--rounds 15]

A step: forward and backward pass on a batch of 256, the optimizer, `zero_grad`; a call is 8 steps, so that what is done
at every fourth step is in it. CPU time as in `protocol`, in units of torch.optim.SGD(foreach=True). First the
per-sample norms are held against a loop over samples. Writes results/optim.json.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import shotnoise as sn
from cases import CASES
from methods import plain_loop
from protocol import cpu_seconds, save

STEPS = 8
TARGET = 1.3
BASE = "SGD, foreach"
Build = Callable[[torch.nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    BASE: lambda m: torch.optim.SGD(m.parameters(), 1e-3, foreach=True),
    "SGD, for loop": lambda m: torch.optim.SGD(m.parameters(), 1e-3, foreach=False),
    "SGD, momentum, foreach": lambda m: torch.optim.SGD(m.parameters(), 1e-3, momentum=0.9, foreach=True),
    "Adam, foreach": lambda m: torch.optim.Adam(m.parameters(), 1e-4, foreach=True),
    "AdamW, foreach": lambda m: torch.optim.AdamW(m.parameters(), 1e-4, foreach=True),
    "AdaptiveSGD": lambda m: sn.optim.AdaptiveSGD(m.parameters(), sn.optim.Observed(m), 100.0),
    "AdaptiveSGD, every=4": lambda m: sn.optim.AdaptiveSGD(m.parameters(), sn.optim.Observed(m), 100.0, every=4),
    "PreconditionedSGD (every=4)": lambda m: sn.optim.PreconditionedSGD(m.parameters(), sn.optim.Observed(m), 100.0),
    "PreconditionedSGD, every=1": lambda m: sn.optim.PreconditionedSGD(
        m.parameters(), sn.optim.Observed(m), 100.0, every=1
    ),
}
JUDGED = ("AdaptiveSGD", "PreconditionedSGD (every=4)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each (at least 5)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES["mlp"]
    model, (x, y) = case.model(), case.data()
    error = check(deepcopy(model), x, y)
    taken = cpu_seconds(
        {name: steps(build, deepcopy(model), x, y) for name, build in OPTIMIZERS.items()}, chosen.rounds
    )
    base = min(taken[BASE])
    rows: list[dict[str, Any]] = [
        {
            "optimizer": name,
            "ms": 1e3 * min(times) / STEPS,
            "ratio": min(times) / base,
            "ratio_of_medians": sorted(times)[len(times) // 2] / sorted(taken[BASE])[len(taken[BASE]) // 2],
            "calls": len(times),
        }
        for name, times in taken.items()
    ]
    table = Table(title=f"one step of the MLP, batch {case.batch}, 1 thread; target {TARGET} x SGD")
    for heading in ("optimizer", "CPU ms", "x SGD", "x SGD (medians)", ""):
        table.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for row in rows:
        met = ("met" if row["ratio"] <= TARGET else "MISSED") if row["optimizer"] in JUDGED else ""
        table.add_row(
            row["optimizer"], f"{row['ms']:.1f}", f"{row['ratio']:.2f}", f"{row['ratio_of_medians']:.2f}", met
        )
    Console(width=110).print(table)
    report = {"case": case.name, "batch": case.batch, "rounds": chosen.rounds, "target": TARGET, "rows": rows}
    print("written:", save("optim", {**report, "noise_trace_relative_error": error}))


def steps(build: Build, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = build(model)

    def call() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    for _ in range(2):
        call()  # past the warm-up of the averages
    return call


def check(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The variance of the gradient that a step reads, against that of the loop over samples. Exits if it differs."""
    noise = sn.optim.Observed(model)
    parameters = list(model.parameters())
    noise.bind(parameters, by_coordinate=False)
    F.cross_entropy(model(x), y).backward()
    squares = [float(p.grad.double().square().sum()) for p in parameters]
    found = sum(noise.variances(parameters, squares))
    true = float(plain_loop(model, x, y)["trace"]) / (len(x) - 1)
    error = abs(found - true) / true
    noise.close()
    if not error < 1e-4:
        raise SystemExit(f"the variance differs from the plain loop by {error:.1e}")
    return error


if __name__ == "__main__":
    main()
