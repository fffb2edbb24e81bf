"""The noise of a batch from a few micro-batches, for models whose samples have no gradients of their own.

noise = sn.optim.Microbatches()
for inputs, targets in parts:                         # r >= 2 parts of equal size
    (loss(model(inputs), targets) / r).backward()
    noise.mark()
optimizer.step()
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.optim.noise import Estimates, always, variance_of_mean


class Microbatches(Estimates):
    """Unbiased for any model (with batch normalisation for the loss of micro-batches), from r >= 2 parts.

    Call `mark()` after the backward pass of each part. The estimates are noisier than per-sample ones: the part of
    their variance that is quadratic in the noise grows by up to r / (r - 1). A copy of the gradient is kept.
    drawn: m/n where the parts together are m of n samples, drawn without replacement.
    """

    def __init__(self, drawn: float = 0.0) -> None:
        if not 0 <= drawn <= 1:
            raise InputError(f"drawn={drawn}: the share of the data that a batch holds, 0 to 1")
        self.drawn = drawn
        self._parameters: list[Tensor] = []
        self._paused = False
        self.forget()

    def bind(self, parameters: Sequence[Tensor], by_coordinate: bool, wanted: Callable[[], bool] = always) -> None:
        super().bind(parameters, by_coordinate, wanted)
        self._parameters = list(parameters)

    def forget(self) -> None:
        self._count = 0
        self._before: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @torch.no_grad()
    def mark(self) -> None:
        """A micro-batch ends here: what was added to the gradients since the last mark is its contribution."""
        if not self._parameters:
            raise InputError("mark() before an optimizer was built with this noise: which gradients are meant?")
        if self._paused or not self.wanted():
            return
        self._count += 1
        for p in self._parameters:
            if p.grad is None:
                continue
            before = self._before.get(id(p))
            square = (p.grad if before is None else p.grad - before).square()
            square = square if self.by_coordinate else square.sum()
            self._sums[id(p)] = self._sums[id(p)] + square if id(p) in self._sums else square
            self._before[id(p)] = p.grad.clone()

    def variances(self, parameters: Sequence[Tensor], means: Sequence[Any]) -> list[Any]:
        r = self._count
        if r < 2:
            raise InputError(
                f"{r} micro-batches since the last step: divide the batch into at least 2 and call mark() after the "
                "backward pass of each"
            )
        sums = [self._sums[id(p)] for p in parameters]
        if self.by_coordinate:
            return [variance_of_mean(a, g.square(), r, self.drawn) for a, g in zip(sums, means, strict=True)]
        return [variance_of_mean(float(a), b, r, self.drawn) for a, b in zip(sums, means, strict=True)]
