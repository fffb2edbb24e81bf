"""The data of a problem, whatever the user brought, as samples that can be asked for by index."""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from shotnoise.errors import DataError, InputError
from shotnoise.random_state import preserved_random_state, random_fingerprint

Batch = Any  # a tensor, or a tuple, list or dict of such, all with the samples on axis 0


class Samples(Protocol):
    """n samples; `batch` gives the inputs and targets of some of them."""

    n: int

    def batch(self, indices: Tensor) -> tuple[Batch, Batch]: ...

    def fingerprint(self) -> str: ...


def resolve(inputs: Any, targets: Any) -> Samples:
    """Tensors (or arrays), nested in tuples, lists or dicts, or a torch Dataset of (input, target) pairs."""
    if type(inputs) is TensorDataset and targets is None:  # a subclass may transform the items
        if len(inputs.tensors) != 2:
            raise InputError(f"a TensorDataset of {len(inputs.tensors)} tensors; expected two: inputs and targets")
        return InMemory(*inputs.tensors)
    if isinstance(inputs, Dataset):
        if targets is not None:
            raise InputError("a Dataset brings its own targets: leave the targets argument out")
        return FromDataset(inputs)
    if inputs is None:
        raise InputError("inputs=None: pass tensors, or a torch Dataset of (input, target) pairs")
    return InMemory(inputs, targets)


class InMemory:
    """Tensors with the samples on axis 0; targets may be None for a loss that needs none."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs = tree_map(_as_tensor, inputs)
        self.targets = None if targets is None else tree_map(_as_tensor, targets)
        self.n = self._common_length()

    def batch(self, indices: Tensor) -> tuple[Batch, Batch]:
        first = int(indices[0]) if len(indices) else 0
        if torch.equal(indices, torch.arange(first, first + len(indices))):  # neighbours: a view instead of a copy
            return tree_map(lambda t: t[first : first + len(indices)], (self.inputs, self.targets))
        return tree_map(lambda t: t[indices.to(t.device)], (self.inputs, self.targets))

    def fingerprint(self) -> str:
        return hash_tensors(tree_leaves(self.inputs) + tree_leaves(self.targets))

    def _common_length(self) -> int:
        tensors = tree_leaves(self.inputs)
        shapes = [tuple(t.shape) for t in tensors + tree_leaves(self.targets)]
        if not tensors or any(not shape for shape in shapes):
            raise InputError(f"inputs and targets need the samples on axis 0; their shapes are {shapes}")
        lengths = {shape[0] for shape in shapes}
        if len(lengths) > 1:
            raise InputError(
                f"inputs and targets differ in length: their shapes are {shapes}; axis 0 must be the samples in all"
            )
        (n,) = lengths
        if n == 0:
            raise DataError(f"the data is empty: shapes {shapes}; at least one sample is needed")
        return n


class FromDataset:
    """A map-style torch Dataset, read item by item when asked for."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(
                f"{type(dataset).__name__} has no length or no random access; shotnoise draws samples by index: "
                "pass a map-style Dataset, or tensors collected from it"
            )
        self.dataset = dataset
        self.n = len(dataset)
        if self.n == 0:
            raise DataError(f"the data is empty: len({type(dataset).__name__}) is 0; at least one sample is needed")
        self._require_pairs()

    def batch(self, indices: Tensor) -> tuple[Batch, Batch]:
        with preserved_random_state():
            inputs, targets = default_collate([self.dataset[int(i)] for i in indices])
        return inputs, targets

    def fingerprint(self) -> str:
        """Of the length and of 16 items spread evenly: reading everything would cost a pass over the disk."""
        spread = torch.linspace(0, self.n - 1, min(self.n, 16)).long()
        inputs, targets = self.batch(spread)
        return hash_tensors([torch.tensor(self.n), *tree_leaves(inputs), *tree_leaves(targets)])

    def _require_pairs(self) -> None:
        with preserved_random_state():
            before = random_fingerprint()
            item, again = self.dataset[0], self.dataset[0]
            drawn = random_fingerprint() != before
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            kind = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else type(item).__name__
            raise InputError(f"{type(self.dataset).__name__}[0] is a {kind}; expected a pair (input, target)")
        pairs = zip(*(tree_leaves(tree_map(_as_tensor, read)) for read in (item, again)), strict=True)
        if drawn or not all(torch.equal(x, y) for x, y in pairs):
            raise InputError(
                f"{type(self.dataset).__name__}[0] draws random numbers or differs when read twice, so its transform "
                "is random and a sample has no single gradient; measure with the deterministic transform of evaluation"
            )


def tree_map(function: Any, tree: Batch) -> Batch:
    """`function` on every tensor of a tensor, tuple, list or dict; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(tree_map(function, value) for value in tree)
    return function(tree)


def tree_leaves(tree: Batch) -> list[Tensor]:
    leaves: list[Tensor] = []
    tree_map(leaves.append, tree)
    return leaves


def hash_tensors(tensors: list[Tensor]) -> str:
    """SHA-256 over shapes, types and bytes, shortened to 16 hex digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        return _from_numpy(np.asarray(value))
    raise InputError(
        f"data of type {type(value).__name__}: pass torch tensors (or NumPy arrays), a tuple or dict of them, "
        "or a torch Dataset"
    )


def _from_numpy(array: np.ndarray) -> Tensor:
    """Sharing memory with the array; a read-only one (a memory map) is never written to here, so it is as good."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.as_tensor(array)
        except (TypeError, ValueError) as error:
            raise InputError(f"an array of type {array.dtype} and shape {array.shape} is no data: {error}") from error
