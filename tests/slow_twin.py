"""Per-sample gradients from the definition, a plain loop with `loss.backward()`, and how close is close."""

from copy import deepcopy

import torch
from torch import nn

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest entry


def row(tree, i):
    """Sample i of a batch, as a batch of one."""
    if isinstance(tree, dict):
        return {key: row(value, i) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(row(value, i) for value in tree)
    return tree[i : i + 1].clone()  # the model may work on it in place


def call(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def log_cosh(outputs, targets):
    """A callable loss, one value per sample."""
    return (outputs - targets).cosh().log().flatten(1).sum(1)


LOSSES = {  # of one sample, written without the library
    "cross_entropy": nn.CrossEntropyLoss(),
    "mse": lambda outputs, targets: ((outputs - targets) ** 2).sum() / 2,
    log_cosh: lambda outputs, targets: log_cosh(outputs, targets).sum(),
}


def gradients(model, loss, inputs, targets):
    """Losses (n,) and gradients {parameter: (n, *shape)} of the trainable parameters."""
    model = deepcopy(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses, rows = [], {name: [] for name in parameters}
    for i in range(len(targets)):
        model.zero_grad()
        value = LOSSES[loss](call(model, row(inputs, i)), row(targets, i))
        value.backward()
        losses.append(value.detach())
        for name, p in parameters.items():
            rows[name].append(torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone())
    return torch.stack(losses), {name: torch.stack(each) for name, each in rows.items()}


def agrees(found, expected, scale=None, whole=0.0):
    """Equal shapes and types, and equal numbers up to rounding.

    scale: of the terms that add up to these numbers (default: the largest number expected); whole: the scale of all
    layers, for gradients that are zero but for rounding.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    scale = expected.abs().max() if scale is None else scale
    rounding = 100 * torch.finfo(expected.dtype).eps
    return bool((found - expected).abs().max() <= TOLERANCE[expected.dtype] * scale + rounding * whole)
