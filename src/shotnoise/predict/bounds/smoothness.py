"""A smoothness constant on the region that one step can reach: looked for, never certified.

    L >= sup |grad f(u) - grad f(w)| / |u - w|   over the segments from the weights to the ends of steps

What is found is the largest curvature (|eigenvalue| of the Hessian) at, and the largest such quotient between, some
points of some of the longest steps: a lower limit of L. With kinks (ReLU) the curvature alone is no Lipschitz constant
even where it is largest; the quotients see part of that.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shotnoise.measure.curvature import Hessian, extreme
from shotnoise.problem import Problem

Array = NDArray[np.float64]
POINTS = (0.0, 0.5, 1.0)  # of each step, where the curvature is taken
STEPS = 3  # of the longest
TOLERANCE = 1e-2  # of the residual; the eigenvalue is better


def largest_curvature(problem: Problem) -> float:
    """The largest |eigenvalue| of the Hessian at the problem's weights, from below, converged or not."""
    return abs(extreme(Hessian(problem, trial=False), modulus=True, tolerance=TOLERANCE).value)


def smoothness_on_steps(problem: Problem, steps: Array) -> float:
    """The largest curvature and gradient quotient found along some of the steps (k, p), taken from the weights."""
    own = problem.replica()
    start = problem.flatten(problem.parameters).detach().clone()
    lengths = np.linalg.norm(steps, axis=1)
    longest = np.argsort(lengths)[::-1][:STEPS]
    found = largest_curvature(own)
    for step in steps[longest]:
        if not step.any():
            continue
        direction = torch.as_tensor(step).to(start)
        before = None
        for share in POINTS:
            own.place(start + share * direction)
            slope = own.flatten(own.gradient()).double().cpu().numpy()
            if before is not None:
                gap = np.linalg.norm(step) * (share - before[0])
                found = max(found, float(np.linalg.norm(slope - before[1]) / gap))
            if share:
                found = max(found, largest_curvature(own))
            before = (share, slope)
    return found
