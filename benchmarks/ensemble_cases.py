"""The problems of the ensemble benchmark, and how shotnoise and a plain loop of modules train on them.

gauss       50 - 10 - 30 - 10, ReLU, biases, 1,150 parameters, all from 0.1 N(0, 1); Gauss-10, 100 samples;
            cross-entropy, batch 5, SGD with learning rate 0.1
regression  100 samples, 20 inputs, one output without a bias; squared loss, batch 10
teacher     64 - 256 - 128, linear, no biases, taught by a matrix on N(0, I); squared loss, fresh batches of 64
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import shotnoise as sn
from shotnoise.datasets.gauss import make_gauss
from shotnoise.simulate.block import run_piece
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.streams import BATCHES, run_streams

BATCH, LARGER_BATCH, RATE = 5, 50, 0.1
REGRESSION_BATCH, REGRESSION_RATE = 10, 0.01
TEACHER_BATCH, TEACHER_RATE = 64, 0.01


def gauss() -> sn.Problem:
    data = make_gauss(10)
    model = nn.Sequential(nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 10))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.1, generator=generator)
    return sn.Problem(model, "cross_entropy", data.inputs, data.targets)


def regression() -> sn.Problem:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 20, generator=generator)
    y = x @ torch.randn(20, 1, generator=generator) + 0.5 * torch.randn(100, 1, generator=generator)
    return sn.Problem(nn.Linear(20, 1, bias=False), "mse", x, y)


def teacher() -> sn.TeacherStudent:
    torch.manual_seed(2)
    student = nn.Sequential(nn.Linear(64, 256, bias=False), nn.Linear(256, 128, bias=False))
    return sn.TeacherStudent(student, torch.randn(128, 64) / 8)


def flops_per_step(problem: sn.Problem, b: int) -> dict[str, int]:
    """Of a training step with S weights in matrices, S_1 of them in the first, and P parameters, by two counts.

    needed: 6 b S - 2 b S_1, the three products of each layer except the gradient at the inputs of the network.
    usual:  6 b S + 2 P, as the cost of training is commonly put: that gradient counts too, and so does the update.
    """
    sizes = [p.numel() for p in problem.parameters.values() if p.ndim == 2]
    products = 6 * b * sum(sizes)
    return {"needed": products - 2 * b * sizes[0], "usual": products + 2 * problem.parameter_count}


def gauss_plan(problem: sn.Problem, runs: int, steps: int, engine: str, b: int = BATCH, **options: Any) -> Plan:
    options = {"record": ["minibatch_loss"], "every": max(1, steps), "block": runs} | options
    return sn.simulate.plan(problem, sn.rules.SGD(RATE), b, steps, runs, engine=engine, **options)


def whole(plan: Plan) -> Callable[[], list[dict[str, NDArray[Any]]]]:
    """All pieces of a plan, one after the other, with one engine; drawing the batches is part of it."""
    engine, pieces = plan.engine(), [plan.layout.piece(k) for k in range(plan.layout.pieces)]
    return lambda: [run_piece(plan, piece, engine) for piece in pieces]


def batches(plan: Plan, b: int, steps: int) -> NDArray[np.int64]:
    """The indices (T, R, b) that the runs of a plan with one rule draw in their first steps."""
    streams = run_streams(plan.seed, range(plan.runs), BATCHES, (b, 0))
    return plan.sampling.draws(b, plan.problem.n, streams)(steps).transpose(1, 0, 2)


def layers(problem: sn.Problem) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    parts = [p.detach().numpy() for p in problem.parameters.values()]
    return list(zip(parts[::2], parts[1::2], strict=True))


class PlainLoop:
    """One module and one optimizer of torch per run, one run after the other, on the batches (T, R, b) given."""

    def __init__(self, problem: sn.Problem, indices: NDArray[np.int64]) -> None:
        self.x, self.y = problem.samples.inputs, problem.samples.targets
        self.models = [deepcopy(problem.model) for _ in range(indices.shape[1])]
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=RATE) for model in self.models]
        self.indices = torch.from_numpy(np.ascontiguousarray(indices.transpose(1, 0, 2)))

    def __call__(self) -> None:
        for model, optimizer, own in zip(self.models, self.optimizers, self.indices, strict=True):
            for i in own:
                optimizer.zero_grad()
                F.cross_entropy(model(self.x[i]), self.y[i]).backward()
                optimizer.step()

    def weights(self) -> NDArray[Any]:
        """(R, P)."""
        rows = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in self.models]
        return torch.stack(rows).numpy()


def regression_by_definition(problem: sn.Problem, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weights (R, d) after SGD on the batches (T, R, b), in double precision, one run and step at a time."""
    x, y = problem.samples.inputs.double().numpy(), problem.samples.targets.double().numpy()[:, 0]
    (start,) = (p.detach().double().numpy() for p in problem.parameters.values())
    weights = np.repeat(start, indices.shape[1], 0)
    for now in indices:
        for w, i in zip(weights, now, strict=True):
            w -= REGRESSION_RATE * x[i].T @ (x[i] @ w - y[i]) / len(i)
    return weights


def largest_difference(found: NDArray[Any], true: NDArray[Any]) -> float:
    """In units of the largest true entry."""
    return float(np.abs(found - true).max() / np.abs(true).max())
