"""Estimates of L, the Lipschitz constant of the gradient along the step, that do not depend on the current batch.

Neither is a certificate: curvature seen at some points bounds nothing elsewhere. For ReLU networks no finite L exists.
"""

from dataclasses import dataclass

import numpy as np
import torch

from shotnoise.errors import InputError
from shotnoise.measure.curvature import Hessian, extreme
from shotnoise.problem import Problem

CLOSE = 1e-2  # residual of the largest eigenvalue, relative; its error is smaller
PATIENCE = 10  # times `iterations`, before the search is given up


@dataclass(frozen=True)
class Secant:
    """L from gradient differences along the steps: ||g(theta') - g(theta)|| / ||theta' - theta|| on the same batch.

    Needs `step(closure)`, whose closure is called once more on every `every`-th step, after the update (random
    numbers replayed). The largest ratio counts, times `safety`; each probe that finds less lets L fall by the factor
    `growth` at most, so that steps grow slowly. While there are no steps yet, weights are moved by `trial` times their
    own norm against the gradient and put back.
    """

    every: int = 10
    safety: float = 1.0
    growth: float = 1.1
    trial: float = 1e-3

    def __post_init__(self) -> None:
        if self.every < 1 or not self.safety > 0 or not self.growth > 1 or not self.trial > 0:
            raise InputError(
                f"{self}: expected every >= 1 steps, safety > 0, growth > 1 (a factor per probe), trial > 0"
            )

    def updated(self, before: float | None, found: float) -> float | None:
        """The next L; a ratio that is zero or not finite (a kink, a diverged probe) says nothing."""
        if not 0 < found < float("inf"):
            return before
        return self.safety * found if before is None else max(self.safety * found, before / self.growth)


@dataclass(frozen=True)
class HessianNorm:
    """L as `safety` times the largest |eigenvalue| of the Hessian at the weights of the moment, by Lanczos.

    problem: model, loss and data. samples: so many, drawn anew for each look, independently of the batches; None for
    all. every: steps from one look to the next. Costs `iterations` Hessian-vector products on these samples, and up to
    10 times as many again where they do not suffice for a residual of 1 %; where these do not either, InputError.
    """

    problem: Problem
    samples: int | None = 256
    every: int = 200
    safety: float = 1.5
    iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or not self.safety > 0 or self.iterations < 2 or (self.samples or 1) < 1:
            raise InputError(
                f"every={self.every}, safety={self.safety}, iterations={self.iterations}, samples={self.samples}: "
                "expected every >= 1 steps, safety > 0, iterations >= 2, samples >= 1 or None"
            )

    def at(self, step: int) -> float:
        """The estimate for this step; the samples depend on the seed and the step alone."""
        rng = np.random.default_rng([self.seed, step])
        problem = self.problem
        problem.examine()  # once; the problem on some of the samples knows it then
        if self.samples is not None and self.samples < problem.n:
            chosen = np.sort(rng.choice(problem.n, self.samples, replace=False))
            problem = problem.on(*problem.samples.batch(torch.as_tensor(chosen)))
        operator, seed = Hessian(problem, trial=False), int(rng.integers(2**31))
        for most in (self.iterations, PATIENCE * self.iterations):
            found = extreme(operator, modulus=True, tolerance=CLOSE, most=most, seed=seed)
            if found.converged:
                return self.safety * abs(found.value)
        raise InputError(
            f"Lanczos found no eigenvalue of the Hessian with iterations={self.iterations} (residual "
            f"{found.residual:.2g} of {abs(found.value):.4g}); allow more"
        )
