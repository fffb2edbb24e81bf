"""The fluctuation-dissipation relation on a training loop as it is: two numbers per step from the optimizer's hooks."""

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.predict.stationary.dissipation import fluctuation_dissipation


class DissipationMeter:
    """Records w_t . g_t and ||m_{t+1}||^2 at every step of a `torch.optim.SGD`, until `close`.

    g_t has the optimizer's weight decay in it, w_t is counted from where it was when this was made, which the relation
    allows and which makes it less noisy. Costs two inner products a step and a copy of the weights. With momentum make
    it after 1 / (1 - momentum) steps of training, or later: the velocity must have forgotten its start.

    Raises InputError for other optimizers, Nesterov momentum, dampening, maximize, or learning rates that differ
    between groups of parameters: the relation is another one there.

    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer, noise = torch.optim.SGD([w], lr=0.5), torch.Generator().manual_seed(0)
    >>> meter = DissipationMeter(optimizer)
    >>> for _ in range(1000):
    ...     optimizer.zero_grad()
    ...     (0.5 * (w - torch.randn(1, generator=noise, dtype=torch.float64)) ** 2).sum().backward()
    ...     _ = optimizer.step()
    >>> str(meter.result()["status"].values)
    'stationary'
    """

    def __init__(self, optimizer: torch.optim.SGD) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise InputError(f"optimizer: the relation is one of torch.optim.SGD; got {type(optimizer).__name__}")
        for name in ("lr", "momentum"):
            if len({float(group[name]) for group in optimizer.param_groups}) > 1:
                raise InputError(f"optimizer: {name} differs between the groups of parameters; it must be one number")
        for name in ("nesterov", "dampening", "maximize"):
            if any(group[name] for group in optimizer.param_groups):
                raise InputError(f"optimizer: {name} is set; the relation is one of plain momentum, m <- mu m + g")
        self._optimizer = optimizer
        self._origin = {p: p.detach().clone() for p in self._parameters}
        self._rates: list[float] = []
        self._inner: list[Tensor] = []
        self._squared: list[Tensor] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def steps(self) -> int:
        return len(self._squared)

    def result(self, last: int | None = None, *, batches: int = 20, alarm: float = 1e-3) -> xr.Dataset:
        """`fluctuation_dissipation` of the steps so far, or of the last so many.

        Raises InputError where the learning rate changed on the way.
        """
        steps = self.steps if last is None else last
        if not 0 < steps <= self.steps:
            raise InputError(f"last={last}: {self.steps} steps are recorded")
        rates = set(self._rates[-steps:])
        if len(rates) > 1:
            raise InputError(
                f"the learning rate changed between {min(rates):g} and {max(rates):g} in these {steps} steps; ask for "
                "the last of one rate"
            )
        inner, squared = (torch.stack(series[-steps:]).cpu().numpy() for series in (self._inner, self._squared))
        momentum = float(self._optimizer.param_groups[0]["momentum"])
        return fluctuation_dissipation(inner, squared, rates.pop(), momentum, batches=batches, alarm=alarm)

    def close(self) -> None:
        """Record no more."""
        for hook in self._hooks:
            hook.remove()

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        total = torch.zeros((), dtype=torch.float64)
        squared = torch.zeros((), dtype=torch.float64)
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    g = p.grad + group["weight_decay"] * p
                    total += ((p - self._origin[p]) * g).sum().double().cpu()
                    squared += g.square().sum().double().cpu()
        self._rates.append(float(self._optimizer.param_groups[0]["lr"]))
        self._inner.append(total)
        self._squared.append(squared)  # without momentum m is g

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        if self._optimizer.param_groups[0]["momentum"]:
            buffers = [self._optimizer.state[p].get("momentum_buffer") for p in self._parameters]
            self._squared[-1] = torch.stack([b.square().sum().double().cpu() for b in buffers if b is not None]).sum()
