"""Products of the per-sample gradients g_i, penalty included, without writing the n x p matrix of them."""

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.problem import Chunk, Named, Problem

GRAM_LIMIT = 8192  # samples: the matrix itself is n x n, and the recorded activations of all samples are held


def per_sample_norms(problem: Problem, indices: Tensor | None = None) -> dict[str, Tensor]:
    """||g_i||^2 (squared) by layer, each of shape (n,), in the order of `indices` (default: all samples).

    >>> line = Problem(torch.nn.Linear(1, 1, bias=False), "mse", torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> w = float(line.model.weight.detach())
    >>> bool(torch.allclose(per_sample_norms(line)["(model)"], torch.tensor([w**2, 16 * w**2])))
    True
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in problem.layers}
    penalty = _penalty(problem)
    for chunk in problem.passes(indices, with_gradient=False):
        for layer, names in problem.layers.items():
            norms = torch.stack([chunk.per_sample[name].squared_norms() for name in names]).sum(0)
            if penalty:
                norms = norms + 2 * _along(chunk, penalty, names) + _square(penalty, names)
            found[layer].append(norms)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def gram(problem: Problem, indices: Tensor | None = None) -> Tensor:
    """g_i . g_j over all parameters, (n, n). Raises InputError beyond 8,192 samples.

    >>> line = Problem(torch.nn.Linear(1, 1, bias=False), "mse", torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> g = line.per_sample_gradients()["weight"].flatten(1)
    >>> bool(torch.allclose(gram(line), g @ g.T))
    True
    """
    n = problem.n if indices is None else len(indices)
    if n > GRAM_LIMIT:
        raise InputError(
            f"the Gram matrix of n={n} samples would hold {n}^2 numbers and all activations; at most {GRAM_LIMIT} "
            "samples are taken: pass indices of a subset, or use measure.noise_covariance(problem).top(k)"
        )
    chunks = list(problem.passes(indices, with_gradient=False))
    blocks = [[_gram_block(x, y) if j <= i else None for j, y in enumerate(chunks)] for i, x in enumerate(chunks)]
    rows = [torch.cat([_filled(blocks, i, j) for j in range(len(chunks))], 1) for i in range(len(chunks))]
    total = torch.cat(rows)
    penalty = _penalty(problem)
    if penalty:
        along = torch.cat([_along(chunk, penalty, list(penalty)) for chunk in chunks])
        total += along[:, None] + along[None, :] + _square(penalty, list(penalty))
    return total


def parameter_variance(problem: Problem) -> Named:
    """Variance over the samples (divisor n) of each gradient entry, by parameter: the diagonal of Sigma.

    >>> line = Problem(torch.nn.Linear(1, 1, bias=False), "mse", torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1))
    >>> float(parameter_variance(line)["weight"])
    0.0
    """
    squares = {name: torch.zeros_like(p) for name, p in problem.parameters.items()}
    gradient = {name: torch.zeros_like(p) for name, p in problem.parameters.items()}
    for chunk in problem.passes():
        for name, g in chunk.gradient.items():
            gradient[name] += g
            squares[name] += chunk.per_sample[name].sum_of_squares()
    n = problem.n
    return {name: (squares[name] / n - (gradient[name] / n).square()).clamp_(min=0) for name in squares}


def _gram_block(x: Chunk, y: Chunk) -> Tensor:
    names = list(x.per_sample)
    other = {name: None if x is y else y.per_sample[name] for name in names}
    total = x.per_sample[names[0]].gram(other[names[0]])
    for name in names[1:]:
        total += x.per_sample[name].gram(other[name])
    return total


def _filled(blocks: list[list[Tensor | None]], i: int, j: int) -> Tensor:
    block, mirrored = blocks[i][j], blocks[j][i]
    if block is not None:
        return block
    assert mirrored is not None
    return mirrored.T


def _penalty(problem: Problem) -> Named:
    return {name: problem.l2 * p.detach() for name, p in problem.parameters.items()} if problem.l2 else {}


def _along(chunk: Chunk, direction: Named, names: list[str]) -> Tensor:
    return torch.stack([chunk.per_sample[name].dot(direction[name]) for name in names]).sum(0)


def _square(direction: Named, names: list[str]) -> Tensor:
    return torch.stack([direction[name].square().sum() for name in names]).sum()
