"""What both optimizers share: the order of a step, the estimates of L, and what they refuse.

A step: the closure if there is one; step sizes from the averages of earlier batches (or from the oracle); the update;
then this batch joins the averages, and L may be probed. So a step size never depends on the batch it multiplies.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shotnoise.errors import InputError, NonFiniteError
from shotnoise.optim.exact import Exact
from shotnoise.optim.noise import Estimates
from shotnoise.optim.smoothness import HessianNorm, Secant
from shotnoise.optim.theory import check_smoothness
from shotnoise.random_state import preserved_random_state

Group = dict[str, Any]
Closure = Callable[[], Any]
Oracle = dict[int, tuple[Tensor, Any]]


class NoiseAware(Optimizer):
    """Base of the optimizers here; a subclass says how averages are kept and which step follows from them."""

    by_coordinate: bool

    def __init__(
        self,
        params: Iterable[Any],
        noise: Estimates | Exact,
        smoothness: float | Secant | HessianNorm,
        lr: float,
        *,
        beta: float,
        weight_decay: float,
        warmup: int,
        every: int,
        maximize: bool,
        foreach: bool | None,
        differentiable: bool,
        capturable: bool,
    ) -> None:
        if not isinstance(noise, (Estimates, Exact)):
            raise InputError(
                f"noise={type(noise).__name__}: where the noise is read; sn.optim.Observed(model) reads it off the "
                "backward pass, sn.optim.Microbatches() off micro-batches, sn.optim.Exact(problem, batch_size) off "
                "all samples"
            )
        if not isinstance(smoothness, (int, float, Secant, HessianNorm)):
            raise InputError(
                f"smoothness={smoothness!r}: a number, or how to estimate it: sn.optim.Secant() with step(closure), "
                "or sn.optim.HessianNorm(problem)"
            )
        if differentiable or capturable:
            raise InputError(
                "differentiable=True and capturable=True are not supported: the step size is computed in Python from "
                "numbers that have left the graph and the device; leave both False"
            )
        self.noise = noise
        self.probe = None if isinstance(smoothness, (int, float)) else smoothness
        known = check_smoothness(smoothness) if isinstance(smoothness, (int, float)) else None
        defaults: Group = {
            "lr": lr,
            "beta": beta,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "every": every,
            "maximize": maximize,
            "foreach": foreach,
            "smoothness": known,
            "step": 0,
            "batches": 0,
        }
        super().__init__(params, defaults | self._more_defaults())

    def _more_defaults(self) -> Group:
        return {}

    @abstractmethod
    def _sizes(self, group: Group, parameters: list[Tensor], oracle: Oracle | None) -> Any:
        """The steps for these parameters, from the averages or the oracle; None for no step."""

    @abstractmethod
    def _update(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], sizes: Any) -> None:
        """theta <- theta - size * gradient."""

    @abstractmethod
    def _means(self, data: list[Tensor]) -> list[Any]:
        """What `Estimates.variances` takes: ||g||^2, or g itself by coordinate. Raises NonFiniteError."""

    @abstractmethod
    def _average(self, group: Group, parameters: list[Tensor], means: list[Any]) -> None:
        """Let this batch join the averages. means: of the whole gradient, from `_means`."""

    def _data_means(self, group: Group, parameters: list[Tensor], means: list[Any]) -> list[Any]:
        """Those of the data's gradient, which alone is noisy, from those of the whole gradient."""
        if not group["weight_decay"]:
            return means
        return self._means([p.grad for p in parameters if p.grad is not None])

    def add_param_group(self, param_group: Group) -> None:
        """As in torch: a group may have options of its own, and is a block with a step size of its own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(p.is_complex() for p in group["params"]):
            raise InputError("complex parameters are not supported; use torch.view_as_real")
        _check(*(group[name] for name in ("lr", "beta", "weight_decay", "warmup", "every")))
        if group["smoothness"] is None:
            group["smoothness"] = self.param_groups[0]["smoothness"]
        parameters = [p for g in self.param_groups for p in g["params"]]
        if isinstance(self.noise, Estimates):
            self.noise.bind(parameters, self.by_coordinate, lambda: any(map(_is_looked_at, self.param_groups)))
        else:
            self.noise.bind(parameters, self.by_coordinate)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; what was read of the batch is dropped with its gradient."""
        super().zero_grad(set_to_none)
        if isinstance(self.noise, Estimates):
            self.noise.forget()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One update. closure: clears the gradients, computes the loss, differentiates and returns it.

        Raises NonFiniteError, before any weight has changed, for a gradient that is not finite; InputError for sparse
        gradients, or a `Secant` without a closure.
        """
        number = self.param_groups[0]["step"]
        secant = self.probe if isinstance(self.probe, Secant) and number % self.probe.every == 0 else None
        if isinstance(self.probe, Secant) and closure is None:
            raise InputError("smoothness=Secant(...) evaluates the loss again: call step(closure), or give a number")
        if isinstance(self.probe, HessianNorm) and number % self.probe.every == 0:
            self._set_smoothness(self.probe.at(number))
        replay = _random_state() if secant else []
        loss = self._evaluate(closure) if closure is not None else None

        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        groups = [(group, parameters) for group, parameters in groups if parameters]
        oracle = self.noise.moments() if isinstance(self.noise, Exact) else None
        gradients = [self._gradients(group, parameters) for group, parameters in groups]
        readings = [self._read(group, g) for (group, _), g in zip(groups, gradients, strict=True)]
        sizes = [self._sizes(group, parameters, oracle) for group, parameters in groups]
        before = [p.clone() for _, parameters in groups for p in parameters] if secant else []
        for (group, parameters), g, size in zip(groups, gradients, sizes, strict=True):
            if size is not None:
                self._update(group, parameters, g, size)
        for (group, parameters), reading in zip(groups, readings, strict=True):
            group["step"] += 1
            if reading is not None:
                self._average(group, parameters, reading)
                group["batches"] += 1
        if isinstance(self.noise, Estimates):
            self.noise.forget()
        if secant is not None and closure is not None:
            self._probe_secant(secant, closure, groups, before, [g for part in gradients for g in part], replay)
        return loss

    def _gradients(self, group: Group, parameters: list[Tensor]) -> list[Tensor]:
        """What is descended: the data's gradient, the penalty's added, the sign turned for an ascent."""
        data = []
        for p in parameters:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise InputError(
                    f"a gradient of shape {tuple(p.shape)} is sparse, and the step needs its squared norm over all "
                    "entries; build the embedding with sparse=False"
                )
            data.append(-p.grad if group["maximize"] else p.grad)
        if group["weight_decay"]:
            return list(torch._foreach_add(data, parameters, alpha=group["weight_decay"]))
        return data

    def _read(self, group: Group, total: list[Tensor]) -> list[Any] | None:
        """The gradient as `_means` gives it, if this batch is one that is looked at."""
        if isinstance(self.noise, Exact) or not _is_looked_at(group):
            require_finite([norm(total)])
            return None
        return self._means(total)

    def _probe_secant(
        self,
        secant: Secant,
        closure: Closure,
        groups: list[tuple[Group, list[Tensor]]],
        before: list[Tensor],
        first: list[Tensor],
        replay: list[Tensor],
    ) -> None:
        """L from the gradients of one batch before and after the step; weights and gradients are left as they were."""
        parameters = [p for _, part in groups for p in part]
        kept = [p.grad for p in parameters]
        stood_still = all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
        if stood_still:
            _move_a_little(parameters, first, secant.trial)
        for p in parameters:
            p.grad = None  # so that the closure cannot overwrite what `first` and `kept` hold
        try:
            with preserved_random_state():
                _set_random_state(replay)
                self._evaluate(closure, counted=False)
            for p, g in zip(parameters, kept, strict=True):
                p.grad = torch.zeros_like(g) if p.grad is None and g is not None else p.grad
            again = [g for group, part in groups for g in self._gradients(group, part)]
            moved = norm(torch._foreach_sub(parameters, before))
            found = norm(torch._foreach_sub(again, first)) / moved if moved > 0 else 0.0
        finally:
            for p, g in zip(parameters, kept, strict=True):
                p.grad = g
            if stood_still:
                torch._foreach_copy_(parameters, before)
        self._set_smoothness(secant.updated(self.param_groups[0]["smoothness"], found))

    def _evaluate(self, closure: Closure, counted: bool = True) -> Any:
        with torch.enable_grad():
            if counted or not isinstance(self.noise, Estimates):
                return closure()
            with self.noise.paused():
                return closure()

    def _set_smoothness(self, value: float | None) -> None:
        for group in self.param_groups:
            group["smoothness"] = value


def _is_looked_at(group: Group) -> bool:
    """Whether the coming batch joins the averages: all in the warm-up, then every `every`-th."""
    return bool(group["step"] % group["every"] == 0 or group["batches"] < group["warmup"])


def require_finite(values: Iterable[float]) -> None:
    """Raise NonFiniteError for NaN and infinite numbers."""
    if not all(abs(v) < float("inf") for v in values):
        raise NonFiniteError(
            "the gradient of this batch is not finite; no weight was changed. Look for a loss that overflows, or give "
            "a larger smoothness"
        )


def _move_a_little(parameters: list[Tensor], gradients: list[Tensor], trial: float) -> None:
    """Against the gradient, by `trial` times the norm of the parameters."""
    if (length := norm(gradients)) > 0:
        torch._foreach_add_(parameters, gradients, alpha=-trial * (norm(parameters) or 1.0) / length)


def norm(tensors: tuple[Tensor, ...] | list[Tensor]) -> float:
    """Of all of them taken as one vector."""
    return float(torch.stack([n.double() for n in torch._foreach_norm(tensors)]).square().sum().sqrt())


def _random_state() -> list[Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def _check(lr: float, beta: float, weight_decay: float, warmup: int, every: int) -> None:
    if not 0 <= lr < 2:
        raise InputError(
            f"lr={lr}: the step is lr times the best one, and from 2 on nothing falls; between 0.5 and 1.5, such as 1 "
            "(for longer steps give a smaller smoothness)"
        )
    if not 0 <= beta < 1:
        raise InputError(f"beta={beta}: the weight of the past in the averages, from 0 up to below 1, such as 0.99")
    if not weight_decay >= 0:
        raise InputError(f"weight_decay={weight_decay}: expected 0 or more")
    if warmup < 1 or every < 1:
        raise InputError(f"warmup={warmup}, every={every}: whole numbers of batches, at least 1")
