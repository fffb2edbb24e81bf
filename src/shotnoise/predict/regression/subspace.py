"""With fewer samples than features the noise lives in the row space of the data: work there, and carry the rest along.

w = V c + rest, V (p, r) an orthonormal basis of the rows of X. The rest feels the penalty alone and has no noise.
"""

from dataclasses import dataclass, replace

import numpy as np

from shotnoise.predict.regression.least_squares import Array, LeastSquares


@dataclass(frozen=True)
class Reduced:
    """problem and coordinates (k, r) in the basis V (p, r), or as they were (basis None); rest (steps + 1, k, p)."""

    problem: LeastSquares
    start: Array
    coordinates: Array
    basis: Array | None
    rest: Array


def reduce(problem: LeastSquares, start: Array, rates: Array, momentum: float) -> Reduced:
    if problem.n >= problem.p:
        return Reduced(problem, start, start, None, np.zeros((len(rates) + 1, 1, 1)))
    _, values, rows = np.linalg.svd(problem.x, full_matrices=False)
    kept = values > values[0] * max(problem.x.shape) * np.finfo(np.float64).eps
    basis = rows[kept].T
    coordinates = start @ basis
    rest, velocity = [start - coordinates @ basis.T], np.zeros_like(start)
    for a in rates:
        velocity = momentum * velocity + problem.l2 * rest[-1]
        rest.append(rest[-1] - a * velocity)
    return Reduced(replace(problem, x=problem.x @ basis), start, coordinates, basis, np.array(rest))
