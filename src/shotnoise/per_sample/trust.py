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
from shotnoise.random_state import random_fingerprint

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
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise PerSampleGradientError(
                f"{what} has max_norm={module.max_norm}, which rewrites the weights in the forward pass; "
                "renormalise the weights once and build it with max_norm=None"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.scale_grad_by_freq:
            raise PerSampleGradientError(
                f"{what} has scale_grad_by_freq=True, which divides by the frequency in the batch, so no sample has a "
                "gradient of its own; build it with scale_grad_by_freq=False"
            )


def require_deterministic(forward: Callable[[], Tensor]) -> None:
    """Raise PerSampleGradientError if the forward pass draws random numbers, or its losses differ when repeated."""
    before = random_fingerprint()
    first, again = forward(), forward()
    if random_fingerprint() != before or not torch.allclose(first, again, rtol=1e-3, equal_nan=True):
        raise PerSampleGradientError(
            "the forward pass draws random numbers, so the gradient of a sample is random; "
            "call model.eval(), or pass the noise as an input so that it is fixed per sample"
        )


def require_unchanged(parameters: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> None:
    """Raise PerSampleGradientError if a forward pass on `used`, fresh copies of `parameters`, has changed them."""
    for name, copy in used.items():
        if copy._version > 0 or not torch.allclose(copy, parameters[name], rtol=0, atol=0, equal_nan=True):
            raise PerSampleGradientError(
                f"the forward pass rewrites the parameter {name!r} in place, so the loss is not a function of the "
                "weights; apply the constraint once before measuring, or as a parametrization "
                "(torch.nn.utils.parametrize)"
            )


def disagreements(
    losses: Tensor,
    summed: Mapping[str, Tensor],
    per_sample: Mapping[str, PerSample],
    alone: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
) -> dict[str, str]:
    """Parameters whose per-sample gradients differ from those of the samples taken alone, with the reason.

    losses (m,), summed gradient and per_sample: of the probe samples together; alone: loss and gradient of each by
    itself. Raises PerSampleGradientError if the losses or the summed gradient of both differ.
    """
    single_losses = torch.stack([loss for loss, _ in alone])
    scale = single_losses.abs().max() + losses.abs().max() + torch.finfo(losses.dtype).tiny
    if bool(((losses - single_losses).abs() > _tolerance(losses) ** 0.5 * scale).any()):
        raise PerSampleGradientError(
            f"the losses of {len(alone)} samples are {_short(losses)} when evaluated together but "
            f"{_short(single_losses)} one at a time: the model mixes samples of a batch, so no sample has a "
            "gradient of its own; look for batch statistics, or for an input whose first axis is not the samples"
        )
    expected = {name: torch.stack([gradient[name] for _, gradient in alone]) for name in summed}
    squares = {name: g.square().flatten(1).sum(1) if g.ndim > 1 else g.square() for name, g in expected.items()}
    # A gradient that is zero but for rounding (the key bias of attention) has errors on the scale of the others.
    noise = (1e3 * torch.finfo(losses.dtype).eps) ** 2 * sum(float(square.max()) for square in squares.values())
    wrong = {}
    for name, g in expected.items():
        allowed = _tolerance(losses) * float(squares[name].max()) + noise
        if not float((summed[name] - g.sum(0)).square().sum()) <= len(alone) ** 2 * allowed:
            raise PerSampleGradientError(
                f"the gradient of {len(alone)} samples with respect to {name!r} is not the sum of their gradients: "
                "the backward pass mixes samples of a batch (a hook, a custom autograd function or "
                "scale_grad_by_freq), so no sample has a gradient of its own"
            )
        if name in per_sample:
            # ||g - h||^2 from the three products that the structure can give
            dots = torch.stack([per_sample[name].dot(h)[i] for i, h in enumerate(g)])
            error = (per_sample[name].squared_norms() - 2 * dots + squares[name]).max()
            if not float(error) <= allowed:
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
