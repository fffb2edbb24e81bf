"""SGD on a linear model from its definition: every sample moves z = (1, w, m) by a matrix, and E z z^T by their mean.

A batch of S moves z by the mean of S independent such matrices. No formula for the noise is used. Gaussians are exact
here through Gauss-Hermite points: three per direction have the moments of a Gaussian up to the fifth.
"""

from itertools import product

import numpy as np


def gaussian_points(cov):
    """Points (n, d) and probabilities (n,) with the moments of N(0, cov) up to order five."""
    cov = np.asarray(cov, float)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))
    nodes = np.array(list(product((-np.sqrt(3), 0.0, np.sqrt(3)), repeat=len(cov))))
    weights = np.where(nodes == 0, 2 / 3, 1 / 6).prod(1)
    return nodes @ root.T, weights


def observed(A, u, label_variance=0.0, B=None):
    """Points x (n, p), y (n,) and probabilities of the observed Gaussian pair."""
    A, u = np.asarray(A, float), np.asarray(u, float)
    K, c = A + (0 if B is None else np.asarray(B)), A @ u
    joint = np.block([[K, c[:, None]], [c[None], np.array([[u @ c + label_variance]])]])
    points, weights = gaussian_points(joint)
    return points[:, :-1], points[:, -1], weights


class Twin:
    def __init__(self, x, y, probabilities, rate, batch, momentum=0.0, penalty=None):
        n, p = x.shape
        self.p, self.x, self.y, self.probabilities = p, x, y, probabilities
        rate = np.asarray(rate, float) * np.eye(p) if np.ndim(rate) == 0 else np.asarray(rate)
        self.penalty = (
            np.zeros((p, p))
            if penalty is None
            else np.asarray(penalty, float) * np.eye(p)
            if np.ndim(penalty) == 0
            else np.asarray(penalty)
        )
        gradient = np.zeros((n, p, 2 * p + 1))  # of the sample, as a linear function of z
        gradient[:, :, 1 : p + 1] = x[:, :, None] * x[:, None, :] + self.penalty
        gradient[:, :, 0] = -x * y[:, None]
        self.gradient = gradient
        velocity = gradient.copy()
        velocity[:, :, p + 1 :] += momentum * np.eye(p)
        self.step = np.zeros((n, 2 * p + 1, 2 * p + 1))
        self.step[:, 0, 0] = 1
        self.step[:, 1 : p + 1] = -np.einsum("ij,njk->nik", rate, velocity)
        self.step[:, 1 : p + 1, 1 : p + 1] += np.eye(p)
        self.step[:, p + 1 :] = velocity
        self.batch = batch

    def operator(self, homogeneous=False):
        """What moves vec E z z^T; homogeneous: of (w, m) alone, without the labels' part."""
        step = self.step[:, 1:, 1:] if homogeneous else self.step
        d = step.shape[1]
        flat = step.reshape(len(step), -1)
        single = np.einsum("na,n,nb->ab", flat, self.probabilities, flat).reshape(d, d, d, d)
        single = single.transpose(0, 2, 1, 3).reshape(d * d, d * d)
        mean = np.tensordot(self.probabilities, step, 1)
        return single / self.batch + (1 - 1 / self.batch) * np.kron(mean, mean)

    def radius(self):
        return np.abs(np.linalg.eigvals(self.operator(homogeneous=True))).max()

    def stationary(self, doublings=13):
        """Mean, covariance of w, averaged covariance of the batch gradient, mean loss with penalty."""
        operator, p = self.operator(), self.p
        for _ in range(doublings):
            operator = operator @ operator
        start = np.zeros((2 * p + 1, 2 * p + 1))
        start[0, 0] = 1
        M = (operator @ start.reshape(-1)).reshape(start.shape)
        mean = M[0, 1 : p + 1]
        second = np.einsum("nij,jk,nlk,n->il", self.gradient, M, self.gradient, self.probabilities)
        full = np.tensordot(self.probabilities, self.gradient, 1)
        noise = (second - full @ M @ full.T) / self.batch
        residual = np.column_stack([-self.y, self.x])
        W = M[: p + 1, : p + 1]
        loss = 0.5 * np.einsum("n,ni,ij,nj->", self.probabilities, residual, W, residual)
        loss += 0.5 * np.trace(self.penalty @ W[1:, 1:])
        return {
            "mean": mean,
            "covariance": W[1:, 1:] - np.outer(mean, mean),
            "noise": noise,
            "loss": loss,
            "second": W[1:, 1:],
        }
