"""The diagonal form: every coordinate has the step size that its own noise leaves room for."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from shotnoise.optim.base import Group, NoiseAware, Oracle, norm, require_finite
from shotnoise.optim.exact import Exact
from shotnoise.optim.noise import Estimates
from shotnoise.optim.smoothness import HessianNorm, Secant

KEPT = ("square", "second_moment", "ratio")  # of each parameter: averages of g^2 - V and of g^2, and rho


class PreconditionedSGD(NoiseAware):
    """theta_j <- theta_j - (lr / L) rho_j g_j,  rho_j = mu_j^2 / E g_j^2 from the batches before this one.

    Arguments as for `AdaptiveSGD`. E g_j^2 is estimated by the average of g_j^2, mu_j^2 by that of g_j^2 - V_j with V_j
    the unbiased variance of g_j from the per-sample gradients (or micro-batches) of the batch; rho_j is the ratio of
    the averages clipped to [0, 1], and 0 where a coordinate has no gradient (dead units).

    The sums over samples of g_ij^2 cost about as much as the weight gradients, so only every `every`-th batch is
    looked at; beta counts these. Keeps three numbers per parameter. The guarantee (`guaranteed_decrease` of the
    coordinates, with `Exact` and a valid L) is never weaker than that of `AdaptiveSGD`; estimated, the many ratios are
    far noisier than the one. Source: Li, Gu, Zhou, Chen, Banerjee, Theorem 3 (36), with the fourth power of mu_j.
    """

    by_coordinate = True

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
        every: int = 4,
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
        """For each parameter group L, the mean of the ratios, and the share of coordinates that stand still."""
        found = []
        for group in self.param_groups:
            ratios = [self.state[p]["ratio"].flatten() for p in group["params"] if "ratio" in self.state[p]]
            ratio = torch.cat(ratios) if ratios else torch.zeros(1)
            found.append(
                {
                    "signal_ratio": float(ratio.mean()),
                    "still": float((ratio == 0).double().mean()),
                    "smoothness": group["smoothness"] or float("inf"),
                }
            )
        return found

    def _sizes(self, group: Group, parameters: list[Tensor], oracle: Oracle | None) -> list[Tensor] | None:
        if oracle is not None:
            for p in parameters:
                mu, variance = oracle[id(p)]
                decay = -group["weight_decay"] if group["maximize"] else group["weight_decay"]
                square = torch.add(mu, p, alpha=decay).square()
                self.state[p]["ratio"] = torch.empty_like(p)
                _ratios([square], [square + variance], [self.state[p]["ratio"]])
        elif group["batches"] < group["warmup"]:
            return None
        if not group["smoothness"]:
            return None
        return [self.state[p]["ratio"] if "ratio" in self.state[p] else torch.zeros_like(p) for p in parameters]

    def _update(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], sizes: list[Tensor]) -> None:
        scale = -group["lr"] / group["smoothness"]
        if group["foreach"] is False:
            for p, g, ratio in zip(parameters, gradients, sizes, strict=True):
                p.addcmul_(g, ratio, value=scale)
        else:
            torch._foreach_addcmul_(parameters, gradients, sizes, value=scale)

    def _means(self, data: list[Tensor]) -> list[Tensor]:
        require_finite([norm(data)])
        return data

    def _average(self, group: Group, parameters: list[Tensor], means: list[Tensor]) -> None:
        for p in parameters:
            if "ratio" not in self.state[p]:
                self.state[p] |= {name: torch.zeros_like(p) for name in KEPT}
        square, second, ratio = ([self.state[p][name] for p in parameters] for name in KEPT)
        assert isinstance(self.noise, Estimates)
        beta = group["beta"]
        self.noise.subtract_variances(parameters, self._data_means(group, parameters, means), square, beta)
        torch._foreach_mul_(second, beta)
        for average in (square, second):
            torch._foreach_addcmul_(average, means, means, value=1 - beta)
        if group["batches"] + 1 >= group["warmup"]:  # both averages lack the same factor, which the ratio does not see
            _ratios(square, second, ratio)


def _ratios(squares: list[Tensor], seconds: list[Tensor], out: list[Tensor]) -> None:
    """squares / seconds, clipped to [0, 1]; 0 where both are 0, and below 0."""
    for square, second, ratio in zip(squares, seconds, out, strict=True):
        torch.div(square, second, out=ratio).nan_to_num_(0.0).clamp_(0.0, 1.0)
