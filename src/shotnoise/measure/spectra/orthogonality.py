"""How orthogonal the rows of a Krylov basis still are, from the coefficients of its recurrence alone (Simon 1984)."""

import torch
from torch import Tensor

SLIGHT = 0.05  # of the tolerance: what a loss of orthogonality may add to a residual
NOISE = 8  # machine epsilons of the norm: what rounding adds to a product and its coefficients
ROOM = 1e4  # machine epsilons that may be lost; with fewer, as in single precision, most rows would have to be mended


class Loss:
    """W = Q Q^T as rounding is expected to leave it, the row to come included, while the basis grows row by row.

        beta w_new = (W T - T W)_last + rounding, whose sign is taken as that which makes it worse

    since A Q^T = Q^T T up to the row to come, whatever T is. While no entry of W exceeds the root of the machine's
    epsilon, T is that of an orthonormal basis to full precision. What is then taken out of the last row and the one to
    come, from which all further loss springs, is missing from the recurrence, and so from the residuals that it
    foretells: `most` is a part of their tolerance.
    """

    def __init__(self, T: Tensor, epsilon: float, tolerance: float) -> None:
        runs, capacity, _ = T.shape
        self.T, self.W, self.epsilon = T, T.new_zeros(runs, capacity + 1, capacity + 1), epsilon
        self.W[:, 0, 0] = 1
        self.most = _bearable(epsilon, tolerance)

    @staticmethod
    def can_wait(epsilon: float, tolerance: float) -> bool:
        """Whether residuals of this tolerance leave room for any loss."""
        return _bearable(epsilon, tolerance) >= ROOM * epsilon

    def spreads(self, size: int, beta: Tensor) -> bool:
        """Whether the row to come, of length beta (R, 1) before it is normalised, and the last must be mended."""
        T, W = self.T[:, :size, :size], self.W[:, :size, :size]
        row = (W[:, -1:] @ T - T[:, -1:] @ W)[:, 0]
        row[:, -1] = 0  # T has this product itself
        rounding = NOISE * self.epsilon * T.abs().amax((1, 2))[:, None]
        row = (row + torch.where(row < 0, -rounding, rounding)) / beta
        lost = not bool((row.abs() <= self.most).all())  # NaN where beta vanishes
        for j in (size - 1, size) if lost else ():
            self.W[:, j, :j] = self.W[:, :j, j] = self.epsilon
        if not lost:
            self.W[:, size, :size] = self.W[:, :size, size] = row
        self.W[:, size, size] = 1
        return lost

    def rotate(self, s: Tensor) -> None:
        """After a restart from the rows s Q, s (R, count, size)."""
        count, size = s.shape[1:]
        s = torch.nn.functional.pad(s, (0, 1, 0, 1))
        s[:, -1, -1] = 1  # the row to come
        self.W[:, : count + 1, : count + 1] = s @ self.W[:, : size + 1, : size + 1] @ s.mT


def _bearable(epsilon: float, tolerance: float) -> float:
    return min(epsilon**0.5, SLIGHT * tolerance)
