"""The examination of a model before it is measured: on a few samples, against plain autograd; see `trust`."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from shotnoise.errors import InputError, PerSampleGradientError, ShotnoiseError
from shotnoise.evaluation import Evaluation, gradient, quiet
from shotnoise.per_sample import capture, finite, trust
from shotnoise.per_sample.structure import PerSample
from shotnoise.samples import Samples, tree_leaves, tree_map

Evaluate = Callable[[torch.dtype | None], Evaluation]  # at the present weights, in a precision of one's choice


@dataclass(frozen=True)
class Findings:
    """Parameters without a layer rule that holds, with the reason, and what a pass records per sample, in bytes.

    products: the parameters whose gradient is one product d_i a_i^T per sample, as in a dense layer.
    """

    distrusted: dict[str, str]
    bytes_per_sample: int
    products: frozenset[str] = frozenset()


def probes(samples: Samples) -> Tensor:
    return torch.linspace(0, samples.n - 1, min(samples.n, trust.PROBES)).long()


def require_measurable(evaluate: Evaluate, samples: Samples) -> None:
    """Raise unless the model takes a few samples, the same way each time, and leaves its weights alone."""
    with quiet():
        evaluation = evaluate(None)
        model = evaluation.model
        trust.require_usable(model)
        trust.require_per_sample_mode(model)
        copies = {name: p.detach().clone() for name, p in model.named_parameters()}
        weights = {name: p.requires_grad_(name in evaluation.leaves) for name, p in copies.items()}
        inputs, targets = evaluation.place(samples.batch(probes(samples)))

        def losses() -> Tensor:
            values = evaluation.losses(inputs, targets, weights).detach()
            trust.require_unchanged(dict(model.named_parameters()), weights)
            return values

        try:
            trust.require_deterministic(losses)
        except ShotnoiseError:
            raise
        except Exception as error:
            tensors = tree_leaves(inputs)
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
            raise InputError(
                f"the model or the loss failed on {len(tensors[0])} samples (inputs {shapes}; parameters "
                f"{evaluation.dtype} on {evaluation.device}): {error}"
            ) from error


def examine(evaluate: Evaluate, samples: Samples) -> Findings:
    """Which parameters' layer rules fail on a few samples, judged by these samples one at a time.

    Raises PerSampleGradientError if samples do not have losses or gradients of their own.
    """
    evaluation = evaluate(None)
    try:
        findings = compare_with_alone(evaluation, samples)
        doubt: PerSampleGradientError | None = None
    except PerSampleGradientError as error:
        findings, doubt = Findings({}, 1), error
    if evaluation.dtype != torch.float64 and (doubt or trust.NOT_CONFIRMED in findings.distrusted.values()):
        # Rounding can look like a wrong rule where losses are nearly zero, so ask again in double precision.
        with suppress(RuntimeError):
            return compare_with_alone(evaluate(torch.float64), samples)
    if doubt:
        raise doubt
    return findings


def compare_with_alone(evaluation: Evaluation, samples: Samples) -> Findings:
    indices, leaves = probes(samples), evaluation.leaves
    m = len(indices)
    with quiet():
        inputs, targets = evaluation.place(samples.batch(indices))
        together = capture.run(evaluation.model, leaves, lambda: evaluation.losses(inputs, targets), m, {})
        finite.require_losses(together.losses, indices)
        alone = []
        for i in range(m):
            x, y = tree_map(lambda t, i=i: t[i : i + 1], (inputs, targets))
            loss = evaluation.losses(x, y)[0]
            alone.append((loss.detach(), gradient(loss, leaves)))
            single = {name: PerSample.of(g[None]) for name, g in alone[-1][1].items()}
            finite.require_gradients(single, {}, indices[i : i + 1])
    wrong = trust.disagreements(together.losses, together.gradient, together.per_sample, alone)
    # A parameter without structure here gets none later: where the samples are on another axis, a chunk
    # whose size happens to be that of the first axis would look as if it had.
    distrusted = together.missing | wrong
    by_rule = {name: g for name, g in together.per_sample.items() if name not in distrusted}
    recorded = sum(g.nbytes for g in by_rule.values())
    written = sum(leaves[name].numel() * leaves[name].element_size() for name in distrusted)
    products = frozenset(name for name, g in by_rule.items() if g.factors)
    return Findings(distrusted, recorded // m + written, products)
