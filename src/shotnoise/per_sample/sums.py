"""||sum_i g_i||^2 of m per-sample gradients without their sum, where that is less work and keeps the digits.

For g_i = d_i a_i^T, the weight of a dense layer (a_i ends with a 1 where the layer has a bias), it is

    sum_ij (a_i . a_j) (d_i . d_j)

from two m x m Gram matrices, whose diagonals are the norms of the samples. Where gradients cancel, so do the terms of
this sum, and it loses digits that the sum of the gradients keeps:

    error = u sqrt(I + O) sum_ij |a_i . a_j| |d_i . d_j|      u: half the machine's epsilon

A sum of I products, one after the other, errs like a random walk, by at most u sqrt(I/3) of the sum of their moduli in
one standard deviation, so a term errs by less than u sqrt(I + O) ||g_i|| ||g_j||. Where these errors are independent
they add up like their squares, to u sqrt(I + O) sum_i ||g_i||^2, the diagonal part of the above; where samples repeat,
with the same errors, to no more than the blocks of equal samples; and errors of one sign, from addends too small to
count, are in proportion to the terms. It is an estimate on the safe side: at initialisation, in training, near a
minimum and with repeated samples, the errors found against double precision are below a quarter of it.
"""

from collections.abc import Sequence
from math import inf, prod

import torch
from torch import Tensor

from shotnoise.named import square
from shotnoise.per_sample.structure import PerSample

TOLERANCE = 512  # epsilons of estimated relative error up to which Gram matrices are trusted: 6e-5 in float32
BLOCK = 32  # columns of a Gram matrix at a time, of which only the upper triangle is needed
WORTH = 10**7  # multiplications to be saved at least: handling the matrices costs about as much


def spares_the_gradient(weight: Tensor, samples: int) -> bool:
    """Whether Gram matrices are clearly less work than the gradient of this weight, if it is that of a dense layer."""
    saved = samples * (prod(weight.shape) - samples * sum(weight.shape))
    return saved >= WORTH and _multiplies_precisely(weight)


def norms_and_square(layer: Sequence[PerSample]) -> tuple[Tensor, float]:
    """||g_i||^2, (m,), and ||sum_i g_i||^2 over the parameters of a layer: a dense one's weight, and its bias if any.

    From Gram matrices, or from the sum where these would lose digits.
    """
    factors = layer[0].factors
    if factors is not None and (len(layer) == 1 or (len(layer) == 2 and layer[1].consists_of(factors[1]))):
        norms, total, error = from_gram(*factors, bias=len(layer) == 2)
        if total < inf and error <= TOLERANCE * torch.finfo(norms.dtype).eps * total:  # finite terms may sum to inf
            return norms, total
    norms = torch.stack([gradients.squared_norms() for gradients in layer]).sum(0)
    return norms, sum(square(gradients.total()) for gradients in layer)


def from_gram(a: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, float, float]:
    """||g_i||^2, (m,), ||sum_i g_i||^2 and its estimated error, for a: (m, I) and d: (m, O)."""
    of_a, of_d = _upper_gram(a), _upper_gram(d)
    if bias:
        of_a += 1
    norms = of_a.diagonal() * of_d.diagonal()
    lost = d.shape[1] * _squared_sum(of_a.diagonal()) + a.shape[1] * _squared_sum(of_d.diagonal())
    terms = of_a.mul_(of_d).triu_()  # in place: memory that is new to the process costs more than the products
    total, moduli = (2 * float(of.sum(0).double().sum()) - float(norms.double().sum()) for of in (terms, terms.abs()))
    numbers = torch.finfo(a.dtype)
    error = numbers.eps / 2 * (a.shape[1] + d.shape[1]) ** 0.5 * moduli + numbers.tiny * lost  # to underflow
    return norms, total, error


def _squared_sum(squares: Tensor) -> float:
    """(sum_i ||x_i||)^2"""
    return float(squares.double().sqrt().sum()) ** 2


def _upper_gram(x: Tensor) -> Tensor:
    """x_i . x_j for i <= j, (m, m); below the diagonal not all are there."""
    gram = x.new_zeros(len(x), len(x))
    for start in range(0, len(x), BLOCK):
        stop = start + BLOCK
        torch.mm(x[:stop], x[start:stop].T, out=gram[:stop, start:stop])
    return gram


def _multiplies_precisely(weight: Tensor) -> bool:
    """Whether matrix products have the precision of the numbers that they multiply."""
    if torch.is_autocast_enabled(weight.device.type):
        return False
    try:
        reduced = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # newer switches than this one have been used
        reduced = True
    return weight.dtype == torch.float64 or (weight.dtype == torch.float32 and not reduced)
