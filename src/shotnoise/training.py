"""Training with measurements on the way: plain SGD on a problem, stopping at given steps to look at the noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shotnoise.errors import InputError
from shotnoise.problem import Problem
from shotnoise.sampling import Sampling


@dataclass(frozen=True)
class SGD:
    """w <- w - learning_rate * g, g the gradient of a minibatch of `batch_size` drawn by `sampling`."""

    learning_rate: float
    batch_size: int
    sampling: Sampling
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate={self.learning_rate}: a positive number, such as 0.1")


def stops(
    problem: Problem, rule: SGD, steps: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> Iterator[int]:
    """Train the problem's own model and yield each of `steps` (updates done) when it is reached.

    Changes the weights of `problem.model` in place. Raises InputError for steps that do not increase,
    NonFiniteError when the training diverges.
    """
    check_steps(steps)
    rule.sampling.check(rule.batch_size, problem.n)
    batches = rule.sampling.batches(rule.batch_size, problem.n, np.random.default_rng(rule.seed))
    done = 0
    for stop in steps:
        while done < stop:
            gradient = problem.gradient(torch.as_tensor(next(batches)))
            with torch.no_grad():
                for name, p in problem.parameters.items():
                    p.sub_(rule.learning_rate * gradient[name])
            done += 1
            if progress is not None:
                progress(done, steps[-1])
        yield stop


def check_steps(steps: Sequence[int]) -> None:
    """Raise InputError unless the steps increase from 0 on."""
    if not steps or min(steps) < 0 or sorted(set(steps)) != list(steps):
        raise InputError(f"steps {list(steps)}: increasing whole numbers from 0 on, such as 0,10,100")
