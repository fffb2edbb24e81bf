"""What one noisy gradient step is guaranteed to gain, and the step size that gains most.

With mu the full gradient, g the minibatch gradient, M = E||g||^2 its second moment (Tr M^(m) of the paper) and L a
Lipschitz constant of the gradient along the step, a step eta = c rho / L with

    rho = ||mu||^2 / M,  in [0, 1]         changes the loss by        E Delta <= -(c - c^2/2) ||mu||^4 / (L M)

so the expected loss falls for 0 < c < 2, most for c = 1. The same holds with a step for each block of coordinates (down
to single ones), the right-hand side then being the sum over the blocks, which is at least as good by Cauchy-Schwarz.
eta may depend on the past but not on the batch that g comes from.

Source: Li, Gu, Zhou, Chen, Banerjee, sec. 5.4, Theorem 3, with M of the minibatch in place of M of a single sample, the
fourth power in the diagonal form, and the constant of statement (2) as its proof gives it on all of the window (35).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shotnoise.errors import InputError

WINDOW = (0.5, 1.5)  # of c, eq. (35): an estimate of rho that is off by less than half


def signal_ratio(square: Any, second_moment: Any) -> NDArray[np.float64]:
    """rho = ||mu||^2 / E||g||^2 clipped to [0, 1], entry by entry; 0 where there is no gradient (0/0) or square < 0.

    >>> signal_ratio([0.25, -1.0, 0.0, 2.0], [0.425, 1.0, 0.0, 1.0]).round(4).tolist()
    [0.5882, 0.0, 0.0, 1.0]
    """
    a, b = np.asarray(square, dtype=float), np.asarray(second_moment, dtype=float)
    return np.clip(np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b > 0), 0.0, 1.0)


def window(square: Any, second_moment: Any, smoothness: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The open interval (35), (36) of step sizes, 1/2 to 3/2 times rho / L: 3/4 of the best gain are sure there.

    square, second_moment: ||mu||^2 and E||g||^2, of all coordinates together, of blocks, or of each.

    >>> low, high = window(0.25, 0.425, smoothness=1.0)
    >>> round(float(low), 6), round(float(high), 6)
    (0.294118, 0.882353)
    """
    best = signal_ratio(square, second_moment) / check_smoothness(smoothness)
    return WINDOW[0] * best, WINDOW[1] * best


def guaranteed_decrease(square: ArrayLike, second_moment: ArrayLike, smoothness: float, c: float = 1.0) -> float:
    """(c - c^2/2) sum_b square_b^2 / (L second_moment_b): by how much the expected loss falls at least.

    square, second_moment: of each block that has a step of its own: one number, blocks, or all coordinates.
    Raises InputError unless 0 <= c <= 2 and L > 0.

    >>> round(guaranteed_decrease(0.25, 0.425, smoothness=1.0), 10)
    0.0735294118
    """
    if not 0 <= c <= 2:
        raise InputError(f"c={c}: steps of c rho / L make the expected loss fall for 0 < c < 2 only; try c=1")
    gain = signal_ratio(square, second_moment) * np.maximum(np.asarray(square, dtype=float), 0)
    return (c - c**2 / 2) * float(gain.sum()) / check_smoothness(smoothness)


def steps_needed(gap: float, smoothness: float, noise: float, target: float, c: float | None = None) -> int:
    """Steps after which min_t E||mu_t||^2 <= target: ceil(L / (c - c^2/2) gap (noise + target) / target^2).

    gap: f(theta_0) - inf f. noise: a bound on the variance of the minibatch gradient, sigma^2 / m. c: where in the
    window; None for anywhere inside it, which takes 8 L / 3 (the printed 2 L is right for c = 1 only).
    Raises InputError for numbers out of range.

    >>> steps_needed(gap=1.0, smoothness=1.0, noise=0.0, target=0.5), steps_needed(1.0, 1.0, 0.0, 0.5, c=1.0)
    (6, 4)
    """
    if gap < 0 or noise < 0 or not target > 0:
        raise InputError(f"gap={gap}, noise={noise}, target={target}: expected gap >= 0, noise >= 0 and target > 0")
    if c is not None and not 0 < c < 2:
        raise InputError(f"c={c}: nothing is guaranteed outside 0 < c < 2; try c=1, or None for all of the window")
    worst = WINDOW[0] - WINDOW[0] ** 2 / 2 if c is None else c - c**2 / 2
    return math.ceil(check_smoothness(smoothness) / worst * gap * (noise + target) / target**2)


def check_smoothness(value: float) -> float:
    """Raise InputError unless this can be a Lipschitz constant."""
    if not 0 < value < math.inf:
        raise InputError(f"smoothness={value}: a Lipschitz constant of the gradient is positive and finite")
    return float(value)
