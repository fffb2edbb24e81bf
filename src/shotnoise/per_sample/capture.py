"""One forward and one backward pass that also bring the per-sample gradients of every layer that has a rule.

The pass runs on detached copies of the parameters (sharing their memory) and on clones of the buffers, so nothing of
it can reach the user's module: not gradients, hooks on parameters, running statistics. For each call of a layer
with a rule the input and the gradient at the output are kept. A parameter counts as captured only if the
recorded calls are all the uses that the autograd graph knows of; a weight that is also used by hand elsewhere
is not, and neither is a layer whose calls do not have the samples on axis 0.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from shotnoise.per_sample.rules import has_rule, has_samples_first, part
from shotnoise.per_sample.structure import PerSample


@dataclass(frozen=True)
class Call:
    """One call of a layer: its input, and where the gradient of its output will arrive."""

    module: nn.Module
    uses: Mapping[str, Tensor]  # parameter name within the module -> the leaf that was used
    x: Tensor
    edge: GradientEdge


@dataclass(frozen=True)
class Pass:
    """Losses (m,), the summed gradient where it was asked for, per-sample gradients by name, and why some have none."""

    losses: Tensor
    gradient: dict[str, Tensor]
    per_sample: dict[str, PerSample]
    missing: dict[str, str]


def run(
    model: nn.Module,
    leaves: Mapping[str, Tensor],
    losses_of: Callable[[], Tensor],
    samples: int,
    distrusted: Mapping[str, str],
    summed: Collection[str] | None = None,
) -> Pass:
    """Evaluate `losses_of()` (which calls `model` on `leaves`) and differentiate its sum.

    leaves: the trainable parameters by name, a shared one once. distrusted: parameters whose rule was found not
    to hold, with the reason. summed: the parameters whose summed gradient is wanted, for all a third of the work;
    None: all.
    """
    calls: list[Call] = []
    with recording(model, leaves, calls):
        losses = losses_of()
    total = losses.sum()
    uses_in_graph = _uses_in_graph(total)
    of = {name: leaf for name, leaf in leaves.items() if summed is None or name in summed}
    wanted = [*of.values(), *(call.edge for call in calls)]
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if total.requires_grad and wanted:
        found = torch.autograd.grad(total, wanted, allow_unused=True)  # type: ignore[arg-type]
    gradient = {
        name: torch.zeros_like(leaf) if g is None else g.to_dense()
        for (name, leaf), g in zip(of.items(), found, strict=False)
    }
    reached = [(call, d) for call, d in zip(calls, found[len(of) :], strict=True) if d is not None]
    per_sample, missing = _collect(leaves, reached, uses_in_graph, samples, distrusted)
    return Pass(losses.detach(), gradient, per_sample, missing)


@contextmanager
def recording(model: nn.Module, leaves: Mapping[str, Tensor], calls: list[Call]) -> Iterator[None]:
    """Hooks on the layers with a rule while the block runs, gone when it ends, however it ends."""
    ours = {id(leaf) for leaf in leaves.values()}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        uses = {name: p for name, p in module._parameters.items() if p is not None and id(p) in ours}
        x = args[0] if args else next(iter(kwargs.values()), None)
        if uses and isinstance(x, Tensor) and isinstance(output, Tensor) and output.requires_grad:
            # The edge is taken now: an in-place activation after the layer would move the tensor past itself.
            calls.append(Call(module, uses, x.detach(), get_gradient_edge(output)))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules() if has_rule(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _collect(
    leaves: Mapping[str, Tensor],
    reached: list[tuple[Call, Tensor]],
    uses_in_graph: Mapping[Node, int],
    samples: int,
    distrusted: Mapping[str, str],
) -> tuple[dict[str, PerSample], dict[str, str]]:
    by_leaf: dict[int, list[tuple[Call, str, Tensor]]] = defaultdict(list)
    for call, d in reached:
        for local, leaf in call.uses.items():
            by_leaf[id(leaf)].append((call, local, d))
    per_sample, missing = {}, {}
    for name, leaf in leaves.items():
        found = by_leaf[id(leaf)]
        graph_uses = uses_in_graph.get(get_gradient_edge(leaf).node, 0)
        if name in distrusted:
            missing[name] = distrusted[name]
        elif len(found) != graph_uses:
            missing[name] = "used outside a known layer"
        elif not all(has_samples_first(call.module, call.x, d, samples) for call, _, d in found):
            missing[name] = "samples are not on the first axis"
        elif found:
            per_sample[name] = PerSample([part(c.module, c.x, d, local) for c, local, d in found], leaf.shape)
        else:
            per_sample[name] = _zero(samples, leaf)
    return per_sample, missing


def _zero(samples: int, leaf: Tensor) -> PerSample:
    """The gradients of a parameter that the loss does not reach."""
    return PerSample.of(leaf.new_zeros(1).expand(samples, *leaf.shape))


def _uses_in_graph(total: Tensor) -> dict[Node, int]:
    """How many edges of the autograd graph end at each node."""
    uses: dict[Node, int] = defaultdict(int)
    seen: set[Node] = set()
    stack = [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                uses[following] += 1
                stack.append(following)
    return uses
