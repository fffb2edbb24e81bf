"""What the exact engines return: a polynomial in 1/b, how accurate it is, and how high it may go."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shotnoise.predict.batch_polynomial import BatchPolynomial

SMALL = 0.1  # of the leading term: what higher ones may add where a simulation is expected to agree


@dataclass(frozen=True)
class NetworkPolynomial(BatchPolynomial):
    """A polynomial in u = 1/b, and what is known about it.

    degree_bound: the highest power that can occur, reached by generic weights. printed_bounds: what the papers print
    for the gradient's variance, by theorem; some lie below degrees that occur. engine: how it was computed.
    coefficient_errors: bounds, one per coefficient, on how far rounding has taken it from the exact value for exactly
    the numbers given; zeros for Fractions. Computed along, not estimated; usually a thousand times too large.
    bounded_inputs: whether the inputs are finitely many points, so that no event is too rare to be met by runs.
    """

    degree_bound: int = 0
    printed_bounds: dict[str, int] = field(default_factory=dict)
    engine: str = ""
    coefficient_errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    bounded_inputs: bool = False

    def error(self, batch_size: float) -> float:
        """A bound on the error of the value at a batch size, its own rounding included; 0 for Fractions.

        >>> NetworkPolynomial(np.array([0.0, 2.0]), coefficient_errors=np.array([0.0, 1e-9])).error(10) < 1.1e-10
        True
        """
        if self.exact:
            return 0.0
        rounding = 2 * (len(self.coefficients) + 1) * 2.0**-53
        total = 0.0
        for c, own in zip(self.coefficients[::-1], self.coefficient_errors[::-1], strict=True):
            total = total / batch_size + own + rounding * abs(c)
        return float(total)

    @property
    def simulation_agrees_from(self) -> float:
        """The smallest batch size from which on runs can be expected to agree: 1 for bounded inputs.

        With unbounded ones, exact values are carried by events that no simulation meets wherever terms beyond 1/b
        matter: there it is `law_holds_from`.
        """
        return 1.0 if self.bounded_inputs else self.law_holds_from

    @property
    def law_holds_from(self) -> float:
        """The smallest batch size from which on terms beyond 1/b add at most a tenth of the one in 1/b.

        math.inf where there is no term in 1/b but higher ones.
        """
        leading, *higher = [abs(float(c)) for c in self.coefficients[1:]] or [0.0]
        if not any(higher):
            return 1.0
        if not leading:
            return math.inf

        def small(b: float) -> bool:
            # from the highest power down, so that no power of a large b overflows
            total = 0.0
            for c in reversed(higher):
                total = (total + c) / b
            return total <= SMALL * leading

        above = 1
        while not small(above):
            above *= 2
        below = above // 2
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (below, middle) if small(middle) else (middle, above)
        return float(above)
