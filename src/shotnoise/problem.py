"""Problem: a model, a loss per sample and data. Every derivative in the library is asked for here.

    L(w) = (1/n) sum_i l_i(w) + (l2/2) ||w||^2

over the trainable parameters w. The penalty is common to all samples: it moves the gradient, not the noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shotnoise import losses as losses_module
from shotnoise.errors import InputError, NonFiniteError, PerSampleGradientError, ShotnoiseError
from shotnoise.per_sample import capture, explicit, trust
from shotnoise.per_sample.structure import Dense, PerSample
from shotnoise.random_state import preserved_random_state
from shotnoise.samples import Batch, hash_tensors, tree_leaves, tree_map
from shotnoise.samples import resolve as resolve_samples

Named = dict[str, Tensor]  # one tensor per trainable parameter, by its name in the model
ACTIVATION_BYTES = 64 * 2**20  # what the recorded inputs and output gradients of one chunk may take


@dataclass(frozen=True)
class Chunk:
    """What one backward pass tells about m samples, of the data part of the loss (without the penalty).

    indices (m,), losses (m,), gradient: the sum over the samples, per_sample: gradients by parameter,
    paths: how each parameter's per-sample gradients were had.
    """

    indices: Tensor
    losses: Tensor
    gradient: Named
    per_sample: dict[str, PerSample]
    paths: dict[str, str]


class Problem:
    """A model, a per-sample loss and data, ready to be measured.

    model: any `torch.nn.Module`; its trainable parameters (requires_grad) are the weights, frozen ones are constants.
    loss: "cross_entropy", "mse" (1/2 ||f(x) - y||^2 per sample) or a callable loss(outputs, targets) -> (n,).
    inputs, targets: tensors with the samples on axis 0 (inputs may be a tuple or a dict of tensors, which the model
        receives as positional or keyword arguments), or one torch Dataset of (input, target) pairs.
    l2: the penalty (l2/2) ||w||^2 on all trainable parameters; what `weight_decay` is in torch.optim.SGD.

    The model is used in the mode (train or eval) and at the weights that it has when asked, and is never modified.

    >>> problem = Problem(nn.Linear(1, 1, bias=False), "mse", torch.ones(4, 1), torch.zeros(4, 1))
    >>> problem.n, problem.parameter_count
    (4, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | losses_module.LossFunction,
        inputs: Any,
        targets: Any = None,
        l2: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile keeps the module it wraps there
        self.loss_spec = losses_module.resolve(loss)
        self.samples = resolve_samples(inputs, targets)
        self.l2 = float(l2)
        self._checked: tuple[object, dict[str, str]] | None = None
        self._chunk_size = 1
        trust.require_usable(self.model)

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.samples.n

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, a shared one once, under its first name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    @property
    def loss_name(self) -> str:
        return self.loss_spec.name

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layer name -> its parameters: a layer is a module that owns parameters itself; "(model)" is the root."""
        layers: dict[str, list[str]] = {}
        for name in self.parameters:
            layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(name)
        return layers

    @property
    def penalty(self) -> float:
        """(l2/2) ||w||^2"""
        return 0.5 * self.l2 * float(sum(p.detach().double().square().sum() for p in self.parameters.values()))

    def losses(self, indices: Tensor | None = None) -> Tensor:
        """The loss of each sample, penalty included, (m,). indices: which samples; None is all of them."""
        penalty = self.penalty
        with self._quiet(), torch.no_grad():
            parts = [self._losses(self._leaves(), *self._batch(i)) for i in self.chunks(indices, 4096)]
        return torch.cat(parts) + penalty

    def loss(self, indices: Tensor | None = None) -> float:
        """The mean loss over the samples, penalty included."""
        return float(self.losses(indices).double().mean())

    def gradient(self, indices: Tensor | None = None, chunk_size: int = 4096) -> Named:
        """The gradient of `loss`, one tensor per parameter. Raises NonFiniteError where a loss is not finite."""
        leaves = self._leaves()
        total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        count = self.n if indices is None else len(indices)
        with self._quiet():
            for chunk in self.chunks(indices, chunk_size):
                losses = self._losses(leaves, *self._batch(chunk))
                self._require_finite_losses(losses, chunk)
                for name, g in _grad(losses.sum(), leaves).items():
                    total[name] += g
        return {name: g / count + self.l2 * leaves[name].detach() for name, g in total.items()}

    def per_sample_gradients(self, indices: Tensor | None = None) -> Named:
        """The gradients of the samples written out, penalty included, (m, *parameter) each: m times the memory."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for chunk in self.passes(indices):
            for name, gradients in chunk.per_sample.items():
                found[name].append(gradients.explicit())
        shift = {name: self.l2 * p.detach() for name, p in self.parameters.items()}
        return {name: torch.cat(parts) + shift[name] for name, parts in found.items()}

    def hessian_vector_product(self, vector: Mapping[str, Tensor], indices: Tensor | None = None) -> Named:
        """H v for the Hessian H of `loss` and a vector given as one tensor per parameter."""
        leaves = self._leaves()
        total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        count = self.n if indices is None else len(indices)
        with self._quiet(), explicit.elementary_kernels():
            for chunk in self.chunks(indices, self.chunk_size):
                losses = self._losses(leaves, *self._batch(chunk))
                self._require_finite_losses(losses, chunk)
                slope = _grad(losses.sum(), leaves, create_graph=True)
                along = torch.stack([(slope[name] * vector[name]).sum() for name in leaves]).sum()
                for name, g in _grad(along, leaves).items():
                    total[name] += g
        return {name: g / count + self.l2 * vector[name] for name, g in total.items()}

    def passes(
        self, indices: Tensor | None = None, *, with_gradient: bool = True, at_most: int | None = None
    ) -> Iterator[Chunk]:
        """One forward and backward pass over the samples, chunk by chunk; see `Chunk`.

        with_gradient=False leaves `Chunk.gradient` empty and saves about a third of the work; at_most bounds the
        number of samples per chunk.
        """
        distrusted = self._check_model()
        for chunk in self.chunks(indices, min(self.chunk_size, at_most or self.chunk_size)):
            yield self._pass(chunk, distrusted, with_gradient)

    @property
    def chunk_size(self) -> int:
        """Samples per chunk such that what a pass records stays within ACTIVATION_BYTES."""
        self._check_model()
        return self._chunk_size

    def chunks(self, indices: Tensor | None, size: int) -> Iterator[Tensor]:
        """The indices (default: all) in pieces of at most `size`."""
        if indices is None:
            for start in range(0, self.n, size):
                yield torch.arange(start, min(start + size, self.n))
        else:
            yield from torch.as_tensor(indices).split(size)

    def fingerprints(self) -> dict[str, str]:
        """Short SHA-256 digests of the weights (with buffers) and of the data."""
        state = [t for t in self.model.state_dict().values() if isinstance(t, Tensor)]
        return {"model_fingerprint": hash_tensors(state), "data_fingerprint": self.samples.fingerprint()}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """One vector (p,) in the order of `parameters`."""
        return torch.cat([named[name].reshape(-1) for name in self.parameters])

    def unflatten(self, vector: Tensor) -> Named:
        """The inverse of `flatten`."""
        parameters = self.parameters
        pieces = vector.split([p.numel() for p in parameters.values()])
        return {name: piece.view(p.shape) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}

    def _pass(self, indices: Tensor, distrusted: Mapping[str, str], with_gradient: bool) -> Chunk:
        leaves = self._leaves()
        inputs, targets = self._batch(indices)
        with self._quiet():
            found = capture.run(
                self.model,
                leaves,
                lambda: self._losses(leaves, inputs, targets),
                len(indices),
                distrusted,
                with_gradient,
            )
            self._require_finite_losses(found.losses, indices)
            per_sample, paths = dict(found.per_sample), dict.fromkeys(found.per_sample, "structure")
            if found.missing:
                written, way = self._written_out(leaves, found.missing, inputs, targets)
                per_sample |= written
                paths |= {name: f"per-sample gradients by {way} ({why})" for name, why in found.missing.items()}
        ordered = {name: per_sample[name] for name in leaves}
        return Chunk(indices, found.losses, found.gradient, ordered, paths)

    def _written_out(
        self, leaves: Named, missing: Mapping[str, str], inputs: Batch, targets: Batch
    ) -> tuple[dict[str, PerSample], str]:
        """The gradients of the parameters without structure, for these alone."""
        wanted = {name: leaves[name] for name in missing}
        others = {name: leaf.detach() for name, leaf in leaves.items() if name not in missing}

        def one_loss(some: Mapping[str, Tensor], x: Batch, y: Batch) -> Tensor:
            inputs, targets = tree_map(lambda t: t[None], (x, y))
            return self._losses({**others, **some}, inputs, targets, checked=False)[0]

        def loop() -> explicit.Gradients:
            m = len(tree_leaves(inputs)[0])
            rows = [tree_map(lambda t, i=i: t[i], (inputs, targets)) for i in range(m)]
            each = [_grad(one_loss(wanted, *row), wanted) for row in rows]
            return {name: torch.stack([g[name] for g in each]) for name in wanted}

        found, way = explicit.gradients(one_loss, wanted, inputs, targets, loop)
        parts = {
            name: PerSample([Dense(g.reshape(len(g), *(leaves[name].shape or (1,))))], leaves[name].shape)
            for name, g in found.items()
        }
        return parts, way

    def _leaves(self) -> Named:
        """The trainable parameters detached from the user's: same memory, no gradient or hook of theirs is touched."""
        return {name: p.detach().requires_grad_() for name, p in self.parameters.items()}

    def _batch(self, indices: Tensor) -> tuple[Batch, Batch]:
        device = self.device
        inputs, targets = self.samples.batch(indices)
        return tree_map(lambda t: t.to(device), (inputs, targets))

    def _losses(self, leaves: Mapping[str, Tensor], inputs: Batch, targets: Batch, checked: bool = True) -> Tensor:
        """The data losses (m,) at `leaves`, with the buffers cloned so that a forward pass cannot change them."""
        dtype = next(iter(leaves.values())).dtype
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        constants = {name: b.clone() for name, b in self.model.named_buffers()} | frozen
        state = {name: self._cast(t, dtype) for name, t in constants.items()} | dict(leaves)
        args, kwargs = (), {}
        if isinstance(inputs, dict):
            kwargs = inputs
        else:
            args = inputs if isinstance(inputs, tuple) else (inputs,)
        outputs = torch.func.functional_call(self.model, state, args, kwargs)
        if checked:
            self.loss_spec.check(outputs, targets)
        values = self.loss_spec.per_sample(outputs, targets)
        return losses_module.require_per_sample(values, len(tree_leaves(inputs)[0]), self.loss_spec.name)

    def _check_model(self) -> dict[str, str]:
        """Once per state of the model: can it be measured, and which layer rules fail on it?"""
        state = trust.state_of(self.model)
        if self._checked is None or self._checked[0] != state:
            trust.require_usable(self.model)
            trust.require_per_sample_mode(self.model)
            self._checked = (state, self._distrusted_rules())
        return self._checked[1]

    def _distrusted_rules(self) -> dict[str, str]:
        """Which parameters' layer rules fail on a few samples, judged by these samples one at a time."""
        indices = torch.linspace(0, self.n - 1, min(self.n, trust.PROBES)).long()
        self._require_evaluable(indices)
        try:
            distrusted = self._compare_with_alone(indices, self.dtype)
            doubt: PerSampleGradientError | None = None
        except PerSampleGradientError as error:
            distrusted, doubt = {}, error
        if self.dtype != torch.float64 and (distrusted or doubt):
            # Rounding can look like a wrong rule where losses are nearly zero, so ask again in double precision.
            with suppress(RuntimeError):
                return self._compare_with_alone(indices, torch.float64)
        if doubt:
            raise doubt
        return distrusted

    def _compare_with_alone(self, indices: Tensor, dtype: torch.dtype) -> dict[str, str]:
        leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in self._leaves().items()}
        inputs, targets = tree_map(lambda t: self._cast(t, dtype), self._batch(indices))
        m = len(indices)
        with self._quiet():
            together = capture.run(self.model, leaves, lambda: self._losses(leaves, inputs, targets), m, {})
            alone = []
            for i in range(m):
                loss = self._losses(leaves, *tree_map(lambda t, i=i: t[i : i + 1], (inputs, targets)))[0]
                alone.append((loss.detach(), _grad(loss, leaves)))
        recorded = sum(gradients.nbytes for gradients in together.per_sample.values())
        self._chunk_size = min(4096, max(1, ACTIVATION_BYTES * m // max(1, recorded)))
        return trust.disagreements(together.losses, together.per_sample, alone)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`tensor` in `dtype` if it has the model's precision; integers and others are left alone."""
        return tensor.to(dtype) if tensor.dtype == self.dtype else tensor

    def _require_evaluable(self, indices: Tensor) -> None:
        inputs, targets = self._batch(indices)
        try:
            with self._quiet():
                trust.require_deterministic(lambda: self._losses(self._leaves(), inputs, targets))
        except ShotnoiseError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tree_leaves(inputs))
            raise InputError(
                f"the model or the loss failed on {len(indices)} samples (inputs {shapes}; parameters {self.dtype} "
                f"on {self.device}): {error}"
            ) from error

    def _require_finite_losses(self, losses: Tensor, indices: Tensor) -> None:
        bad = (~torch.isfinite(losses.detach())).nonzero()
        if len(bad):
            sample = int(indices[int(bad[0])])
            raise NonFiniteError(
                f"the loss of sample {sample} is {float(losses[int(bad[0])].detach())} "
                f"({len(bad)} of these {len(losses)} samples are not finite); look at this sample's input and at the "
                "weights, which may have diverged"
            )

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Gradients on, whatever the caller has set, and the random state as it was when the block ends."""
        with torch.inference_mode(False), torch.enable_grad(), preserved_random_state():
            yield


def _grad(total: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False) -> Named:
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found: Sequence[Tensor | None] = torch.autograd.grad(
        total, list(leaves.values()), create_graph=create_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(leaf) if g is None else g.to_dense()
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


__all__ = ["Chunk", "Problem"]
