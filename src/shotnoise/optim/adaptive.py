"""SGD with the step size that the noise leaves room for, one for each parameter group."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shotnoise.optim.base import Group, NoiseAware, Oracle, require_finite
from shotnoise.optim.exact import Exact
from shotnoise.optim.noise import Estimates
from shotnoise.optim.smoothness import HessianNorm, Secant
from shotnoise.optim.theory import signal_ratio


class AdaptiveSGD(NoiseAware):
    """theta <- theta - (lr / L) rho g,  rho = ||mu||^2 / E||g||^2 from the batches before this one.

    noise: where the noise of a batch is read: `Observed(model)`, `Microbatches()`, or the oracle `Exact(problem, ...)`.
    smoothness: L, a number, or how to estimate it: `Secant()` (needs `step(closure)`) or `HessianNorm(problem)`.
    lr: c of the theory, dimensionless, 0 <= lr < 2; 1 is best, 1/2 to 3/2 the window (35). Schedulers scale it.
    beta: weight of the past in the averages of ||g||^2 and of the unbiased estimate of ||mu||^2, which may be negative
        (then there is no step until the average is positive again).
    warmup: so many first batches are looked at without a step. every: look at every so many-th batch afterwards.
    weight_decay: a penalty (weight_decay / 2) ||theta||^2, as in torch.optim.SGD.

    A parameter group is a block with averages and a step of its own. With `Exact` and a valid L the expected loss falls
    by `guaranteed_decrease` at every step; with estimates nothing is guaranteed. Not offered: momentum (the theorem has
    none), sparse gradients, capturable, differentiable. Source: Li, Gu, Zhou, Chen, Banerjee, Theorem 3 (35).

    >>> model = torch.nn.Linear(2, 1)
    >>> from shotnoise.optim import Observed
    >>> optimizer = AdaptiveSGD(model.parameters(), Observed(model), smoothness=4.0, warmup=1)
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    >>> for step in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (model(x[step % 4 :: 4]) - 1).square().mean()
    ...     loss.backward()
    ...     _ = optimizer.step()
    >>> bool(loss < 1e-3)
    True
    """

    by_coordinate = False

    def __init__(
        self,
        params: Iterable[Any],
        noise: Estimates | Exact,
        smoothness: float | Secant | HessianNorm,
        lr: float = 1.0,
        *,
        beta: float = 0.99,
        weight_decay: float = 0.0,
        warmup: int = 10,
        every: int = 1,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params, noise, smoothness, lr, beta=beta, weight_decay=weight_decay, warmup=warmup, every=every,
            maximize=maximize, foreach=foreach, differentiable=differentiable, capturable=capturable,
        )  # fmt: skip

    def report(self) -> list[dict[str, float]]:
        """For each parameter group what the next step will use: averages, ratio, L and the step size.

        With `Exact`, what the step before used.
        """
        return [_current(group) for group in self.param_groups]

    def _more_defaults(self) -> Group:
        return {"gradient_norm_sq": 0.0, "batch_gradient_norm_sq": 0.0}

    def _sizes(self, group: Group, parameters: list[Tensor], oracle: Oracle | None) -> float | None:
        if oracle is not None:
            moments = [oracle[id(p)] for p in parameters]
            mean = _norm_sq([self._with_penalty(group, p, mu) for p, (mu, _) in zip(parameters, moments, strict=True)])
            group["gradient_norm_sq"] = sum(mean)
            group["batch_gradient_norm_sq"] = sum(mean) + sum(float(v) for _, v in moments)
        elif group["batches"] < group["warmup"]:
            return None
        return _current(group)["step_size"]

    def _with_penalty(self, group: Group, p: Tensor, mu: Tensor) -> Tensor:
        return torch.add(mu, p, alpha=-group["weight_decay"] if group["maximize"] else group["weight_decay"])

    def _update(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], sizes: float) -> None:
        if group["foreach"] is False:
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(g, alpha=-sizes)
        else:
            torch._foreach_add_(parameters, gradients, alpha=-sizes)

    def _means(self, data: list[Tensor]) -> list[float]:
        squares = _norm_sq(data)
        require_finite(squares)
        return squares

    def _average(self, group: Group, parameters: list[Tensor], means: list[float]) -> None:
        assert isinstance(self.noise, Estimates)
        variance = sum(self.noise.variances(parameters, self._data_means(group, parameters, means)))
        weight = _weight(group)
        second = sum(means)
        for name, found in (("gradient_norm_sq", second - variance), ("batch_gradient_norm_sq", second)):
            group[name] += weight * (found - group[name])


def _weight(group: Group) -> float:
    """Of the newest batch in a bias-corrected exponential average: 1 for the first, towards 1 - beta."""
    beta = group["beta"]
    return (1 - beta) / (1 - beta ** (group["batches"] + 1))


def _current(group: Group) -> dict[str, float]:
    square, second, smoothness = group["gradient_norm_sq"], group["batch_gradient_norm_sq"], group["smoothness"]
    ratio = float(signal_ratio(square, second))
    return {
        "gradient_norm_sq": square,
        "batch_gradient_norm_sq": second,
        "signal_ratio": ratio,
        "smoothness": smoothness or float("inf"),
        "step_size": group["lr"] * ratio / smoothness if smoothness else 0.0,
    }


def _norm_sq(tensors: list[Tensor]) -> list[float]:
    norms = torch.stack([n.double() for n in torch._foreach_norm(tensors)])
    return norms.square().tolist()
