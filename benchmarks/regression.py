"""Exact moments of linear regression: what they cost, and how much simulation would have to be paid for the same.

    .venv-peers/bin/python benchmarks/regression.py [--large]

many    500 samples, 8 parameters, 2,000 steps, 21 batch sizes; target 1 s of CPU time
runs    the same at one batch size, b = 8, beside `simulate` on the same problem: the runs that would bring the standard
        error of the gradient variance to 1 % at every recorded step, and the ratio of both costs. Checked: they agree.
large   5,000 samples, 200 parameters, 500 steps, 8 batch sizes on two threads; goals 60 s and 2 GiB. With --large only.

Writes results/regression.json.
"""

import argparse
import json
import resource
import time
from typing import Any

import numpy as np
import torch

import shotnoise as sn
from protocol import RESULTS, cpu_seconds, save

RATE = sn.schedules.InverseTime(0.5, 1.0)
ERROR, RUNS, STEPS, EVERY = 0.01, 512, 2000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the large problem too, on two threads")
    chosen = parser.parse_args()
    path = RESULTS / "regression.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept.pop("machine", None)
    if chosen.large:
        kept["large"] = large()
        print(f"large: {kept['large']['wall_seconds']:.1f} s (target 60), {kept['large']['gib']:.2f} GiB (target 2)")
    torch.set_num_threads(1)
    x, y, start = problem(500, 7)
    sizes = sorted({b for b in range(2, 501) if b & (b - 1) == 0 or b % 40 == 0} | {500})

    def predicted(batch_sizes: list[int]) -> Any:
        return sn.predict.regression(x, y, start, RATE, batch_sizes, STEPS, intercept=True)

    taken = cpu_seconds({"21 batch sizes": lambda: predicted(sizes), "1 batch size": lambda: predicted([8])}, rounds=5)
    kept["many"] = {"batch_sizes": len(sizes), "steps": STEPS, "cpu_seconds": min(taken["21 batch sizes"])}
    print(f"many: {kept['many']['cpu_seconds']:.3f} s of CPU time (target 1)")
    kept["runs"] = runs(x, y, start, predicted([8]), min(taken["1 batch size"]))
    factor = kept["runs"]["factor"]
    print(
        f"runs: {kept['runs']['runs_needed']:,.0f} runs for {ERROR:.0%} errors, {factor:,.0f} times the cost of theory"
    )
    print("written:", save("regression", kept))


def problem(n: int, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features))
    return x, x @ rng.normal(size=features) + rng.normal(size=n), rng.normal(size=features + 1)


def runs(x: np.ndarray, y: np.ndarray, start: np.ndarray, theory: Any, seconds: float) -> dict[str, float]:
    model = torch.nn.Linear(x.shape[1], 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(start[None, :-1]))
        model.bias.fill_(float(start[-1]))
    task = sn.Problem(model, "mse", torch.from_numpy(x), torch.from_numpy(y[:, None]))
    begun = time.process_time()
    found = sn.simulate(
        task, sn.rules.SGD(RATE), [8], STEPS, RUNS, sampling=sn.sampling.WithoutReplacement(), every=EVERY,
        record=["gradient_variance"], workers=1,
    )  # fmt: skip
    taken = time.process_time() - begun
    verdict = sn.compare(theory.sel(step=found["step"]), found, variables=["gradient_variance"], alarm=1e-4)
    if not verdict.agrees:
        raise SystemExit(verdict.sentence)
    relative = (found["gradient_variance_stderr"] / found["gradient_variance"]).max().item()
    needed = RUNS * (relative / ERROR) ** 2
    return {
        "error": ERROR, "runs_needed": needed, "seconds_per_run": taken / RUNS, "theory_seconds": seconds,
        "factor": needed * taken / RUNS / seconds,
    }  # fmt: skip


def large() -> dict[str, float]:
    torch.set_num_threads(2)
    x, y, _ = problem(5000, 200)
    begun = time.perf_counter()
    sn.predict.regression(x, y, np.zeros(200), 0.001, [1, 2, 5, 10, 50, 100, 500, 1000], 500)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall_seconds": time.perf_counter() - begun, "gib": gib}


if __name__ == "__main__":
    main()
