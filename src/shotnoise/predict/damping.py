"""What damps a stationary covariance under SGD with momentum, entry by entry where the mean dynamics is diagonal.

A unit kick to w <- (1 + mu - a l) w - mu w_before moves it by h_n after n steps, and white noise C gives
P_ij = a^2 C_ij sum_n h_n(l_i) h_n(l_j) = C_ij / (slope_ij / a + offset_ij).
"""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def slope(curvatures: Array, momentum: float) -> Array:
    """(1 - mu) (l_i + l_j), (r, r)."""
    found: Array = (1 - momentum) * (curvatures[:, None] + curvatures)
    return found


def offset(curvatures: Array, momentum: float) -> Array:
    """[mu (l_i - l_j)^2 - (1 - mu)^2 l_i l_j] / (1 - mu^2), (r, r).

    >>> import numpy as np
    >>> offset(np.array([1.0, 2.0]), 0.0).tolist()
    [[-1.0, -2.0], [-2.0, -4.0]]
    """
    product, difference = curvatures[:, None] * curvatures, curvatures[:, None] - curvatures
    found: Array = (momentum * difference**2 - (1 - momentum) ** 2 * product) / (1 - momentum**2)
    return found
