"""Fully connected networks, forward and backward written out as batched products: no graph, no tracing.

    z_0 = x,   h_k = z_{k-1} W_k^T + c_k,   z_k = act_k(h_k),   d_K = dl/dh_K / m,
    dW_k = d_k^T z_{k-1},   dc_k = sum d_k,   d_{k-1} = (d_k W_k) act'_{k-1}

with the runs as the leading axis of every tensor. Layers may lack a bias; derivatives are those that autograd uses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotnoise.losses import NAMED
from shotnoise.problem import Problem
from shotnoise.samples import InMemory
from shotnoise.simulate.engines.engine import SAMPLES_BYTES, Batch, Engine, hits


@dataclass(frozen=True)
class Activation:
    """z = forward(h), and the gradient at h from that at z and from z itself."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


A = TypeVar("A")


@dataclass(frozen=True)
class Layer(Generic[A]):
    """Where a layer's weights (outputs, inputs) and bias lie among the P parameters, and the activation after it."""

    outputs: int
    inputs: int
    weight: slice
    bias: slice | None
    activation: A | None


class Dense(Engine):
    """Stacks of Linear layers with elementwise activations; cross-entropy with class indices, or squared loss."""

    key = "dense"

    def __init__(self, problem: Problem, layers: list[Layer[Activation]]) -> None:
        super().__init__(problem)
        self.layers = layers
        inputs, targets = data_of(problem)
        self.inputs = inputs.flatten(1).to(problem.device, problem.dtype).contiguous()
        self.targets = targets.to(problem.device)
        self.classifies = problem.loss_spec == NAMED["cross_entropy"]
        self.targets = self.targets.long() if self.classifies else self.targets.to(problem.dtype)

    def accuracies(self, weights: Tensor) -> Tensor:
        total = weights.new_zeros(len(weights), dtype=torch.float64)
        for x, y in self._slices(weights):
            total += hits(self._forward(weights, x)[-1], y)
        return total / len(self.inputs)

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor):
            chosen = batch.reshape(-1)
            x = self.inputs.index_select(0, chosen).view(*batch.shape, -1)
            y = self.targets.index_select(0, chosen).view(*batch.shape, *self.targets.shape[1:])
        else:
            x, y = batch[0].flatten(2), batch[1]
        return self._losses_and_gradients(weights, x, y, x.shape[1])

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
            losses += self._loss(self._forward(weights, x)[-1], y, len(self.inputs))[0]
        return losses

    def _losses_and_gradients(self, weights: Tensor, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """x: (R, m, d), or (m, d) for all runs alike. Sums over these m samples divided by `count`."""
        states = self._forward(weights, x)
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
                d = d if before is None else before.backward(d, z)
        return losses, torch.cat(slopes[::-1], 1)

    def _forward(self, weights: Tensor, x: Tensor) -> list[Tensor]:
        """The inputs of every layer and the outputs of the last, (R, m, width) each."""
        states = [x]
        for layer in self.layers:
            z, matrix = states[-1], _matrix(weights, layer)
            h = _shared_forward(z, matrix) if z.ndim == 2 else None
            if layer.bias is None:
                h = torch.bmm(z, matrix.mT) if h is None else h
            else:
                c = weights[:, None, layer.bias]
                h = torch.baddbmm(c, z, matrix.mT) if h is None else h.add_(c)
            states.append(h if layer.activation is None else layer.activation.forward(h))
        return states

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
        residuals = outputs - targets
        return residuals.square().sum((1, 2)).div_(2 * count), residuals.div_(count)

    def _slices(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        widest = max(max(layer.inputs, layer.outputs) for layer in self.layers)
        size = max(1, SAMPLES_BYTES // (len(weights) * widest * weights.element_size()))
        yield from zip(self.inputs.split(size), self.targets.split(size), strict=True)


def layers_of(problem: Problem, known: Callable[[nn.Module], A | None]) -> list[Layer[A]] | str:
    """The layers of a fully connected network whose activations are all `known`, or why it is not one."""
    modules: list[nn.Module] = []
    if (unknown := _flatten(problem.model, modules, known)) is not None:
        return unknown
    if not isinstance(problem.samples, InMemory) or not isinstance(problem.samples.inputs, Tensor):
        return "the inputs are not one tensor in memory"
    if not isinstance(problem.samples.targets, Tensor):
        return "the targets are not one tensor in memory"
    if (why := _loss_refused(problem)) is not None:
        return why
    names = {id(p): name for name, p in problem.model.named_parameters()}
    places, start = {}, 0
    for name, p in problem.parameters.items():
        places[name] = slice(start, start + p.numel())
        start += p.numel()
    layers: list[Layer[A]] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            own = [module.weight] if module.bias is None else [module.weight, module.bias]
            found = [places.pop(names[id(p)], None) for p in own]
            if found[0] is None or found[-1] is None:
                return "a layer is frozen, or shares its weights"
            bias = found[1] if len(found) > 1 else None
            layers.append(Layer(module.out_features, module.in_features, found[0], bias, None))
        elif layers and layers[-1].activation is None:
            last = layers.pop()
            layers.append(Layer(last.outputs, last.inputs, last.weight, last.bias, known(module)))
        else:
            return "an activation does not follow a Linear layer"
    if not layers or places:
        return "there are parameters outside Linear layers"
    if layers[-1].activation is not None:
        return "an activation follows the last layer"
    return layers


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
    return None


def data_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a problem that `layers_of` has accepted."""
    samples = problem.samples
    assert isinstance(samples, InMemory)
    inputs: Tensor = samples.inputs
    targets: Any = samples.targets
    return inputs, targets


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


def _flatten(model: nn.Module, found: list[nn.Module], known: Callable[[nn.Module], Any]) -> str | None:
    """The modules of nested Sequentials in order, those left out that do nothing; or why they cannot be had."""
    if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks or model._backward_pre_hooks:
        return "the model has hooks"
    if type(model) is nn.Sequential:
        for child in model:
            if (why := _flatten(child, found, known)) is not None:
                return why
    elif type(model) is nn.Flatten:
        if found or model.start_dim != 1 or model.end_dim != -1:
            return "a Flatten module is not the first, or keeps axes"
    elif type(model) is nn.Linear or known(model) is not None:
        found.append(model)
    elif type(model) is not nn.Identity:
        return f"{type(model).__name__} is not a Linear layer or a known activation"
    return None


def _loss_refused(problem: Problem) -> str | None:
    inputs, targets = data_of(problem)
    linear = [m for m in problem.model.modules() if isinstance(m, nn.Linear)]
    if not linear or (inputs.ndim != 2 and not any(isinstance(m, nn.Flatten) for m in problem.model.modules())):
        return "the layers act on further axes"
    if problem.loss_spec == NAMED["cross_entropy"] and targets.ndim == 1 and not targets.is_floating_point():
        return None
    if problem.loss_spec == NAMED["mse"] and targets.shape[1:] == (linear[-1].out_features,):
        return None
    return f"loss {problem.loss_name!r} with targets {tuple(targets.shape)} is not written out"
