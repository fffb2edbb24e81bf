"""Per-sample gradients written out, for parameters that no rule covers: `torch.func` in chunks, else one by one."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shotnoise.per_sample.structure import BLOCK_BYTES
from shotnoise.samples import Batch, tree_leaves

OneLoss = Callable[[Mapping[str, Tensor], Batch, Batch], Tensor]  # (leaves, inputs, targets of one sample) -> 0-d
Gradients = dict[str, Tensor]


def gradients(
    loss: OneLoss, leaves: Mapping[str, Tensor], inputs: Batch, targets: Batch, loop: Callable[[], Gradients]
) -> tuple[Gradients, str]:
    """(m, *parameter) for each leaf, and the way it was had: "vmap", or "loop" where the model does not allow it."""
    m = len(tree_leaves(inputs)[0])
    with elementary_kernels(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap was our choice, not the user's
        for shared in (True, False):
            try:
                return _by_vmap(loss, leaves, inputs, targets, m, shared), "vmap"
            except RuntimeError:  # vmap: an operation without a batching rule, or code that depends on values
                continue
        return loop(), "loop"


def _by_vmap(
    loss: OneLoss, leaves: Mapping[str, Tensor], inputs: Batch, targets: Batch, m: int, shared: bool
) -> Gradients:
    """One weight for all samples (shared), or a view of it for each, which recurrent layers need."""
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves.values())
    chunk = max(1, 4 * BLOCK_BYTES // max(1, size))
    weights = {name: leaf.detach() if shared else leaf.detach().expand(m, *leaf.shape) for name, leaf in leaves.items()}
    gradient = torch.func.grad(loss)
    return torch.func.vmap(gradient, in_dims=(None if shared else 0, 0, 0), chunk_size=chunk)(weights, inputs, targets)


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
