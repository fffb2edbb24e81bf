"""Fully connected networks in a compiled kernel (src/native), one run per lane of the processor's vectors.

The weights of a block of runs, as many as a vector has numbers, stay in the cache for all steps of a call of `train`.
Losses and gradients are those of `dense` but for rounding, and batches come from the same streams.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shotnoise import rules
from shotnoise.fully_connected import Layer, data_of, layers_of
from shotnoise.losses import NAMED
from shotnoise.models import Polynomial
from shotnoise.problem import Problem
from shotnoise.rules import Rule
from shotnoise.simulate.engines.engine import FULL, GRADIENTS, WEIGHTS, Batch, Engine, Kept, Trainer

try:
    import shotnoise._native as found
except ImportError as error:
    MODULE: ModuleType | None = None
    MISSING = str(error)
else:
    MODULE, MISSING = found, ""

# Bits of `wanted`, as in src/native/job.hpp.
FULL_LOSS, FULL_GRADIENT, ACCURACY, GRADIENT_NORM, COSINE = 1, 2, 4, 8, 16
KEEP_WEIGHTS, KEEP_GRADIENT, KEEP_FULL_GRADIENT = 32, 64, 128
# What the kernel looks at itself: the bit that asks for it, and where its values come back.
OBSERVED = {
    "minibatch_loss": (0, "losses"),
    "minibatch_gradient_norm": (GRADIENT_NORM, "gradient_norms"),
    "gradient_cosine": (COSINE, "cosines"),
    "loss": (FULL_LOSS, "full_losses"),
    "gradient_norm": (FULL_GRADIENT, "full_norms"),
    "gradient_norm_sq": (FULL_GRADIENT, "full_norms"),
    "accuracy": (ACCURACY, "accuracies"),
}
KEPT = {
    WEIGHTS: (KEEP_WEIGHTS, "kept_weights"),
    GRADIENTS: (KEEP_GRADIENT, "kept_gradients"),
    FULL: (KEEP_FULL_GRADIENT | FULL_GRADIENT | FULL_LOSS, "kept_full_gradients"),
}
NO_UPDATE = np.empty(0)


@dataclass(frozen=True)
class Known:
    """An activation that the kernel has, by its name there."""

    name: str
    constants: tuple[float, ...] = ()  # slope of a leaky ReLU, coefficients of a polynomial


@dataclass(frozen=True)
class Optimizer:
    """An update rule as the kernel takes it."""

    name: str
    options: tuple[float, float, float, float, float, float]  # momentum, dampening, nesterov, decay, eps, largest norm


class Native(Engine):
    """Stacks of Linear layers with elementwise activations under any named loss, cross-entropy with class indices."""

    key = "native"

    def __init__(self, problem: Problem, layers: list[Layer[Known]], instruction_set: str = "") -> None:
        super().__init__(problem)
        assert MODULE is not None
        inputs, targets = data_of(problem)
        self.inputs = inputs.detach().flatten(1).to(problem.dtype).contiguous()
        self.labelled = problem.loss_spec != NAMED["mse"]
        self.targets = self._targets(targets.detach())
        self.instruction_set = instruction_set or instruction_sets()[0]
        identity = Known("identity")
        rows = [
            (x.outputs, x.inputs, x.weight.start, -1 if x.bias is None else x.bias.start, a.name, list(a.constants))
            for x in layers
            for a in [x.activation or identity]
        ]
        self.data_part = MODULE.Network(rows, problem.loss_name, 0.0)
        self.whole = MODULE.Network(rows, problem.loss_name, problem.l2)

    def accuracies(self, weights: Tensor) -> Tensor:
        found = weights.new_empty(1, len(weights))
        self.run(self.data_part, weights, wanted=[ACCURACY], accuracies=found)
        return (found[0].double() * len(self.inputs)).round() / len(self.inputs)  # a share as exact as can be

    def trainer(self, rule: Rule) -> Trainer | None:
        optimizer = optimizer_of(rule)
        return None if optimizer is None else _Trainer(self, optimizer)

    def _minibatch(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        losses, gradients = weights.new_empty(1, len(weights)), torch.empty_like(weights)
        one = batch[:, None] if isinstance(batch, Tensor) else (batch[0][:, None], batch[1][:, None])
        self.run(self.data_part, weights, wanted=[0], losses=losses, gradients=gradients, **self.drawn(one))
        return losses[0], gradients

    def _full(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = weights.new_empty(1, len(weights)), torch.empty_like(weights)
        wanted = [FULL_LOSS | FULL_GRADIENT]
        self.run(self.data_part, weights, wanted=wanted, full_losses=losses, full_gradients=gradients)
        return losses[0], gradients

    def _full_losses(self, weights: Tensor) -> Tensor:
        losses = weights.new_empty(1, len(weights))
        self.run(self.data_part, weights, wanted=[FULL_LOSS], full_losses=losses)
        return losses[0]

    def run(self, network: Any, weights: Tensor, *, wanted: Any, rates: Any = NO_UPDATE, **options: Any) -> None:
        """The kernel, on the data of the problem."""
        assert MODULE is not None
        targets, classes = (None, self.targets) if self.labelled else (self.targets, None)
        MODULE.run(
            network, weights if weights.is_contiguous() else weights.contiguous(), self.inputs, targets, classes,
            wanted=np.asarray(wanted, np.uint8), rates=rates, threads=self.threads, set=self.instruction_set, **options,
        )  # fmt: skip

    def drawn(self, batches: Batch) -> dict[str, Tensor]:
        """Batches of all runs at some steps, (R, T, b, ...), as the kernel takes them."""
        if isinstance(batches, Tensor):
            return {"indices": batches}
        y = self._targets(batches[1].flatten(0, 2))
        own = {"own_classes": y} if self.labelled else {"own_targets": y}
        return {"own_inputs": batches[0].flatten(3).contiguous(), **own}

    def _targets(self, targets: Tensor) -> Tensor:
        if self.labelled:
            return targets.flatten().long().contiguous()
        return targets.flatten(1).to(self.problem.dtype).contiguous()


class _Trainer:
    """Steps by the kernel: see `engine.Trainer`."""

    observed = tuple(OBSERVED)

    def __init__(self, engine: Native, optimizer: Optimizer) -> None:
        self.engine, self.optimizer = engine, optimizer

    def __call__(
        self,
        weights: Tensor,
        memory: Mapping[str, Tensor],
        batches: Batch,
        rates: NDArray[np.float64],
        first: int,
        wanted: Mapping[str, NDArray[np.bool_]],
        kept: Mapping[str, NDArray[np.bool_]],
        before: Tensor | None,
    ) -> tuple[dict[str, Tensor], Kept]:
        runs, steps = (batches if isinstance(batches, Tensor) else batches[0]).shape[:2]
        bits, places = np.zeros(steps, np.uint8), {"losses"}
        for name, when in wanted.items():
            bit, place = OBSERVED[name]
            bits |= np.where(when, bit, 0).astype(np.uint8)
            places.add(place)
        stacks: dict[str, Tensor] = {}
        for part, when in kept.items():
            bit, place = KEPT[part]
            bits |= np.where(when, bit, 0).astype(np.uint8)
            stacks[place] = weights.new_empty(int(when.sum()), *weights.shape)
            places |= {"full_losses"} if part == FULL else set()
        found = {place: weights.new_full((steps, runs), torch.nan) for place in places}
        self.engine.run(
            self.engine.whole, weights, wanted=bits, **self.engine.drawn(batches), rule=self.optimizer.name,
            options=list(self.optimizer.options), memory=list(memory.values()), rates=rates, first=first,
            before=before, **found, **{place: stack.flatten(0, 1) for place, stack in stacks.items()},
        )  # fmt: skip
        records = {name: found[OBSERVED[name][1]] for name in (*wanted, "minibatch_loss")}
        if "gradient_norm_sq" in records:
            records["gradient_norm_sq"] = records["gradient_norm_sq"].square()
        states: Kept = {}
        for part, when in kept.items():
            states[part] = dict(zip(np.flatnonzero(when).tolist(), stacks[KEPT[part][1]], strict=True))
        if FULL in states:
            states[FULL] = {k: (found["full_losses"][k], gradients) for k, gradients in states[FULL].items()}
        return records, states


def native(problem: Problem) -> Engine | str:
    """The engine for a problem, or why it does not take it."""
    if MODULE is None:
        return f"the package was installed without its compiled engine ({MISSING})"
    if problem.device.type != "cpu" or problem.dtype not in (torch.float32, torch.float64):
        return f"weights of type {problem.dtype} on {problem.device} are not for the processor's vectors"
    layers = layers_of(problem, known)
    return layers if isinstance(layers, str) else Native(problem, layers)


def instruction_sets() -> list[str]:
    """Those that this processor has, the one in use first; none where the kernel is not built."""
    return [] if MODULE is None else MODULE.instruction_sets()


def known(module: nn.Module) -> Known | None:
    """The kernel's activation that a module is; a subclass may be something else."""
    match module:
        case nn.ReLU() | nn.Tanh() | nn.Sigmoid() if type(module) in (nn.ReLU, nn.Tanh, nn.Sigmoid):
            return Known(type(module).__name__.lower())
        case nn.LeakyReLU() if type(module) is nn.LeakyReLU and module.negative_slope > 0:
            return Known("leaky_relu", (module.negative_slope,))
        case nn.Softplus() if type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20):
            return Known("softplus")
        case nn.GELU() if type(module) is nn.GELU:
            return Known("gelu" if module.approximate == "none" else "gelu_tanh")
        case Polynomial() if type(module) is Polynomial:
            return Known("polynomial", module.coefficients)
    return None


def optimizer_of(rule: Rule) -> Optimizer | None:
    """The kernel's form of a rule, or None where it has none."""
    if isinstance(rule, rules.Clipped):
        return _optimizer(rule.rule, rule.max_norm)
    return _optimizer(rule, 0.0)


def _optimizer(rule: Rule, largest: float) -> Optimizer | None:
    match rule:
        case rules.SGD(_, momentum, dampening, nesterov, decay):
            return Optimizer("sgd", (momentum, dampening, float(nesterov), decay, 0.0, largest))
        case rules.AveragedMomentum(_, momentum, decay):
            return Optimizer("averaged_momentum", (momentum, 0.0, 0.0, decay, 0.0, largest))
        case rules.HeavyBall(_, momentum, decay):
            return Optimizer("heavy_ball", (momentum, 0.0, 0.0, decay, 0.0, largest))
        case rules.Adam(_, (beta1, beta2), eps, decay, amsgrad):
            name = "adamw" if type(rule) is rules.AdamW else "adam"
            return Optimizer(name, (beta1, beta2, float(amsgrad), decay, eps, largest))
    return None
