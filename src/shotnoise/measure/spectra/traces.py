"""Traces, norms and diagonals of symmetric operators from products with random vectors, with standard errors.

    Hutchinson   Tr A ~ mean of z^T A z,   diag A ~ mean of z * A z,   ||A||_F^2 ~ mean of ||A z||^2,   z random signs
    Hutch++      Tr A = Tr Q^T A Q + Tr (1 - Q Q^T) A (1 - Q Q^T), Q from A times random vectors: the first part
                 exactly, the second by Hutchinson, whose variance is that of what Q has left

Each is unbiased, and its standard error that of a mean of independent terms (Hutchinson 1990; Meyer, Musco, Musco and
Woodruff 2021). Where the probes would cost as much as the whole matrix, the matrix is taken and the result is exact.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.spectra.operator import Array, Symmetric, Value

PROBES = 48


def trace(
    operator: Symmetric, probes: int = PROBES, *, method: Literal["hutch++", "hutchinson"] = "hutch++", seed: int = 0
) -> Value:
    """The trace from `probes` products; exact, without an error, for probes >= p.

    method: "hutch++" spends a third of the probes each on finding the leading space, on its trace and on what is left.
    Raises InputError for fewer than 6 probes.
    """
    p = operator.shape[0]
    _require(probes)
    if probes >= p:
        return Value(operator.trace(), 0.0)
    if method == "hutchinson":
        z = _signs(operator, probes, seed)
        return _mean((z * _times(operator, z)).double().sum(1))
    if method != "hutch++":
        raise InputError(f'method={method!r}: "hutch++" or "hutchinson"')
    third = probes // 3
    sketch = _times(operator, _signs(operator, third, seed))
    Q = torch.linalg.qr(sketch.double().T)[0].T.to(sketch)
    inside = float((Q * _times(operator, Q)).double().sum())
    z = _signs(operator, probes - 2 * third, seed + 1)
    z = z - (z @ Q.T) @ Q
    rest = _mean((z * _times(operator, z)).double().sum(1))
    return Value(inside + rest.value, rest.stderr)


def frobenius_norm(operator: Symmetric, probes: int = PROBES, *, seed: int = 0) -> Value:
    """||A||_F from ||A z||^2; its square is unbiased, the error by the delta method. Exact for probes >= p."""
    _require(probes)
    if probes >= operator.shape[0]:
        return Value(float(np.sqrt(sum(float(part.double().square().sum()) for part in operator.rows()))), 0.0)
    square = _mean(_times(operator, _signs(operator, probes, seed)).double().square().sum(1))
    norm = float(np.sqrt(square.value))
    return Value(norm, square.stderr / (2 * norm) if norm else 0.0)


def diagonal(operator: Symmetric, probes: int = PROBES, *, seed: int = 0) -> tuple[Array, Array]:
    """The diagonal (p,), estimated, and its standard errors: those of entry j fall as ||A_j|| / sqrt(probes).

    `operator.diagonal()` is exact, for p products.
    """
    _require(probes)
    z = _signs(operator, probes, seed)
    terms = (z * _times(operator, z)).double()
    return (
        terms.mean(0).cpu().numpy(),
        (terms.std(0) / probes**0.5).cpu().numpy(),
    )


def _require(probes: int) -> None:
    if probes < 6:
        raise InputError(f"probes={probes}: an estimate with a standard error needs at least 6")


def _signs(operator: Symmetric, count: int, seed: int) -> Tensor:
    drawn = np.random.default_rng([seed, count]).choice([-1.0, 1.0], size=(count, operator.shape[0]))
    return torch.as_tensor(drawn).to(operator.device, operator.precision)


def _times(operator: Symmetric, vectors: Tensor) -> Tensor:
    return torch.cat([operator.product(some) for some in vectors.split(operator.block)])


def _mean(terms: Tensor) -> Value:
    return Value(float(terms.mean()), float(terms.std() / len(terms) ** 0.5))
