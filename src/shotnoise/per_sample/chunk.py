"""One backward pass over a few samples, with every parameter's per-sample gradients: by rule, or written out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from shotnoise.evaluation import Evaluation, quiet
from shotnoise.named import Named
from shotnoise.per_sample import capture, explicit, finite
from shotnoise.per_sample.structure import PerSample
from shotnoise.samples import Batch

BY_RULE = "one backward pass"


@dataclass(frozen=True)
class Chunk:
    """What one backward pass tells about m samples, of the data part of the loss (without the penalty).

    indices (m,), losses (m,), gradient: the sum over the samples (of the parameters that were asked for), per_sample:
    gradients by parameter, paths: how each parameter's per-sample gradients were had.
    """

    indices: Tensor
    losses: Tensor
    gradient: Named
    per_sample: dict[str, PerSample]
    paths: dict[str, str]


def evaluate(
    evaluation: Evaluation,
    batch: tuple[Batch, Batch],
    indices: Tensor,
    distrusted: Mapping[str, str],
    summed: Collection[str] | None,
    check: bool,
) -> Chunk:
    """The pass over `batch`, the samples `indices`. distrusted: parameters whose layer rule does not hold, and why.

    summed: the parameters whose gradient is to be summed over the samples; None: all.
    check: whether to look for gradients that are not finite, which reads all of them once more.
    """
    inputs, targets = batch
    with quiet():
        found = capture.run(
            evaluation.model,
            evaluation.leaves,
            lambda: evaluation.losses(inputs, targets),
            len(indices),
            distrusted,
            summed,
        )
        finite.require_losses(found.losses, indices)
        per_sample, paths = dict(found.per_sample), dict.fromkeys(found.per_sample, BY_RULE)
        if found.missing:
            written, way = explicit.gradients(evaluation, list(found.missing), inputs, targets)
            per_sample |= {name: PerSample.of(g) for name, g in written.items()}
            paths |= {name: f"per-sample gradients by {way} ({why})" for name, why in found.missing.items()}
    ordered = {name: per_sample[name] for name in evaluation.leaves}
    if check:
        finite.require_gradients(ordered, found.gradient, indices)
    return Chunk(indices, found.losses, found.gradient, ordered, {name: paths[name] for name in ordered})
