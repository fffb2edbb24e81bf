"""Products of the per-sample gradients g_i, penalty included, without writing the n x p matrix of them."""

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.named import Named, Sum
from shotnoise.problem import Chunk, Problem

GROUPS = 16  # of samples, whose spread gives the standard error of a sampled variance
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
    return _entry_variance(problem, None, problem.n)


def parameter_mean_square(problem: Problem) -> Named:
    """Mean over the samples of each squared gradient entry, by parameter: the diagonal of M."""
    variance, mean = parameter_variance(problem), problem.gradient()
    return {name: variance[name] + mean[name].square() for name in mean}


def sampled_parameter_variance(problem: Problem, indices: Tensor, population: int | None) -> tuple[Named, Named]:
    """`parameter_variance` estimated without bias from distinct samples, and its standard error.

    population: of how many the samples are drawn, None if unlimited. The error is that of the mean over GROUPS groups,
    each with an unbiased variance of its own, times sqrt(1 - m/n).
    """
    groups = torch.as_tensor(indices)[torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))]
    found = []
    for group in groups.tensor_split(min(GROUPS, len(indices) // 2)):
        to_unbiased = len(group) / (len(group) - 1)
        found.append({name: v * to_unbiased for name, v in _entry_variance(problem, group, len(group)).items()})
    unseen = 1.0 if population is None else 1 - len(indices) / population
    divisor_n = 1.0 if population is None else 1 - 1 / population
    variance, stderr = {}, {}
    for name in problem.parameters:
        each = torch.stack([one[name] for one in found])
        variance[name] = each.mean(0) * divisor_n
        stderr[name] = each.std(0) * divisor_n * (unseen / len(found)) ** 0.5
    return variance, stderr


def _entry_variance(problem: Problem, indices: Tensor | None, m: int) -> Named:
    """(1/m) sum g_i^2 - ((1/m) sum g_i)^2 for each entry; 0 where rounding would leave less."""
    gradient, squares = Sum(), Sum()
    for chunk in problem.passes(indices):
        gradient.add(chunk.gradient)
        squares.add({name: g.sum_of_squares() for name, g in chunk.per_sample.items()})
    mean, mean_square = gradient.over(m), squares.over(m)
    return {name: (mean_square[name] - mean[name].square()).clamp_(min=0) for name in mean}


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
    return problem.penalty_gradient if problem.l2 else {}


def _along(chunk: Chunk, direction: Named, names: list[str]) -> Tensor:
    return torch.stack([chunk.per_sample[name].dot(direction[name]) for name in names]).sum(0)


def _square(direction: Named, names: list[str]) -> Tensor:
    return torch.stack([direction[name].square().sum() for name in names]).sum()
