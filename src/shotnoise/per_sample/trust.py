"""May this model be measured, and do the layer rules hold on it? Asked once per state of the model, on a few samples.

A sample's gradient exists only if its loss depends on this sample alone and is the same each time. The rules
assume that axis 0 is the samples all through the network. Neither can be read off the code of an arbitrary
module, so both are checked against the definition: each probe sample alone, by plain autograd.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

from shotnoise.errors import InputError, PerSampleGradientError
from shotnoise.per_sample.structure import PerSample

PROBES = 3
NOT_CONFIRMED = "its layer's rule does not hold here"


def require_usable(model: nn.Module) -> None:
    """Raise InputError unless the model has trainable, initialised real parameters on one device."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module cannot be differentiated per sample; pass the original nn.Module")
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if isinstance(p, UninitializedParameter):
            raise InputError(f"parameter {name!r} is not initialised (a lazy module): run the model on one batch first")
        if p.requires_grad and not p.is_floating_point():
            raise InputError(f"parameter {name!r} has type {p.dtype}; only real floating-point weights are supported")
    if not any(p.requires_grad for p in parameters.values()):
        raise InputError(
            f"{type(model).__name__} has no trainable parameter ({len(parameters)} parameters in all); "
            "set requires_grad=True on those whose noise you want"
        )
    devices = {str(p.device) for p in parameters.values()}
    if len(devices) > 1:
        raise InputError(
            f"the model's parameters are on different devices ({', '.join(sorted(devices))}); "
            "move the whole model to one with model.to(device)"
        )


def state_of(model: nn.Module) -> object:
    """What the answer depends on: which parameters train, and which modules are in training mode."""
    modes = tuple(module.training for module in model.modules())
    return modes, tuple((name, id(p), p.requires_grad) for name, p in model.named_parameters())


def require_per_sample_mode(model: nn.Module) -> None:
    """Raise PerSampleGradientError for modules that couple samples, draw random numbers or rewrite weights."""
    for name, module in model.named_modules():
        what = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise PerSampleGradientError(
                f"{what} normalises with the statistics of the batch, so no sample has a gradient of its own; "
                "call model.eval() to use the running statistics, or replace it by GroupNorm or LayerNorm"
            )
        if module.training and _drops_out(module):
            raise PerSampleGradientError(
                f"{what} is in training mode, so the gradient of a sample is random; "
                "call model.eval(), or set its dropout probability to 0"
            )
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise PerSampleGradientError(
                f"{what} has max_norm={module.max_norm}, which rewrites the weights in the forward pass; "
                "renormalise the weights once and build it with max_norm=None"
            )


def require_deterministic(forward: Callable[[], object]) -> None:
    """Raise PerSampleGradientError if the forward pass draws random numbers."""
    before = torch.get_rng_state()
    forward()
    if not torch.equal(before, torch.get_rng_state()):
        raise PerSampleGradientError(
            "the forward pass draws random numbers, so the gradient of a sample is random; "
            "call model.eval(), or pass the noise as an input so that it is fixed per sample"
        )


def disagreements(
    losses: Tensor,
    per_sample: Mapping[str, PerSample],
    alone: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
) -> dict[str, str]:
    """Parameters whose per-sample gradients differ from those of the samples taken alone, with the reason.

    losses (m,) and per_sample: of the probe samples together; alone: loss and gradient of each by itself.
    """
    single_losses = torch.stack([loss for loss, _ in alone])
    scale = single_losses.abs().max() + losses.abs().max() + torch.finfo(losses.dtype).tiny
    if bool(((losses - single_losses).abs() > _tolerance(losses) ** 0.5 * scale).any()):
        raise PerSampleGradientError(
            f"the losses of {len(alone)} samples are {_short(losses)} when evaluated together but "
            f"{_short(single_losses)} one at a time: the model mixes samples of a batch, so no sample has a "
            "gradient of its own; look for batch statistics, or for an input whose first axis is not the samples"
        )
    wrong = {}
    for name, gradients in per_sample.items():
        expected = torch.stack([gradient[name] for _, gradient in alone])
        # ||g - h||^2 from the three products that the structure can give
        squares = expected.flatten(1).square().sum(1)
        dots = torch.stack([gradients.dot(h)[i] for i, h in enumerate(expected)])
        error = (gradients.squared_norms() - 2 * dots + squares).max()
        if not bool(error <= _tolerance(losses) * squares.max()):
            wrong[name] = NOT_CONFIRMED
    return wrong


def _tolerance(tensor: Tensor) -> float:
    """Of squared relative errors: a wrong rule errs by order one, rounding by much less than this."""
    return float(torch.finfo(tensor.dtype).eps) ** 0.5


def _drops_out(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RReLU):
        return True
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    return False


def _short(values: Tensor) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"
