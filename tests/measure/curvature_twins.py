"""Curvature from the definitions: one flat vector of weights differentiated twice, explicit Jacobians, plain loops."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import shotnoise as sn

LOSSES = {  # of all samples, one value each, written without the library
    "cross_entropy": lambda f, y: torch.logsumexp(f, 1) - f.gather(1, y[:, None])[:, 0],
    "mse": lambda f, y: (f - y).square().sum(1) / 2,
    "logistic": lambda f, y: torch.log(1 + torch.exp(f[:, 0])) - y * f[:, 0],
}


def stack(*widths, act=nn.ReLU, bias=True):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


class Normed(nn.Module):
    """Layers that no product is written out for."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(nn.functional.softplus(self.norm(self.a(x))))


def convolution():
    return nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)
    )


@dataclass(frozen=True)
class Model:
    name: str
    build: object
    piecewise_linear: bool = False


MODELS = [
    Model("linear", lambda: nn.Linear(4, 3), True),
    Model("relu", lambda: stack(4, 5, 4, 3), True),
    Model("relu-no-bias", lambda: stack(4, 6, 3, bias=False), True),
    Model("tanh", lambda: stack(4, 5, 4, 3, act=nn.Tanh)),
    Model("sigmoid", lambda: stack(4, 5, 3, act=nn.Sigmoid)),
    Model("convolution", convolution, True),
    Model("layer-norm", Normed),
]


def problem_of(model, loss="cross_entropy", n=12, l2=0.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = (model.build if isinstance(model, Model) else model)()
        network = (nn.Sequential(network, nn.Linear(3, 1)) if loss == "logistic" else network).to(dtype)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype)
    if loss == "cross_entropy":
        y = torch.randint(3, (n,), generator=generator)
    elif loss == "logistic":
        y = torch.randint(2, (n,), generator=generator)
    else:
        y = torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)
    return sn.Problem(network, loss, x, y, l2=l2)


def data(problem):
    return problem.samples.batch(torch.arange(problem.n))


def outputs(problem, flat):
    return torch.func.functional_call(problem.model, problem.unflatten(flat), (data(problem)[0],))


def start(problem):
    return problem.flatten(problem.parameters).detach()


def hessian(problem):
    """Backward over backward, a row at a time."""

    def loss(flat):
        f = outputs(problem, flat)
        return LOSSES[problem.loss_name](f, data(problem)[1]).mean() + 0.5 * problem.l2 * flat.square().sum()

    return torch.autograd.functional.hessian(loss, start(problem)).double().numpy()


def jacobian(problem):
    """(n, k, p)"""
    return torch.autograd.functional.jacobian(lambda flat: outputs(problem, flat), start(problem)).double().numpy()


def probabilities(problem):
    with torch.no_grad():
        return torch.softmax(outputs(problem, start(problem)), 1).double().numpy()


def gauss_newton(problem):
    """From the Jacobian and the curvature of the loss in the outputs."""
    J = jacobian(problem)
    if problem.loss_name == "mse":
        S = np.stack([np.eye(3)] * problem.n)
    elif problem.loss_name == "logistic":
        f = outputs(problem, start(problem)).detach().double().numpy()[:, :, None]
        S = np.exp(f) / (1 + np.exp(f)) ** 2
    else:
        pi = probabilities(problem)
        S = np.einsum("ni,ij->nij", pi, np.eye(3)) - pi[:, :, None] * pi[:, None]
    return np.einsum("nip,nij,njq->pq", J, S, J) / problem.n


def gradients(problem):
    """(n, p): one backward pass for every sample."""
    rows, flat = [], start(problem).requires_grad_()
    losses = LOSSES[problem.loss_name](outputs(problem, flat), data(problem)[1])
    for one in losses:
        rows.append(torch.autograd.grad(one, flat, retain_graph=True)[0] + problem.l2 * flat.detach())
    return torch.stack(rows).double().numpy()
