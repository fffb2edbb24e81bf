"""Per-sample gradients written out, for parameters that no rule covers: `torch.func` in chunks, else one by one."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shotnoise.evaluation import Evaluation, gradient
from shotnoise.named import Named
from shotnoise.per_sample.structure import BLOCK_BYTES
from shotnoise.samples import Batch, tree_leaves, tree_map


def gradients(evaluation: Evaluation, names: Sequence[str], inputs: Batch, targets: Batch) -> tuple[Named, str]:
    """(m, *parameter) for the parameters `names` alone, and the way: "vmap", or "loop" where the model prevents it."""
    with elementary_kernels(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap was our choice, not the user's
        for shared in (True, False):
            try:
                return _by_vmap(evaluation, names, inputs, targets, shared), "vmap"
            except RuntimeError:  # vmap: an operation without a batching rule, or code that depends on values
                continue
        return _by_loop(evaluation, names, inputs, targets), "loop"


def _by_vmap(evaluation: Evaluation, names: Sequence[str], inputs: Batch, targets: Batch, shared: bool) -> Named:
    """One weight for all samples (shared), or a view of it for each, which recurrent layers need."""
    constant, wanted = _split(evaluation, names)
    m = len(tree_leaves(inputs)[0])
    weights = {name: w.detach() if shared else w.detach().expand(m, *w.shape) for name, w in wanted.items()}

    def loss(some: Mapping[str, Tensor], x: Batch, y: Batch) -> Tensor:
        x, y = tree_map(lambda t: t[None], (x, y))
        return evaluation.losses(x, y, {**constant, **some}, checked=False)[0]

    size = sum(w.numel() * w.element_size() for w in wanted.values())
    chunk = max(1, 4 * BLOCK_BYTES // max(1, size))
    in_dims = (None if shared else 0, 0, 0)
    return torch.func.vmap(torch.func.grad(loss), in_dims=in_dims, chunk_size=chunk)(weights, inputs, targets)


def _by_loop(evaluation: Evaluation, names: Sequence[str], inputs: Batch, targets: Batch) -> Named:
    constant, wanted = _split(evaluation, names)
    each = []
    for i in range(len(tree_leaves(inputs)[0])):
        x, y = tree_map(lambda t, i=i: t[i : i + 1], (inputs, targets))
        each.append(gradient(evaluation.losses(x, y, {**constant, **wanted}, checked=False)[0], wanted))
    return {name: torch.stack([g[name] for g in each]) for name in wanted}


def _split(evaluation: Evaluation, names: Sequence[str]) -> tuple[Named, Named]:
    """The trainable parameters besides `names`, held constant, and those of `names`."""
    leaves = evaluation.leaves
    return {name: leaf.detach() for name, leaf in leaves.items() if name not in names}, {n: leaves[n] for n in names}


@contextmanager
def elementary_kernels() -> Iterator[None]:
    """Attention and recurrence from elementary operations, which vmap can batch and autograd differentiate twice."""
    enabled = bool(torch.backends.mkldnn.enabled)
    with sdpa_kernel(SDPBackend.MATH):
        _set_mkldnn(False)
        try:
            yield
        finally:
            _set_mkldnn(enabled)


def _set_mkldnn(enabled: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about hardware that the setting does not concern
        torch.backends.mkldnn.set_flags(enabled)
