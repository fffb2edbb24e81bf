"""Small problems, and the optimizers once more, slowly, from the definition: one gradient per sample by autograd."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DOUBLE = torch.float64


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).to(DOUBLE)


def data(n=24, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g, dtype=DOUBLE), torch.randint(3, (n,), generator=g)


def batches(n, m, steps, seed=2):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.integers(n, size=m)) for _ in range(steps)]


def per_sample(model, x, y):
    """(m, p): the gradient of each sample's loss, by plain autograd."""
    rows = []
    for i in range(len(x)):
        found = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def put(model, vector):
    torch.nn.utils.vector_to_parameters(vector.clone(), model.parameters())  # it shares memory with what it is given


class Slow:
    """Both optimizers by the definition, in flat vectors: averages as explicit weighted sums over all past batches."""

    def __init__(self, blocks, smoothness, c, beta, warmup=1, every=1, decay=0.0, rest=0.0, same_batch=False):
        self.blocks, self.smoothness, self.c, self.beta = blocks, smoothness, c, beta
        self.warmup, self.every, self.decay, self.rest, self.same_batch = warmup, every, decay, rest, same_batch
        self.past, self.step_number = [], 0

    def average(self):
        weights = [self.beta ** (len(self.past) - 1 - k) for k in range(len(self.past))]
        total = sum(weights)
        return tuple(sum(w * pair[i] for w, pair in zip(weights, self.past, strict=True)) / total for i in (0, 1))

    def step(self, theta, gradients):
        m, data = len(gradients), gradients.mean(0)
        g = data + self.decay * theta
        spread = ((gradients - data) ** 2).sum(0) / (m - 1) * (1 / m - self.rest)
        square = torch.stack([(g[block] ** 2).sum() for block in self.blocks])
        reading = (square - torch.stack([spread[block].sum() for block in self.blocks]), square)
        if self.same_batch:
            self.past.append(reading)
        moved = theta.clone()
        if len(self.past) >= self.warmup:
            a, b = self.average()
            for k, block in enumerate(self.blocks):
                ratio = min(max(float(a[k] / b[k]), 0.0), 1.0) if b[k] > 0 else 0.0
                moved[block] -= self.c / self.smoothness * ratio * g[block]
        if not self.same_batch and (self.step_number % self.every == 0 or len(self.past) < self.warmup):
            self.past.append(reading)
        self.step_number += 1
        return moved


def whole(model):
    return [slice(0, None)]


def coordinates(model):
    return [slice(j, j + 1) for j in range(len(flat(model)))]
