"""Second derivatives of fully connected networks written out, for the weights of many runs at once: no graph.

    forward     h_k = z_{k-1} W_k^T + c_k,   z_k = act(h_k),   d_K = dl/dh_K,   d_{k-1} = (d_k W_k) act'
    along V     R h_k = z_{k-1} V_k^T + v_k + R z_{k-1} W_k^T,   R z_k = act' R h_k,   R d_K = (d^2 l / dh^2) R h_K
                R d_{k-1} = (R d_k W_k + d_k V_k) act' + (d_k W_k) act'' R h_{k-1}
    products    H v: (R d_k)^T z_{k-1} + d_k^T R z_{k-1},   M v: (t d_k)^T z_{k-1} with t_i = g_i . v,   all over n

(Pearlmutter 1994). Everything that does not depend on V is kept; a product is about half again a gradient. The Hessian
is that of autograd, which takes the slope of a ReLU at its kink as 0 and leaves out what the kink itself would add.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotnoise.fully_connected import Layer, data_of, layers_of
from shotnoise.losses import NAMED
from shotnoise.problem import Problem


@dataclass(frozen=True)
class Bend:
    """act' and act'' from the activation's output z; None where act'' vanishes."""

    forward: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor] | None


def bend_of(module: nn.Module) -> Bend | None:
    """The derivatives of an activation that have a closed form in its output, else None."""
    kind = type(module)  # a subclass may do something else
    if kind is nn.ReLU:
        return Bend(torch.relu, lambda z: (z > 0).to(z), None)
    if kind is nn.Tanh:
        return Bend(torch.tanh, lambda z: 1 - z.square(), lambda z: -2 * z * (1 - z.square()))
    if kind is nn.Sigmoid:
        return Bend(torch.sigmoid, lambda z: z * (1 - z), lambda z: z * (1 - z) * (1 - 2 * z))
    return None


def written_out(problem: Problem) -> list[Layer[Bend]] | None:
    """The layers, if the problem's network is one whose products are written out here."""
    layers = layers_of(problem, bend_of)
    return None if isinstance(layers, str) else layers


class WrittenOut:
    """R networks at weights (R, P) on the samples given (default all), ready for products.

    Vectors are (R, b, P). Weights and vectors in the order of `Problem.parameters`; penalty included in H, and in every
    sample's gradient.
    """

    def __init__(
        self, problem: Problem, layers: list[Layer[Bend]], weights: Tensor, indices: Tensor | None = None
    ) -> None:
        self.layers, self.l2, self.runs = layers, problem.l2, len(weights)
        inputs, targets = data_of(problem)
        if indices is not None:
            inputs, targets = inputs[indices], targets[indices]
        self.loss = problem.loss_spec
        x = inputs.flatten(1).to(weights)
        self.n = len(x)
        self.weights = weights if self.runs > 1 else weights[0]
        self.matrices = [_matrix(self.weights, layer) for layer in layers]
        self._forward(x, targets.to(weights.device))

    def _forward(self, x: Tensor, targets: Tensor) -> None:
        self.z, self.slopes, self.bends = [x], list[Tensor | None](), list[Tensor | None]()
        for layer, W in zip(self.layers, self.matrices, strict=True):
            h = self.z[-1] @ W.mT
            if layer.bias is not None:
                h = h + self.weights[..., None, layer.bias]
            act = layer.activation
            self.z.append(h if act is None else act.forward(h))
        outputs = self.z.pop()
        self.probabilities: Tensor  # of the classes, or of label 1
        if self.loss == NAMED["cross_entropy"]:
            self.probabilities = torch.softmax(outputs, -1)
            labels = targets.long().expand(outputs.shape[:-1])[..., None]
            self.losses = -torch.log_softmax(outputs, -1).gather(-1, labels)[..., 0]
            d = self.probabilities.scatter_add(-1, labels, -torch.ones_like(labels, dtype=outputs.dtype))
        elif self.loss == NAMED["logistic"]:
            self.probabilities = torch.sigmoid(outputs)
            signs = 2 * targets.to(outputs).view(-1, 1) - 1
            self.losses = -F.logsigmoid(signs * outputs)[..., 0]
            d = -signs * torch.sigmoid(-signs * outputs)
        else:
            d = outputs - targets.to(outputs)
            self.losses = 0.5 * d.square().sum(-1)
        self.outputs, self.d = outputs, [d]  # d from the last layer to the first, turned round at the end
        for k in range(len(self.layers) - 1, 0, -1):
            back, act, z = self.d[-1] @ self.matrices[k], self.layers[k - 1].activation, self.z[k]
            slope = None if act is None else act.slope(z)
            self.slopes.append(slope)
            self.bends.append(None if act is None or act.bend is None else back * act.bend(z))
            self.d.append(back if slope is None else back * slope)
        for each in (self.d, self.slopes, self.bends):
            each.reverse()

    def gradients(self) -> Tensor:
        """The gradient of the mean loss, (R, P)."""
        return self.combined(torch.full_like(self.losses, 1 / self.n)).reshape(self.runs, -1)

    def combined(self, c: Tensor) -> Tensor:
        """sum_i c_i g_i for coefficients (R, n) or (R, k, n): (R, P) or (R, k, P), without R for one run."""
        many = c.ndim > self.losses.ndim
        found = self._empty(c)
        for k, layer in enumerate(self.layers):
            weighted = c[..., None] * (self.d[k].unsqueeze(-3) if many else self.d[k])
            self._put(found, layer, weighted, self._widened(self.z[k], many))
        return found + c.sum(-1, keepdim=True) * self._shift(many) if self.l2 else found

    def gram(self) -> Tensor:
        """g_i . g_j, (R, n, n)."""
        total = torch.zeros(())
        for layer, z, d in zip(self.layers, self.z, self.d, strict=True):
            inner = z @ z.mT
            total = total + (d @ d.mT) * (inner if layer.bias is None else inner + 1)
        if self.l2:
            along = self._along(self.weights * self.l2)
            total = (
                total + along[..., :, None] + along[..., None, :] + self._shift(False).square().sum(-1)[..., None, None]
            )
        return total.reshape(self.runs, self.n, self.n)

    def hessian(self, vectors: Tensor) -> Tensor:
        """H v, (R, b, P)."""
        return self._products(vectors, hessian=1.0, moment=0.0)

    def second_moment(self, vectors: Tensor) -> Tensor:
        """M v, (R, b, P)."""
        return self._products(vectors, hessian=0.0, moment=1.0)

    def residual(self, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """(scale M - H) v, (R, b, P), for the price of one of them."""
        return self._products(vectors, hessian=-1.0, moment=scale)

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """F v, the data part without the curvature of the network, (R, b, P)."""
        return self._products(vectors, hessian=1.0, moment=0.0, gauss_newton=True)

    def _products(self, vectors: Tensor, hessian: float, moment: float, gauss_newton: bool = False) -> Tensor:
        many, penalty = vectors.shape[1] > 1, self.l2 * hessian * (not gauss_newton)
        hessian, moment = hessian / self.n, moment / self.n
        v = (vectors if self.runs > 1 else vectors[0]) if many else vectors.reshape(self.weights.shape)
        Rh, Rz, t = self._along_network(v, many, bool(hessian), bool(moment))
        found = self._empty(v[..., :1])
        Rd = self._loss_curvature(Rh[-1], many).mul_(hessian) if hessian else torch.zeros(())
        if self.l2 and moment:
            t = t + (v * self._shift(many)).sum(-1)[..., None]
        t = t * moment
        for k in range(len(self.layers) - 1, -1, -1):
            layer, z = self.layers[k], self._widened(self.z[k], many)
            left = Rd
            d = self._widened(self.d[k], many)
            if moment:
                left = left + t[..., None] * d
            self._put(found, layer, left, z, d if hessian and not gauss_newton else None, Rz[k], hessian)
            if hessian and k:
                Rd = Rd @ self._widened(self.matrices[k], many)
                if not gauss_newton:
                    _add_product(Rd, d, _matrix(v, layer), hessian)
                slope, bend = self.slopes[k - 1], self.bends[k - 1]
                Rd = Rd if slope is None else Rd.mul_(self._widened(slope, many))
                if bend is not None and not gauss_newton:
                    Rd = Rd.add_(self._widened(bend, many) * Rh[k - 1], alpha=hessian)
        if penalty:
            found.add_(v, alpha=penalty)
        if self.l2 and moment:
            found += t.sum(-1, keepdim=True) * self._shift(many)
        return found.view(vectors.shape)

    def _along_network(
        self, v: Tensor, many: bool, hessian: bool, moment: bool
    ) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """R h_k and R z_{k-1} by layer, and t_i = g_i . v without the penalty."""
        Rh, Rz, t = list[Tensor](), list[Tensor | None]([None]), torch.zeros(())
        for k, layer in enumerate(self.layers):
            z, V = self._widened(self.z[k], many), _matrix(v, layer).mT
            if layer.bias is not None and v.ndim == 1:
                fresh = torch.addmm(v[layer.bias], z, V)
            else:
                fresh = z @ V
                if layer.bias is not None:
                    fresh += v[..., None, layer.bias]
            if moment:
                t = t + (fresh * self._widened(self.d[k], many)).sum(-1)
            if not hessian:
                Rz.append(None)
                continue
            before = Rz[-1]
            if before is not None:
                _add_product(fresh, before, self._widened(self.matrices[k], many).mT)
            Rh.append(fresh)
            if k < len(self.layers) - 1:
                slope = self.slopes[k]
                Rz.append(fresh if slope is None else fresh * self._widened(slope, many))
        return Rh, Rz, t

    def _loss_curvature(self, Rh: Tensor, many: bool) -> Tensor:
        """(d^2 l / dh^2) R h, a new tensor."""
        if self.loss == NAMED["mse"]:
            return Rh.clone()
        pi = self._widened(self.probabilities, many)
        if self.loss == NAMED["logistic"]:
            return pi * (1 - pi) * Rh
        weighted = pi * Rh
        return weighted - pi * weighted.sum(-1, keepdim=True)

    def _along(self, v: Tensor) -> Tensor:
        """g_i . v of the data part, (R, n)."""
        return self._along_network(v, False, False, True)[2]

    def _put(
        self, found: Tensor, layer: Layer[Bend], left: Tensor, z: Tensor, d: Tensor | None = None,
        Rz: Tensor | None = None, factor: float = 1.0,
    ) -> None:  # fmt: skip
        """left^T z + factor d^T Rz and the sum of left over the samples, where the layer's weights lie."""
        place = _matrix(found, layer)
        if found.ndim == 1:
            torch.mm(left.T, z, out=place)
            if d is not None and Rz is not None:
                place.addmm_(d.T, Rz, alpha=factor)
        else:
            product = left.mT @ z
            if d is not None and Rz is not None:
                product = product.add_(d.mT @ Rz, alpha=factor)
            place.copy_(product)
        if layer.bias is not None:
            found[..., layer.bias] = left.sum(-2)

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:-1], self.weights.shape[-1])

    def _shift(self, many: bool) -> Tensor:
        """The penalty's gradient."""
        return (self.weights.unsqueeze(-2) if many else self.weights) * self.l2

    def _widened(self, tensor: Tensor, many: bool) -> Tensor:
        """With an axis for the vectors, where there is one for the runs; the inputs have neither."""
        return tensor.unsqueeze(-3) if many and tensor.ndim > 2 else tensor


def _matrix(v: Tensor, layer: Layer[Bend]) -> Tensor:
    """The part of vectors (..., P) that belongs to a layer's weights, (..., outputs, inputs)."""
    part = v[..., layer.weight]
    return part.view(*part.shape[:-1], layer.outputs, layer.inputs)


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: float = 1.0) -> None:
    if total.ndim == 2:
        total.addmm_(a, b, alpha=factor)
    else:
        total.add_(a @ b, alpha=factor)
