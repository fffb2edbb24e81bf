"""Fully connected networks, forward and backward written out as batched products: no graph, no tracing.

    z_0 = x,   h_k = z_{k-1} W_k^T + c_k,   z_k = act_k(h_k),   d_K = dl/dh_K / m,
    dW_k = d_k^T z_{k-1},   dc_k = sum d_k,   d_{k-1} = (d_k W_k) act'_{k-1}

with the runs as the leading axis of every tensor. Layers may lack a bias; derivatives are those that autograd uses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotnoise.fully_connected import Layer, data_of
from shotnoise.losses import NAMED
from shotnoise.models import Polynomial
from shotnoise.problem import Problem
from shotnoise.simulate.engines.engine import SAMPLES_BYTES, Batch, Engine, hits


@dataclass(frozen=True)
class Activation:
    """z = forward(h), in place or not, and the gradient at h from that at z and from what `forward` has left in h."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


class Dense(Engine):
    """Stacks of Linear layers with elementwise activations under any named loss, cross-entropy with class indices."""

    key = "dense"

    def __init__(self, problem: Problem, layers: list[Layer[Activation]]) -> None:
        super().__init__(problem)
        self.layers = layers
        inputs, targets = data_of(problem)
        self.inputs = inputs.flatten(1).to(problem.device, problem.dtype).contiguous()
        self.classifies = problem.loss_spec == NAMED["cross_entropy"]
        self.logistic = problem.loss_spec == NAMED["logistic"]
        self.targets = self._targets(targets.to(problem.device), len(targets))

    def accuracies(self, weights: Tensor) -> Tensor:
        total = weights.new_zeros(len(weights), dtype=torch.float64)
        for x, y in self._slices(weights):
            total += hits(self.problem, self._forward(weights, x)[0][-1], y)
        return total / len(self.inputs)

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor):
            chosen = batch.reshape(-1)
            x = self.inputs.index_select(0, chosen).view(*batch.shape, -1)
            y = self.targets.index_select(0, chosen).view(*batch.shape, *self.targets.shape[1:])
        else:
            x, y = batch[0].flatten(2), self._targets(batch[1], *batch[1].shape[:2])
        return self._losses_and_gradients(weights, x, y, x.shape[1])

    def _targets(self, targets: Tensor, *samples: int) -> Tensor:
        """Classes (*samples), or numbers (*samples, outputs)."""
        return targets.long() if self.classifies else targets.to(self.problem.dtype).reshape(*samples, -1)

    def _full(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = torch.zeros_like(weights[:, 0]), torch.zeros_like(weights)
        for x, y in self._slices(weights):
            some = self._losses_and_gradients(weights, x, y, len(self.inputs))
            losses += some[0]
            gradients += some[1]
        return losses, gradients

    def _full_losses(self, weights: Tensor) -> Tensor:
        losses = torch.zeros_like(weights[:, 0])
        for x, y in self._slices(weights):
            losses += self._loss(self._forward(weights, x)[0][-1], y, len(self.inputs))[0]
        return losses

    def _losses_and_gradients(self, weights: Tensor, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """x: (R, m, d), or (m, d) for all runs alike. Sums over these m samples divided by `count`."""
        states, left = self._forward(weights, x)
        losses, d = self._loss(states.pop(), y, count)
        slopes: list[Tensor] = []  # from the last parameter to the first
        for k in reversed(range(len(self.layers))):
            layer, z = self.layers[k], states[k]
            if layer.bias is not None:
                slopes.append(d.sum(1))
            slopes.append((shared_product(d, z) if z.ndim == 2 else torch.bmm(d.mT, z)).flatten(1))
            if k:
                d = torch.bmm(d, _matrix(weights, layer))
                before = self.layers[k - 1].activation
                d = d if before is None else before.backward(d, left[k - 1])
        return losses, torch.cat(slopes[::-1], 1)

    def _forward(self, weights: Tensor, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs of every layer with the outputs of the last, (R, m, width) each, and what is left in every h."""
        states, left = [x], []
        for layer in self.layers:
            z, matrix = states[-1], _matrix(weights, layer)
            h = _shared_forward(z, matrix) if z.ndim == 2 else None
            if layer.bias is None:
                h = torch.bmm(z, matrix.mT) if h is None else h
            else:
                c = weights[:, None, layer.bias]
                h = torch.baddbmm(c, z, matrix.mT) if h is None else h.add_(c)
            states.append(h if layer.activation is None else layer.activation.forward(h))
            left.append(h)
        return states, left

    def _loss(self, outputs: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Losses (R,) and the gradient at the outputs, both divided by `count`."""
        if self.classifies:  # torch's own log_softmax is five times slower on so few classes
            y = targets.expand(outputs.shape[:-1])[..., None]
            top = outputs.amax(-1, keepdim=True)
            losses = outputs.gather(-1, y).sub_(top).neg_()
            d = outputs.sub_(top).exp_()
            total = d.sum(-1, keepdim=True)
            losses = losses.add_(total.log()).sum((1, 2)).div_(count)
            d.div_(total).scatter_add_(-1, y, d.new_full((), -1.0).expand(y.shape))
            return losses, d.div_(count)
        if self.logistic:  # through the margin, whose loss keeps its relative precision however small
            signs = 2 * targets - 1
            margins = outputs.mul_(signs)
            return -F.logsigmoid(margins).sum((1, 2)).div_(count), margins.neg().sigmoid_().mul_(signs).div_(-count)
        residuals = outputs - targets
        return residuals.square().sum((1, 2)).div_(2 * count), residuals.div_(count)

    def _slices(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        widest = max(max(layer.inputs, layer.outputs) for layer in self.layers)
        size = max(1, SAMPLES_BYTES // (len(weights) * widest * weights.element_size()))
        yield from zip(self.inputs.split(size), self.targets.split(size), strict=True)


def activation_of(module: nn.Module) -> Activation | None:
    """The activation of a module whose derivative can be had from its output, else None."""
    aten, kind = torch.ops.aten, type(module)  # a subclass may do something else
    if kind is nn.ReLU:
        return Activation(torch.relu_, lambda d, z: aten.threshold_backward(d, z, 0))
    if kind is nn.Tanh:
        return Activation(torch.tanh_, aten.tanh_backward)
    if kind is nn.Sigmoid:
        return Activation(torch.sigmoid_, aten.sigmoid_backward)
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU and module.negative_slope > 0:
        slope = module.negative_slope
        return Activation(lambda h: F.leaky_relu_(h, slope), lambda d, z: aten.leaky_relu_backward(d, z, slope, True))
    if isinstance(module, Polynomial) and kind is Polynomial:
        return Activation(module.forward, lambda d, h: d * module.slope(h))
    return None


def shared_product(d: Tensor, x: Tensor) -> Tensor:
    """d^T x by run as one product, for inputs x (m, i) that all runs share and d (R, m, o): (R, o, i)."""
    runs, _, outputs = d.shape
    return (d.mT.reshape(runs * outputs, -1) @ x).view(runs, outputs, -1)


def _shared_forward(x: Tensor, matrix: Tensor) -> Tensor:
    """x W^T by run as one product, (R, m, o) with m strided: x (m, i) shared, W (R, o, i)."""
    runs, outputs, _ = matrix.shape
    return (matrix.reshape(runs * outputs, -1) @ x.T).view(runs, outputs, -1).mT.contiguous()


def _matrix(weights: Tensor, layer: Layer[Any]) -> Tensor:
    return weights[:, layer.weight].view(len(weights), layer.outputs, layer.inputs)
