"""With fewer samples than features the noise lives in the row space of the data: work there, and carry the rest along.

w = V c + rest, V (p, r) an orthonormal basis of the rows of X. The rest feels the penalty alone and has no noise.
"""

from dataclasses import dataclass, replace

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array, LeastSquares


@dataclass(frozen=True)
class Reduced:
    """problem and coordinates (k, r) in the basis V, or as they were; rest (steps + 1, k, p); embedding V (p, r)."""

    problem: LeastSquares
    coordinates: Array
    rest: Array
    embedding: Array


def reduce(problem: LeastSquares, start: Array, rates: Array, momentum: float) -> Reduced:
    if problem.n >= problem.p:
        return Reduced(problem, start, np.zeros((len(rates) + 1, 1, 1)), np.eye(problem.p))
    _, values, rows = np.linalg.svd(problem.x, full_matrices=False)
    kept = values > values[0] * max(problem.x.shape) * np.finfo(np.float64).eps
    kept[0] = True  # data of zeros only still have a place
    basis = rows[kept].T
    coordinates = start @ basis
    rest, velocity = [start - coordinates @ basis.T], np.zeros_like(start)
    for a in rates:
        velocity = momentum * velocity + problem.l2 * rest[-1]
        rest.append(rest[-1] - a * velocity)
    return Reduced(replace(problem, x=problem.x @ basis), coordinates, np.array(rest), basis)
