"""Moments of the per-sample gradients, layer by layer, from passes over the data.

Results by layer are float64 arrays whose last column is all layers together. The penalty's gradient s = l2 w is added
to every g_i, where it belongs to the loss; it cancels in the noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from shotnoise.measure.estimate import Array, Products
from shotnoise.named import Named, Sum, add, dot, square
from shotnoise.per_sample.finite import not_finite, require_sums
from shotnoise.per_sample.sums import norms_and_square, spares_the_gradient
from shotnoise.problem import Chunk, Problem

Progress = Callable[[int, int], None]  # (samples done, samples in all)
Layers = Mapping[str, Sequence[str]]  # layer name -> its parameters
Known = Mapping[str, tuple[Tensor, float]]  # layer name -> ||g_i||^2, (m,), and ||sum_i g_i||^2
NOTHING: Known = {}
PAIR_CHUNK = 512  # samples whose mutual inner products are looked at


@dataclass(frozen=True)
class Moments:
    """Of all n samples, exactly: mean loss, ||grad L||^2, Tr M and Tr Sigma by layer, and how they were had."""

    loss: float
    gradient_norm_sq: Array
    second_moment: Array
    noise_trace: Array
    paths: dict[str, str]


@dataclass(frozen=True)
class Sampled:
    """What m sampled data points tell: their losses (m,), penalty included, and the products of their gradients."""

    losses: Array
    products: Products
    paths: dict[str, str]


def of_all(problem: Problem, progress: Progress | None = None) -> Moments:
    """The moments of all samples from one forward and backward pass over the data.

    Where that is less work, the gradient of a large dense layer is not computed, only its norm; see `per_sample.sums`.
    """
    layers = problem.layers
    spared = _spared(problem, layers)
    loss, norms, gradient, paths = 0.0, np.zeros(len(layers)), Sum(), dict[str, str]()
    known: Known = {}
    for chunk in _followed(problem.passes(sparing=chain(*spared.values()), check=False), problem.n, progress):
        known = {layer: norms_and_square([chunk.per_sample[name] for name in names]) for layer, names in spared.items()}
        loss += float(chunk.losses.double().sum())
        norms += layer_norms(layers, chunk, known).sum(0)
        gradient.add(chunk.gradient)
        paths |= chunk.paths
    squares = layer_squares(layers, gradient.total, known) / problem.n**2
    if not np.isfinite(squares).all():
        require_sums(gradient.total, "gradient")
    noise = np.maximum(norms / problem.n - squares, 0)
    if problem.l2:
        squares = layer_squares(layers, add(gradient.over(problem.n), problem.penalty_gradient))
    return Moments(
        loss=loss / problem.n + problem.penalty,
        gradient_norm_sq=with_total(squares),
        second_moment=with_total(noise + squares),
        noise_trace=with_total(noise),
        paths=paths,
    )


def of_sample(problem: Problem, indices: Tensor, population: int | None, progress: Progress | None = None) -> Sampled:
    """Two passes over the samples `indices`: for the mean gradient, then for the products with it."""
    m, layers = len(indices), problem.layers
    counted = None if progress is None else lambda done, total: progress(done, 2 * total)
    counted_on = None if progress is None else lambda done, total: progress(total + done, 2 * total)
    losses, gradient, paths = [], Sum(), dict[str, str]()
    for chunk in _followed(problem.passes(indices), m, counted):
        losses.append(chunk.losses.double().cpu())
        gradient.add(chunk.gradient)
        paths |= chunk.paths
    shift = problem.penalty_gradient
    mean = add(gradient.over(m), shift)
    norms, along, pairs = [], [], _PairMoments(len(layers) + 1)
    later = problem.passes(indices, with_gradient=False, at_most=PAIR_CHUNK)
    for chunk in _followed(later, m, counted_on):
        chunk_norms = layer_norms(layers, chunk)
        chunk_along = _along(layers, chunk, mean) + layer_dots(layers, shift, mean)
        if problem.l2:
            chunk_norms += 2 * _along(layers, chunk, shift) + layer_squares(layers, shift)
        norms.append(chunk_norms)
        along.append(chunk_along)
        pairs.add(layer_grams(layers, chunk))
    trace_squared, trace_cubed = pairs.traces()
    products = Products(
        with_total(np.concatenate(norms)),
        with_total(np.concatenate(along)),
        trace_squared,
        trace_cubed,
        population,
    )
    return Sampled(torch.cat(losses).numpy() + problem.penalty, products, paths)


def _spared(problem: Problem, layers: Layers) -> Layers:
    """The layers whose gradient need not be summed: all samples meet in one chunk, and there is no penalty to add."""
    if problem.l2 or problem.n > problem.chunk_size:
        return {}
    weights, products = problem.parameters, problem.products
    names = [name for name in products if spares_the_gradient(weights[name], problem.n)]
    return {layer: of for layer, of in layers.items() if of[0] in names}


def layer_norms(layers: Layers, chunk: Chunk, known: Known = NOTHING) -> Array:
    """||g_i||^2 of the data part by layer, (m, layers). Raises NonFiniteError naming the sample and the layer."""
    columns = [
        known[layer][0]
        if layer in known
        else torch.stack([chunk.per_sample[name].squared_norms() for name in names]).sum(0)
        for layer, names in layers.items()
    ]
    found = torch.stack(columns, 1).double().cpu().numpy()
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        sample, layer = bad[0]
        raise not_finite(int(chunk.indices[sample]), list(layers)[layer])
    return found


def layer_grams(layers: Layers, chunk: Chunk) -> Iterator[Tensor]:
    """g_i . g_j of the data part by layer, one (m, m) matrix after the other."""
    for names in layers.values():
        total = chunk.per_sample[names[0]].gram()
        for name in names[1:]:
            total += chunk.per_sample[name].gram()
        yield total


def layer_dots(layers: Layers, a: Named, b: Named) -> Array:
    """a . b by layer, (layers,)."""
    return np.array([float(dot({n: a[n] for n in names}, {n: b[n] for n in names})) for names in layers.values()])


def layer_squares(layers: Layers, vector: Named, known: Known = NOTHING) -> Array:
    """||vector||^2 by layer, (layers,)."""
    return np.array(
        [
            known[layer][1] if layer in known else sum(square(vector[name]) for name in names)
            for layer, names in layers.items()
        ]
    )


def with_total(by_layer: Array) -> Array:
    """One more last column: the sum over the layers."""
    return np.concatenate([by_layer, by_layer.sum(-1, keepdims=True)], -1)


class _PairMoments:
    """Unbiased Tr Sigma^2 and Tr Sigma^3, column by column, from the inner products within chunks of samples.

    A difference p = g_i - g_j has mean 0 and covariance 2 Sigma, so E (p . q)^2 = 4 Tr Sigma^2 for independent p, q and
    E (p . q)(q . r)(r . p) = 8 Tr Sigma^3 for three. The first is averaged over all disjoint pairs of samples, the
    second over the pairs (0, 1), (2, 3), ...
    """

    def __init__(self, columns: int) -> None:
        self.squared, self.cubed = np.zeros(columns), np.zeros(columns)
        self.two, self.three = 0, 0

    def add(self, grams: Iterator[Tensor]) -> None:
        total = torch.zeros(0)
        for column, gram in enumerate(grams):
            double = gram.double()
            self._add_column(column, double)
            total = double.clone() if column == 0 else total.add_(double)
        self._add_column(-1, total)
        m, k = len(total), len(total) // 2
        self.two += m * (m - 1) if m > 3 else 0
        self.three += k * (k - 1) * (k - 2)

    def _add_column(self, column: int, gram: Tensor) -> None:
        m = len(gram)
        if m > 3:
            self.squared[column] += m * (m - 1) * _squared_over_all_pairs(gram)
        d = _of_differences(gram)
        self.cubed[column] += float(((d @ d) * d).sum())

    def traces(self) -> tuple[Array, Array]:
        return self.squared / max(1, self.two), self.cubed / max(1, self.three) / 8


def _squared_over_all_pairs(gram: Tensor) -> float:
    """Mean of ((g_i - g_j) . (g_k - g_l))^2 / 4 over all distinct i, j, k, l, without the loops.

    The estimate of Himeno and Yamada, "Estimations for some functions of covariance matrix in high dimension under
    non-normality", 2014.
    """
    m, rows = len(gram), gram.mean(0)
    centred = gram - rows[:, None]
    centred -= rows - rows.mean()
    norms, entries = centred.diagonal(), centred.flatten()
    found = entries.dot(entries) / (m * (m - 3)) - norms.square().sum() / ((m - 2) * (m - 3))
    found += norms.sum() ** 2 / (m * (m - 1) * (m - 2) * (m - 3))
    return max(0.0, float(found))  # a mean of squares, but for rounding


def _of_differences(gram: Tensor) -> Tensor:
    """Inner products of g_0 - g_1, g_2 - g_3, ..., with the diagonal set to 0."""
    even = len(gram) // 2 * 2
    rows = gram[0:even:2] - gram[1:even:2]
    difference = rows[:, 0:even:2] - rows[:, 1:even:2]
    return difference.fill_diagonal_(0)


def _along(layers: Layers, chunk: Chunk, direction: Named) -> Array:
    columns = [
        torch.stack([chunk.per_sample[name].dot(direction[name]) for name in names]).sum(0) for names in layers.values()
    ]
    return torch.stack(columns, 1).double().cpu().numpy()


def _followed(chunks: Iterator[Chunk], total: int, progress: Progress | None) -> Iterator[Chunk]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk.indices)
        if progress is not None:
            progress(done, total)
