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
from shotnoise.errors import InputError, PerSampleGradientError, ShotnoiseError
from shotnoise.per_sample import capture, explicit, finite, trust
from shotnoise.per_sample.structure import PerSample
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
        self._measurable: object = None
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
            layers.setdefault(finite.layer_of(name), []).append(name)
        return layers

    @property
    def penalty(self) -> float:
        """(l2/2) ||w||^2"""
        if not self.l2:
            return 0.0
        return 0.5 * self.l2 * float(sum(p.detach().double().square().sum() for p in self.parameters.values()))

    def losses(self, indices: Tensor | None = None) -> Tensor:
        """The loss of each sample, penalty included, (m,). indices: which samples; None is all of them."""
        self._require_measurable()
        penalty = self.penalty
        with self._quiet(), torch.no_grad():
            parts = [self._losses(self._leaves(), *self._batch(i)) for i in self.chunks(indices, 4096)]
        return torch.cat(parts) + penalty

    def loss(self, indices: Tensor | None = None) -> float:
        """The mean loss over the samples, penalty included."""
        return float(self.losses(indices).double().mean())

    def gradient(self, indices: Tensor | None = None, chunk_size: int = 4096) -> Named:
        """The gradient of `loss`, one tensor per parameter. Raises NonFiniteError where it is not finite."""
        self._require_measurable()
        count = self.n if indices is None else len(indices)
        with self._quiet():
            leaves = self._leaves()
            total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
            for chunk in self.chunks(indices, chunk_size):
                losses = self._losses(leaves, *self._batch(chunk))
                finite.require_losses(losses, chunk)
                for name, g in _grad(losses.sum(), leaves).items():
                    total[name] += g
        if not finite.all_finite(g.sum() for g in total.values()):
            for _ in self.passes(indices):  # raises where it finds the sample to blame
                pass
            finite.require_sums(total, "gradient")
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
        chunk_size = self.chunk_size
        count = self.n if indices is None else len(indices)
        with self._quiet(), explicit.elementary_kernels():
            leaves = self._leaves()
            vector = self._require_vector(vector)
            total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
            for chunk in self.chunks(indices, chunk_size):
                losses = self._losses(leaves, *self._batch(chunk))
                finite.require_losses(losses, chunk)
                slope = _grad(losses.sum(), leaves, create_graph=True)
                along = torch.stack([(slope[name] * vector[name]).sum() for name in leaves]).sum()
                for name, g in _grad(along, leaves).items():
                    total[name] += g
        finite.require_sums(total, "Hessian-vector product")
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

    def _require_vector(self, vector: Mapping[str, Tensor]) -> Named:
        """Copies of the vector's tensors, which may have been made in inference mode."""
        expected = {name: tuple(p.shape) for name, p in self.parameters.items()}
        found = {name: tuple(v.shape) for name, v in vector.items()}
        if found != expected:
            raise InputError(f"a vector needs one tensor per parameter, {expected}; got {found}")
        return {name: vector[name].detach().clone() for name in expected}

    def _pass(self, indices: Tensor, distrusted: Mapping[str, str], with_gradient: bool) -> Chunk:
        with self._quiet():
            leaves = self._leaves()
            inputs, targets = self._batch(indices)
            found = capture.run(
                self.model,
                leaves,
                lambda: self._losses(leaves, inputs, targets),
                len(indices),
                distrusted,
                with_gradient,
            )
            finite.require_losses(found.losses, indices)
            per_sample, paths = dict(found.per_sample), dict.fromkeys(found.per_sample, "structure")
            if found.missing:
                written, way = self._written_out(leaves, found.missing, inputs, targets)
                per_sample |= written
                paths |= {name: f"per-sample gradients by {way} ({why})" for name, why in found.missing.items()}
        ordered = {name: per_sample[name] for name in leaves}
        finite.require_gradients(ordered, found.gradient, indices)
        return Chunk(indices, found.losses, found.gradient, ordered, {name: paths[name] for name in leaves})

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
        return {name: PerSample.of(g) for name, g in found.items()}, way

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
        inputs = tree_map(Tensor.clone, inputs)  # the model may work on them in place
        args, kwargs = (), {}
        if isinstance(inputs, dict):
            kwargs = inputs
        else:
            args = inputs if isinstance(inputs, tuple) else (inputs,)
        with _preserved_attributes(self.model):
            outputs = torch.func.functional_call(self.model, state, args, kwargs)
            if checked:
                self.loss_spec.check(outputs, targets)
            values = self.loss_spec.per_sample(outputs, targets)
        return losses_module.require_per_sample(values, len(tree_leaves(inputs)[0]), self.loss_spec.name)

    def _require_measurable(self) -> None:
        """Once per state of the model: does each sample have a loss and a gradient of its own?"""
        state = trust.state_of(self.model)
        if self._measurable != state:
            trust.require_usable(self.model)
            trust.require_per_sample_mode(self.model)
            self._require_evaluable()
            self._measurable = state

    def _check_model(self) -> dict[str, str]:
        """Once per state of the model: can it be measured, and which parameters have no layer rule that holds?"""
        self._require_measurable()
        state = trust.state_of(self.model)
        if self._checked is None or self._checked[0] != state:
            self._checked = (state, self._distrusted_rules())
        return self._checked[1]

    @property
    def _probes(self) -> Tensor:
        return torch.linspace(0, self.n - 1, min(self.n, trust.PROBES)).long()

    def _distrusted_rules(self) -> dict[str, str]:
        """Which parameters' layer rules fail on a few samples, judged by these samples one at a time."""
        indices = self._probes
        try:
            distrusted = self._compare_with_alone(indices, self.dtype)
            doubt: PerSampleGradientError | None = None
        except PerSampleGradientError as error:
            distrusted, doubt = {}, error
        if self.dtype != torch.float64 and (doubt or trust.NOT_CONFIRMED in distrusted.values()):
            # Rounding can look like a wrong rule where losses are nearly zero, so ask again in double precision.
            with suppress(RuntimeError):
                return self._compare_with_alone(indices, torch.float64)
        if doubt:
            raise doubt
        return distrusted

    def _compare_with_alone(self, indices: Tensor, dtype: torch.dtype) -> dict[str, str]:
        m = len(indices)
        with self._quiet():
            leaves = {name: self._cast(p.detach(), dtype).requires_grad_() for name, p in self.parameters.items()}
            inputs, targets = tree_map(lambda t: self._cast(t, dtype), self._batch(indices))
            together = capture.run(self.model, leaves, lambda: self._losses(leaves, inputs, targets), m, {})
            finite.require_losses(together.losses, indices)
            alone = []
            for i in range(m):
                loss = self._losses(leaves, *tree_map(lambda t, i=i: t[i : i + 1], (inputs, targets)))[0]
                alone.append((loss.detach(), _grad(loss, leaves)))
                single = {name: PerSample.of(g[None]) for name, g in alone[-1][1].items()}
                finite.require_gradients(single, {}, indices[i : i + 1])
        wrong = trust.disagreements(together.losses, together.gradient, together.per_sample, alone)
        # A parameter without structure here gets none later: where the samples are on another axis, a chunk
        # whose size happens to be that of the first axis would look as if it had.
        distrusted = together.missing | wrong
        recorded = sum(g.nbytes for name, g in together.per_sample.items() if name not in distrusted)
        written = sum(leaves[name].numel() * leaves[name].element_size() for name in distrusted)
        self._chunk_size = min(4096, max(1, ACTIVATION_BYTES * m // max(1, recorded + m * written)))
        return distrusted

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`tensor` in `dtype` if it has the model's precision; integers and others are left alone."""
        return tensor.to(dtype) if tensor.dtype == self.dtype else tensor

    def _require_evaluable(self) -> None:
        """Raise unless the model takes a few samples, the same way each time, and leaves its weights alone."""
        with self._quiet():
            weights = {name: leaf.detach().clone().requires_grad_() for name, leaf in self._leaves().items()}
            weights |= {name: p.detach().clone() for name, p in self.model.named_parameters() if name not in weights}
            inputs, targets = self._batch(self._probes)

            def losses() -> Tensor:
                values = self._losses(weights, inputs, targets).detach()
                trust.require_unchanged(dict(self.model.named_parameters()), weights)
                return values

            try:
                trust.require_deterministic(losses)
            except ShotnoiseError:
                raise
            except Exception as error:
                shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tree_leaves(inputs))
                raise InputError(
                    f"the model or the loss failed on {len(self._probes)} samples (inputs {shapes}; parameters "
                    f"{self.dtype} on {self.device}): {error}"
                ) from error

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Gradients on, whatever the caller has set, and the random state as it was when the block ends."""
        with torch.inference_mode(False), torch.enable_grad(), preserved_random_state():
            yield


@contextmanager
def _preserved_attributes(model: nn.Module) -> Iterator[None]:
    """What a forward pass leaves in attributes of modules is taken back; recurrent layers keep their weights there."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).update(attributes)
            for added in vars(module).keys() - attributes.keys():
                del vars(module)[added]


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
