"""Curvature by layer: how eigenvectors load on the layers, diagonal blocks, Hessians of sub-networks.

    loading      l_h = (||v_h||^2 / p_h) / (||v||^2 / p), one in every layer for a vector spread evenly
    G_h          the diagonal block of H of layer h
    H_h          the block of layer h and all later ones: the Hessian of the sub-network from layer h on with its inputs
                 held fixed; H_0 = H, and G_h of the last layer is H_h

Layers are those of `Problem.layers`, in the order in which the model registers them. By interlacing the largest
eigenvalues obey G_h <= H_h <= H_0. Where the network is piecewise linear in each layer (ReLU) and the loss convex in
the outputs, every G_h is positive semi-definite. Source: Li, Gu, Zhou, Chen, Banerjee, sec. 4.4, which leaves the
normalisation of the loading open.
"""

import numpy as np
import torch
from torch import Tensor

from shotnoise.measure.spectra.operator import Array, Symmetric
from shotnoise.problem import Problem


def positions(problem: Problem) -> dict[str, Tensor]:
    """Where the parameters of each layer lie in a flat vector, by layer."""
    place, start = {}, 0
    for name, p in problem.parameters.items():
        place[name] = torch.arange(start, start + p.numel())
        start += p.numel()
    return {layer: torch.cat([place[name] for name in names]) for layer, names in problem.layers.items()}


def layer_loading(problem: Problem, vectors: Array) -> Array:
    """The loading of each column (p, k) on each layer, (layers, k)."""
    squares = np.asarray(vectors, float) ** 2
    p = len(squares)
    whole = squares.sum(0) / p
    return np.stack([squares[where.numpy()].mean(0) / whole for where in positions(problem).values()])


class Block(Symmetric):
    """The diagonal block of an operator at some positions of the parameters."""

    def __init__(self, operator: Symmetric, where: Tensor) -> None:
        super().__init__(len(where), operator.precision, operator.device)
        self.operator, self.where = operator, where.to(operator.device)

    @property
    def block(self) -> int:
        return self.operator.block

    def product(self, vectors: Tensor) -> Tensor:
        whole = vectors.new_zeros(len(vectors), self.operator.shape[0])
        whole[:, self.where] = vectors
        return self.operator.product(whole)[:, self.where]


def layer_block(problem: Problem, operator: Symmetric, layer: str) -> Block:
    """G_h for an operator such as `Hessian(problem)`."""
    return Block(operator, positions(problem)[layer])


def subnetwork(problem: Problem, operator: Symmetric, layer: str) -> Block:
    """H_h for an operator such as `Hessian(problem)`."""
    return Block(operator, from_layer_on(problem, layer))


def from_layer_on(problem: Problem, layer: str) -> Tensor:
    """Positions of this layer and all later ones."""
    by_layer = positions(problem)
    names = list(by_layer)
    return torch.cat([by_layer[name] for name in names[names.index(layer) :]])
