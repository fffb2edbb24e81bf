"""What the law for large batches costs beside the plain path of gradient descent that it runs along.

    .venv-peers/bin/python benchmarks/propagation.py

An MLP 784-128-10 with cross-entropy on 1,000 Gaussian inputs, one thread, CPU time in one run. The plain path is a
bare loop in torch: forward, backward, update, nothing else.

first     `predict.propagation` with 32 probes over 100 steps; target 100 times the plain path
loss      the same with the expected loss, a third backward pass per probe, over 5 steps
second    the same with the second order from 32 probes, over 1 step

Checked in the same run: two seeds agree, and the noise at step 0 is that of `measure`. Writes results/propagation.json.
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch

import shotnoise as sn
from protocol import save

SAMPLES, PROBES, RATE, TARGET = 1000, 32, 0.1, 100.0
STEPS = {"first": 100, "loss": 5, "second": 1}
ARGUMENTS: dict[str, dict[str, Any]] = {"first": {}, "loss": {"expected_loss": True}, "second": {"order": 2}}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 784, generator=generator)
    y = torch.randint(10, (SAMPLES,), generator=generator)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.Tanh(), torch.nn.Linear(128, 10))
    problem = sn.Problem(model, "cross_entropy", x, y)

    def plain(steps: int) -> None:
        own, loss = copy.deepcopy(model), torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(own.parameters(), lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(own(x), y).backward()
            optimizer.step()

    report: dict[str, Any] = {"samples": SAMPLES, "probes": PROBES, "target": TARGET}
    for name, steps in STEPS.items():
        seconds, base, law = _timed(
            lambda steps, name=name: sn.predict.propagation(
                problem, None, RATE, steps, [16], PROBES, **ARGUMENTS[name]
            ),
            plain,
            steps,
        )
        report[name] = {"steps": steps, "cpu_seconds": seconds, "plain_cpu_seconds": base, "ratio": seconds / base}
        print(f"{name}: {seconds:.1f} s over {steps} steps, {seconds / base:.0f} times the plain path")
        if name == "first":
            _check(problem, law)
    print("written:", save("propagation", report))


def _timed(law: Callable[[int], Any], plain: Callable[[int], Any], steps: int) -> tuple[float, float, Any]:
    """The least CPU times of two calls of the law and of ten of the plain path before, between and after them."""
    law(1)
    seconds, base, found = [], [], None
    for _ in range(2):
        base += [_cpu(plain, steps)[0] for _ in range(4)]
        taken, found = _cpu(law, steps)
        seconds.append(taken)
    base += [_cpu(plain, steps)[0] for _ in range(2)]
    return min(seconds), min(base), found


def _cpu(method: Callable[[int], Any], steps: int) -> tuple[float, Any]:
    start = time.process_time()
    found = method(steps)
    return time.process_time() - start, found


def _check(problem: sn.Problem, law: Any) -> None:
    other = sn.predict.propagation(problem, None, RATE, STEPS["first"], [16], PROBES, seed=1)
    later = {"step": slice(1, None)}
    verdict = sn.compare(law.isel(later), other.isel(later), variables=["gradient_variance"], alarm=1e-4)
    if not verdict.agrees:
        raise SystemExit(verdict.sentence)
    noise, expected = float(law["gradient_variance_leading"][0]), float(sn.measure(problem)["noise_trace"])
    if abs(noise - expected) > 1e-5 * expected:
        raise SystemExit(f"the noise at step 0 is {noise}, by measure {expected}")


if __name__ == "__main__":
    main()
