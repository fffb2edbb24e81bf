"""Everything that is timed: shotnoise, its peers, the plain pass; and the plain loop over samples as judge.

Each method does the whole work at every call, from the forward pass on, and returns one of these:

    norms     ||g_i||^2, (n,), all parameters together
    trace     noise trace, mean ||g_i||^2 - ||mean g_i||^2
    gram      g_i . g_j, (n, n)
    variance  by parameter, mean g_i^2 - (mean g_i)^2, in the order of model.parameters()

g_i is the gradient of the cross-entropy of sample i. Each tool has its own copy of the model, wrapped or
extended once, beforehand. Sums of losses are used where a peer allows it, which spares it a division by n^2.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Value = Tensor | Sequence[Tensor] | None
UNAVAILABLE = {
    "BackPACK: Gram matrix": "no such extension; BatchGrad and a product are timed in its place",
    "curvlinops": "operators of the whole model; no norms, Gram matrix or variance per sample",
    "nngeometry: norms, variance": "only by way of the full Gram matrix or of all gradients written out",
}


@dataclass(frozen=True)
class Method:
    tool: str
    quantity: str  # "pass", "norms", "trace", "gram" or "variance"
    run: Callable[[], Value]

    @property
    def name(self) -> str:
        return f"{self.quantity}: {self.tool}"


def available(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Method], dict[str, str]]:
    """All methods that can be had here, and why the others cannot."""
    methods, missing = [plain_pass(model, x, y)], dict(UNAVAILABLE)
    for module, build in SOURCES.items():
        try:
            import_module(module)
        except ImportError as error:
            missing[module] = f"not installed here: {error}"
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                methods.extend(build(deepcopy(model), x, y))
    return methods, missing


def plain_pass(model: nn.Module, x: Tensor, y: Tensor) -> Method:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    return Method("forward + backward", "pass", run)


def shotnoise_methods(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Method]:
    import shotnoise as sn

    problem = sn.Problem(model, "cross_entropy", x, y)

    def norms() -> Tensor:
        return sum(sn.measure.per_sample_norms(problem).values(), start=torch.zeros(()))

    def trace() -> Tensor:
        return torch.as_tensor(sn.measure.moments(problem).noise_trace[-1])

    def whole_measure() -> Tensor:
        return torch.as_tensor(sn.measure(problem, batch_sizes=[1])["noise_trace"].item())

    def variance() -> list[Tensor]:
        return list(sn.measure.parameter_variance(problem).values())

    yield Method("shotnoise", "norms", norms)
    yield Method("shotnoise", "trace", trace)
    yield Method("shotnoise, labelled result and fingerprints", "trace", whole_measure)
    yield Method("shotnoise", "gram", lambda: sn.measure.gram(problem))
    yield Method("shotnoise", "variance", variance)


def backpack_methods(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Method]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad, BatchL2Grad, Variance

    extend(model)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    parameters = list(model.parameters())

    def backward(extension: Any) -> None:
        model.zero_grad(set_to_none=True)
        total = loss(model(x), y)
        with backpack(extension):
            total.backward()

    def norms() -> Tensor:
        backward(BatchL2Grad())
        return torch.stack([p.batch_l2 for p in parameters]).sum(0)

    def trace() -> Tensor:
        return _trace(norms(), [p.grad / len(x) for p in parameters])

    def gram() -> Tensor:
        backward(BatchGrad())
        return sum(_product(p.grad_batch.flatten(1)) for p in parameters)

    def variance() -> list[Tensor]:
        backward(Variance())
        return [p.variance for p in parameters]

    yield Method("BackPACK BatchL2Grad", "norms", norms)
    yield Method("BackPACK BatchL2Grad", "trace", trace)
    yield Method("BackPACK BatchGrad, multiplied", "gram", gram)
    yield Method("BackPACK Variance", "variance", variance)


def opacus_methods(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Method]:
    from opacus import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    ghost = GradSampleModuleFastGradientClipping(deepcopy(model), loss_reduction="sum")
    explicit = GradSampleModule(model, loss_reduction="sum")

    def backward(wrapped: nn.Module) -> None:
        wrapped.zero_grad(set_to_none=True)
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()

    def ghost_norms() -> Tensor:
        backward(ghost)
        return ghost.get_norm_sample().square()

    def ghost_trace() -> Tensor:
        return _trace(ghost_norms(), [p.grad / len(x) for p in ghost.parameters()])

    def explicit_norms() -> Tensor:
        backward(explicit)
        return sum(p.grad_sample.flatten(1).square().sum(1) for p in explicit.parameters())

    yield Method("Opacus ghost norms", "norms", ghost_norms)
    yield Method("Opacus ghost norms", "trace", ghost_trace)
    yield Method("Opacus GradSampleModule", "norms", explicit_norms)


def nngeometry_methods(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Method]:
    from nngeometry.gram import GramMatrix

    loader = torch.utils.data.DataLoader(_WholeBatches(x, y), batch_size=len(x), collate_fn=list)

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), targets, reduction="none")[:, None]

    yield Method("nngeometry", "gram", lambda: GramMatrix(model, loader, function=losses).data[0, :, 0])


class _WholeBatches(torch.utils.data.Dataset):
    """Slices whole batches, so that nngeometry does not pay for a loader that stacks samples one by one."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [tensor[indices] for tensor in self.tensors]


SOURCES: dict[str, Callable[[nn.Module, Tensor, Tensor], Iterator[Method]]] = {
    "shotnoise": shotnoise_methods,
    "backpack": backpack_methods,
    "opacus": opacus_methods,
    "nngeometry": nngeometry_methods,
}


def plain_loop(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """All quantities by the definition: one backward pass per sample, sums in double precision."""
    rows = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    size, count = len(rows[0]), len(rows)
    found = {
        "gram": torch.zeros(count, count, dtype=torch.double),
        "variance": torch.zeros(size, dtype=torch.double),
    }
    for start in range(0, size, 100_000):
        block = torch.stack([row[start : start + 100_000] for row in rows]).double()
        found["gram"] += _product(block)
        found["variance"][start : start + 100_000] = block.var(0, correction=0)
    return {**found, "norms": found["gram"].diagonal().clone(), "trace": found["variance"].sum()}


def relative_error(found: Value, true: Tensor) -> float:
    """||found - true|| / ||true||, a list of tensors taken as one vector."""
    flat = found.flatten() if isinstance(found, Tensor) else torch.cat([t.flatten() for t in found or ()])
    return float((flat.double() - true.flatten()).norm() / true.norm())


def _product(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _trace(norms: Tensor, gradient: Sequence[Tensor]) -> Tensor:
    return norms.mean() - sum(g.square().sum() for g in gradient)
