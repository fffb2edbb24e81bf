"""Step sizes from the noise: what the oracle gains, what an estimate keeps of it, and why the batch must not choose.

    python examples/adaptive_steps.py

Logistic regression (200 samples, 20 features, batch 5, 1,500 steps), L known exactly. Four ways to choose the
step, by the squared norm of the full gradient that is left (median over the last 200 steps, geometric mean of runs):
the exact ratio, its estimate from the batches before, a constant step, and the ratio of the batch itself.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import shotnoise as sn

N, FEATURES, BATCH = 200, 20, 5
Step = Callable[[torch.Tensor, torch.Tensor], None]


def main(steps: int = 1500, runs: int = 2) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(N, FEATURES)))
    y = (torch.sigmoid(x @ torch.as_tensor(rng.normal(size=FEATURES))) > torch.as_tensor(rng.random(N))).long()
    smoothness = float(torch.linalg.eigvalsh(x.T @ x).max()) / (2 * N)  # of two-class softmax without biases
    left = {
        name: np.exp(np.mean([np.log(train(name, x, y, smoothness, steps, r)) for r in range(runs)])) for name in WAYS
    }
    for name, value in left.items():
        print(f"{name:28s} ||mu||^2 = {value:.2g}")
    constant, same = left["constant step, 0.1 / L"], left["ratio of the same batch"]
    assert max(left["exact ratio"], left["estimated ratio"]) < constant < same


def exact(model: nn.Module, problem: sn.Problem, smoothness: float) -> Step:
    optimizer = sn.optim.AdaptiveSGD(model.parameters(), sn.optim.Exact(problem, BATCH), smoothness)
    return lambda x, y: ordinary(optimizer, model, x, y)


def estimated(model: nn.Module, problem: sn.Problem, smoothness: float) -> Step:
    optimizer = sn.optim.AdaptiveSGD(model.parameters(), sn.optim.Observed(model), smoothness, beta=0.995)
    return lambda x, y: ordinary(optimizer, model, x, y)


def constant(model: nn.Module, problem: sn.Problem, smoothness: float) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), 0.1 / smoothness)
    return lambda x, y: ordinary(optimizer, model, x, y)


def same_batch(model: nn.Module, problem: sn.Problem, smoothness: float) -> Step:
    """What the optimizers here avoid: with beta = 0 and a second look at the batch that is about to be used."""
    optimizer = sn.optim.AdaptiveSGD(model.parameters(), sn.optim.Observed(model), smoothness, beta=0.0, warmup=1)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.param_groups[0]["lr"] = 0.0
        ordinary(optimizer, model, x, y)  # only looks
        optimizer.param_groups[0]["lr"] = 1.0
        ordinary(optimizer, model, x, y)

    return step


def ordinary(optimizer: torch.optim.Optimizer, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


WAYS = {
    "exact ratio": exact,
    "estimated ratio": estimated,
    "constant step, 0.1 / L": constant,
    "ratio of the same batch": same_batch,
}


def train(name: str, x: torch.Tensor, y: torch.Tensor, smoothness: float, steps: int, seed: int) -> float:
    """The median of ||mu||^2 over the last 200 steps."""
    model = nn.Linear(FEATURES, 2, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    step = WAYS[name](model, sn.Problem(model, "cross_entropy", x, y), smoothness)
    rng, late = np.random.default_rng(seed), []
    for t in range(steps):
        batch = torch.as_tensor(rng.integers(N, size=BATCH))
        step(x[batch], y[batch])
        if t >= steps - 200:
            with torch.no_grad():
                residual = torch.softmax(x @ model.weight.T, 1) - F.one_hot(y, 2)
                late.append(float((residual.T @ x / N).square().sum()))
    return float(np.median(late))


if __name__ == "__main__":
    main()
