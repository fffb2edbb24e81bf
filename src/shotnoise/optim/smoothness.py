"""Estimates of L, the Lipschitz constant of the gradient along the step, that do not depend on the current batch.

Neither is a certificate: curvature seen at some points bounds nothing elsewhere. For ReLU networks no finite L exists.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from shotnoise.errors import InputError
from shotnoise.problem import Problem


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
    all. every: steps from one look to the next. Costs about `iterations` Hessian-vector products on these samples.
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
        n, size = self.problem.n, self.problem.parameter_count
        chosen = None
        if self.samples is not None and self.samples < n:
            chosen = torch.as_tensor(np.sort(rng.choice(n, self.samples, replace=False)))

        def product(v: NDArray[Any]) -> NDArray[Any]:
            vector = torch.as_tensor(v.reshape(-1), dtype=self.problem.dtype, device=self.problem.device)
            found = self.problem.hessian_vector_product(self.problem.unflatten(vector), chosen)
            return self.problem.flatten(found).double().cpu().numpy()

        if size < 3:  # too small for Lanczos
            dense = np.stack([product(e) for e in np.eye(size)])
            return self.safety * float(abs(np.linalg.eigvalsh((dense + dense.T) / 2)).max())
        krylov = min(size, self.iterations)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values = eigsh(operator, k=1, ncv=krylov, tol=1e-2, v0=rng.normal(size=size), return_eigenvectors=False)
        except ArpackNoConvergence as error:
            raise InputError(
                f"Lanczos found no eigenvalue of the Hessian with iterations={self.iterations}; allow more"
            ) from error
        return self.safety * float(abs(values).max())
