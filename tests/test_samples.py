"""Tensors, arrays and data sets give the same samples, are read when asked for, and are refused with a reason."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from shotnoise import samples
from shotnoise.errors import DataError, InputError
from shotnoise.problem import Problem

X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
SOME = torch.tensor([3, 0, 3])


class Items(Dataset):
    """Pairs as a map-style data set gives them; read: the indices that were asked for."""

    def __init__(self, item=lambda i: (X[i], int(Y[i])), n=5):
        self.item, self.n, self.read = item, n, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read.append(i)
        return self.item(i)


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    "made",
    [
        samples.resolve(X, Y),
        samples.resolve(X.numpy(), Y.numpy()),
        samples.resolve(TensorDataset(X, Y), None),
        samples.resolve(Items(), None),
        samples.resolve(Items(lambda i: (X[i].numpy(), Y[i].numpy())), None),
        samples.resolve(Subset(TensorDataset(X.flip(0), Y.flip(0)), [4, 3, 2, 1, 0]), None),
        samples.resolve(ConcatDataset([TensorDataset(X[:2], Y[:2]), TensorDataset(X[2:], Y[2:])]), None),
    ],
    ids=["tensors", "arrays", "tensor-data-set", "items", "items-of-arrays", "subset", "concatenated"],
)
def test_same_samples_however_they_are_brought(made):
    assert made.n == 5
    inputs, targets = made.batch(SOME)
    assert torch.equal(inputs, X[SOME]) and torch.equal(targets, Y[SOME])


@pytest.mark.parametrize("inputs", [(X, Y), [X, Y.numpy()], {"a": X, "b": (Y, X)}], ids=["tuple", "list", "dict"])
def test_nested_inputs(inputs):
    batch, targets = samples.resolve(inputs, None).batch(SOME)
    assert targets is None
    wanted = [X, Y, X] if isinstance(inputs, dict) else [X, Y]
    assert all(torch.equal(t, w[SOME]) for t, w in zip(samples.tree_leaves(batch), wanted, strict=True))


def test_nested_items():
    inputs, targets = samples.resolve(Items(lambda i: ({"a": X[i]}, (Y[i], 1.5))), None).batch(SOME)
    assert torch.equal(inputs["a"], X[SOME]) and torch.equal(targets[0], Y[SOME]) and len(targets[1]) == 3


def test_items_are_read_when_asked_for():
    dataset = Items(n=10**9, item=lambda i: (X[i % 5], int(Y[i % 5])))
    made = samples.resolve(dataset, None)
    assert set(dataset.read) == {0}
    dataset.read.clear()
    made.batch(torch.tensor([7, 10**9 - 1]))
    assert dataset.read == [7, 10**9 - 1]


def test_a_problem_reads_only_the_samples_it_needs():
    dataset = Items(lambda i: (X[i % 5], X[i % 5]), n=10**6)
    problem = Problem(torch.nn.Linear(2, 2), "mse", dataset)
    problem.per_sample_gradients(torch.tensor([5, 6]))
    assert len(dataset.read) < 20


def test_arrays_are_not_copied_and_memory_maps_do_for_data(tmp_path):
    array = np.ones((4, 2), dtype=np.float32)
    assert samples.resolve(array, None).inputs.data_ptr() == array.ctypes.data
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = samples.resolve(mapped, np.arange(4))
    assert made.inputs.data_ptr() == mapped.ctypes.data
    assert torch.equal(made.batch(torch.tensor([1]))[0], torch.ones(1, 2))


def test_fingerprints_tell_data_apart():
    prints = {
        made.fingerprint()
        for made in (
            samples.resolve(X, Y),
            samples.resolve(X, Y + 1),
            samples.resolve(X, None),
            samples.resolve(X.double(), Y),
            samples.resolve(X.reshape(5, 1, 2), Y),
            samples.resolve(Items(n=4), None),
        )
    }
    assert len(prints) == 6
    assert samples.resolve(X, Y).fingerprint() == samples.resolve(X.clone(), Y.numpy()).fingerprint()
    assert samples.resolve(Items(), None).fingerprint() == samples.resolve(Items(), None).fingerprint()


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (None, None, InputError, "inputs=None: pass tensors, or a torch Dataset"),
        (X, Y[:4], InputError, r"differ in length: their shapes are \[\(5, 2\), \(4,\)\]; axis 0 must be the samples"),
        ((X, X[:3]), Y, InputError, "differ in length"),
        (X[:0], Y[:0], DataError, r"the data is empty: shapes \[\(0, 2\), \(0,\)\]; at least one sample"),
        (TensorDataset(X[:0], Y[:0]), None, DataError, "the data is empty"),
        (Items(n=0), None, DataError, r"the data is empty: len\(Items\) is 0"),
        (torch.tensor(1.0), None, InputError, r"need the samples on axis 0; their shapes are \[\(\)\]"),
        ({}, None, InputError, "need the samples on axis 0"),
        ("data.csv", None, InputError, "data of type str: pass torch tensors"),
        (np.array(["a", "b"]), None, InputError, r"an array of type <U1 and shape \(2,\) is no data"),
        (np.arange(4.0)[::-1], None, InputError, r"an array of type float64 and shape \(4,\) is no data: .*negative"),
        (TensorDataset(X), None, InputError, "a TensorDataset of 1 tensors; expected two: inputs and targets"),
        (TensorDataset(X, Y), Y, InputError, "a Dataset brings its own targets: leave the targets argument out"),
        (Stream(), None, InputError, "Stream has no length or no random access; .* pass a map-style Dataset"),
        (NoLength(), None, InputError, "NoLength has no length"),
        (Items(lambda i: X[i]), None, InputError, r"Items\[0\] is a Tensor of 2; expected a pair \(input, target\)"),
        (Items(lambda i: 1.0), None, InputError, r"Items\[0\] is a float; expected a pair"),
        (Items(lambda i: (X[i], "cat")), None, InputError, "data of type str"),
    ],
)
def test_data_that_cannot_be_used(inputs, targets, error, message):
    with pytest.raises(error, match=message):
        samples.resolve(inputs, targets)


class Jittered(TensorDataset):
    """A transform in a subclass, as many users write it."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.rand(2), y


def seldom_flipped(i):
    """A flip that reading twice would probably not show."""
    return (X[i].flip(0) if np.random.random() < 1e-9 else X[i]), int(Y[i])  # noqa: NPY002 - as users do


PRIVATE = np.random.default_rng(0)


@pytest.mark.parametrize(
    "dataset",
    [
        Items(lambda i: (X[i] + torch.randn(2), int(Y[i]))),
        Items(lambda i: (X[i] + PRIVATE.normal(), int(Y[i]))),
        Items(lambda i: (X[i][: 1 + random.getrandbits(1)], int(Y[i]))),
        Items(seldom_flipped),
        Jittered(X, Y),
    ],
    ids=["torch", "private-generator", "shape", "seldom", "subclass"],
)
def test_random_transforms_are_refused_and_draw_nothing(dataset):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(InputError, match="so its transform is random and a sample has no single gradient"):
        samples.resolve(dataset, None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
