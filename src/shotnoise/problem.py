"""Problem: a model, a loss per sample and data. Every derivative in the library is asked for here.

    L(w) = (1/n) sum_i l_i(w) + (l2/2) ||w||^2

over the trainable parameters w. The penalty is common to all samples: it moves the gradient, not the noise.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shotnoise import losses as losses_module
from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, Slope, gradient, quiet
from shotnoise.named import Named, Sum, add, dot
from shotnoise.per_sample import examination, finite, trust
from shotnoise.per_sample.chunk import Chunk, evaluate
from shotnoise.per_sample.elementary import ElementaryNorms
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.samples import Batch, InMemory, Samples, hash_tensors
from shotnoise.samples import resolve as resolve_samples

LARGEST_CHUNK = 4096  # samples
LOSS_CHUNK = 512  # samples, where nothing is recorded and no gradient asked for
ACTIVATION_BYTES = 64 * 2**20  # what the recorded inputs and output gradients of one chunk may take


class Problem:
    """A model, a per-sample loss and data, ready to be measured.

    model: any `torch.nn.Module`; its trainable parameters (requires_grad) are the weights, frozen ones are constants.
    loss: "cross_entropy", "mse" (1/2 ||f(x) - y||^2 per sample), "logistic" (one output per sample, labels 0 and 1) or
        a callable loss(outputs, targets) -> (n,).
    inputs, targets: tensors with the samples on axis 0 (inputs may be a tuple or a dict of tensors, which the model
        receives as positional or keyword arguments), or one torch Dataset of (input, target) pairs.
    l2: the penalty (l2/2) ||w||^2 on all trainable parameters; what `weight_decay` is in torch.optim.SGD.
    chunk_size: samples per backward pass; by default so many that what a pass records stays below 64 MiB.

    The model is used in the mode (train or eval) and at the weights that it has when asked, and is modified by nothing
    but `place`.

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
        *,
        chunk_size: int | None = None,
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size={chunk_size}: at least one sample per pass, or None for a default")
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile keeps the module it wraps there
        self.loss_spec = losses_module.resolve(loss)
        self.samples = self._checked(inputs, targets)
        self.l2 = float(l2)
        self._chunk_size = chunk_size
        self._measurable: object = None  # the state of the model that was found so
        self._examined: tuple[object, examination.Findings] | None = None
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

    @property
    def penalty_gradient(self) -> Named:
        """l2 w"""
        return {name: self.l2 * p.detach() for name, p in self.parameters.items()}

    def losses(self, indices: Tensor | None = None) -> Tensor:
        """The loss of each sample, penalty included, (m,). indices: which samples; None is all of them."""
        self._require_measurable()
        size, evaluation, penalty = self._chunk_size or LOSS_CHUNK, self.evaluation(), self.penalty
        with quiet(), torch.no_grad():
            parts = [evaluation.losses(*self._batch(evaluation, i)) for i in self.chunks(indices, size)]
        return torch.cat(parts) + penalty

    def loss(self, indices: Tensor | None = None) -> float:
        """The mean loss over the samples, penalty included."""
        return float(self.losses(indices).double().mean())

    def gradient(self, indices: Tensor | None = None) -> Named:
        """The gradient of `loss`, one tensor per parameter. Raises NonFiniteError where it is not finite."""
        size = self.chunk_size
        count, total = self.n if indices is None else len(indices), Sum()
        with quiet():
            evaluation = self.evaluation()
            for chunk in self.chunks(indices, size):
                losses = evaluation.losses(*self._batch(evaluation, chunk))
                finite.require_losses(losses, chunk)
                total.add(gradient(losses.sum(), evaluation.leaves))
        mean = total.over(count)
        if not finite.all_finite(g.sum() for g in mean.values()):
            for _ in self.passes(indices):  # raises where it finds the sample to blame
                pass
            finite.require_sums(mean, "gradient")
        return add(mean, self.penalty_gradient) if self.l2 else mean

    def per_sample_gradients(self, indices: Tensor | None = None) -> Named:
        """The gradients of the samples written out, penalty included, (m, *parameter) each: m times the memory."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for chunk in self.passes(indices):
            for name, gradients in chunk.per_sample.items():
                found[name].append(gradients.explicit())
        shift = self.penalty_gradient
        return {name: torch.cat(parts) + shift[name] for name, parts in found.items()}

    def hessian_vector_product(self, vector: Mapping[str, Tensor], indices: Tensor | None = None) -> Named:
        """H v for the Hessian H of `loss` and a vector given as one tensor per parameter."""
        return self.hessian_vector_products([vector], indices)[0]

    def hessian_vector_products(
        self, vectors: Sequence[Mapping[str, Tensor]], indices: Tensor | None = None
    ) -> list[Named]:
        """H v for several vectors, which share the forward pass and the first backward pass over each chunk."""
        if not vectors:
            return []
        count = self.n if indices is None else len(indices)
        with quiet():
            wanted = torch.stack([self.flatten(self._require_vector(vector)) for vector in vectors])
            total = torch.zeros_like(wanted)
            for slope, _ in self.slopes(indices):
                total += slope.products(wanted, last=True)
            products = [self.unflatten(row) for row in total / count + self.l2 * wanted]
        for product in products:
            finite.require_sums(product, "Hessian-vector product")
        return products

    def slopes(self, indices: Tensor | None = None) -> Iterator[tuple[Slope, Tensor]]:
        """Chunk by chunk the summed gradient of the data losses with its graph, and the samples it is of.

        Raises InputError for a model or a loss that cannot be differentiated twice.
        """
        evaluation = self.evaluation()
        for chunk in self.chunks(indices, self.chunk_size):
            with quiet(), elementary_kernels():
                slope = Slope(self._summed(evaluation, chunk), evaluation.leaves)
            yield slope, chunk

    def third_derivatives(
        self, vectors: Sequence[Mapping[str, Tensor]], indices: Tensor | None = None
    ) -> list[tuple[Named, Named]]:
        """For each v: H v and D^3 L [v, v], the gradient of v^T H v at fixed v, from a third backward pass."""
        count = self.n if indices is None else len(indices)
        totals = [(Sum(), Sum()) for _ in vectors]
        with quiet(), elementary_kernels():
            evaluation = self.evaluation()
            wanted = [self._require_vector(vector) for vector in vectors]
            for chunk in self.chunks(indices, self.chunk_size):
                slope = gradient(self._summed(evaluation, chunk), evaluation.leaves, create_graph=True)
                for k, (vector, (total, curved)) in enumerate(zip(wanted, totals, strict=True)):
                    product = gradient(dot(slope, vector), evaluation.leaves, create_graph=True)
                    total.add({name: part.detach() for name, part in product.items()})
                    further = k + 1 < len(wanted)
                    curved.add(gradient(dot(product, vector), evaluation.leaves, retain_graph=further))
        found = [(total.over(count), curved.over(count)) for total, curved in totals]
        for product, third in found:
            finite.require_sums(product, "Hessian-vector product")
            finite.require_sums(third, "third derivative")
        return [
            ({name: g + self.l2 * vector[name] for name, g in product.items()}, third)
            for (product, third), vector in zip(found, wanted, strict=True)
        ]

    def _summed(self, evaluation: Evaluation, chunk: Tensor) -> Tensor:
        """The sum of the samples' losses, to be differentiated more than once."""
        with ElementaryNorms():
            losses = evaluation.losses(*self._batch(evaluation, chunk))
        finite.require_losses(losses, chunk)
        return losses.sum()

    def replica(self) -> "Problem":
        """The same problem with a copy of the model, whose weights may be changed; the data are shared."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other._measurable = other._examined = None
        return other

    def place(self, weights: Any) -> None:
        """Give the model these weights (p,), in the order of `parameters`: for a `replica`, since the model is changed.

        >>> moved = Problem(nn.Linear(1, 1, bias=False), "mse", torch.ones(4, 1), torch.zeros(4, 1)).replica()
        >>> moved.place([3.0])
        >>> moved.loss()
        4.5
        """
        vector = torch.as_tensor(weights)
        if vector.shape != (self.parameter_count,):
            raise InputError(f"weights: {self.parameter_count} numbers are needed; got {tuple(vector.shape)}")
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), self.unflatten(vector).values(), strict=True):
                parameter.copy_(value)

    def on(self, inputs: Any, targets: Any) -> "Problem":
        """The same model, not a copy of it, with the same loss on other samples of the same kind."""
        other = copy.copy(self)
        other.samples = self._checked(inputs, targets)
        return other

    def passes(
        self,
        indices: Tensor | None = None,
        *,
        with_gradient: bool = True,
        sparing: Iterable[str] = (),
        at_most: int | None = None,
        check: bool = True,
    ) -> Iterator[Chunk]:
        """One forward and backward pass over the samples, chunk by chunk; see `Chunk`.

        with_gradient=False leaves `Chunk.gradient` empty and saves about a third of the work; sparing: parameters that
        it does without; at_most bounds the number of samples per chunk. check=False is for who looks at all norms and
        at the norm of the sum anyway: it leaves out the search for gradients that are not finite.
        """
        findings = self._findings
        size = self._chunk_size_for(findings)
        evaluation = self.evaluation()
        summed = evaluation.leaves.keys() - sparing if with_gradient else set()
        for chunk in self.chunks(indices, min(size, at_most or size)):
            batch = self._batch(evaluation, chunk)
            yield evaluate(evaluation, batch, chunk, findings.distrusted, summed, check)

    def examine(self) -> None:
        """Raise now what a measurement would raise, from a few samples: a model that mixes samples, draws, fails."""
        _ = self._findings

    @property
    def chunk_size(self) -> int:
        """Samples per backward pass: as asked, or so many that what a pass records stays within ACTIVATION_BYTES."""
        return self._chunk_size or self._chunk_size_for(self._findings)

    @property
    def products(self) -> frozenset[str]:
        """The parameters whose gradient is one product d_i a_i^T per sample, as in a dense layer."""
        return self._findings.products

    @property
    def bytes_per_sample(self) -> int:
        """What one pass records of one sample, a measure of its activations."""
        return self._findings.bytes_per_sample

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

    def _chunk_size_for(self, findings: examination.Findings) -> int:
        fitting = ACTIVATION_BYTES // max(1, findings.bytes_per_sample)
        return self._chunk_size or min(LARGEST_CHUNK, max(1, fitting))

    def _require_vector(self, vector: Mapping[str, Tensor]) -> Named:
        """Copies of the vector's tensors, which may have been made in inference mode."""
        expected = {name: tuple(p.shape) for name, p in self.parameters.items()}
        found = {name: tuple(v.shape) for name, v in vector.items()}
        if found != expected:
            raise InputError(f"a vector needs one tensor per parameter, {expected}; got {found}")
        return {name: vector[name].detach().clone() for name in expected}

    def evaluation(self, dtype: torch.dtype | None = None) -> Evaluation:
        """Model, loss and present weights as a pure function of samples."""
        return Evaluation(self.model, self.loss_spec, dtype)

    def _checked(self, inputs: Any, targets: Any) -> Samples:
        samples = resolve_samples(inputs, targets)
        if isinstance(samples, InMemory):
            self.loss_spec.check_targets(samples.targets)
        return samples

    def _batch(self, evaluation: Evaluation, indices: Tensor) -> tuple[Batch, Batch]:
        return evaluation.place(self.samples.batch(indices))

    def _require_measurable(self) -> None:
        """Once per state of the model: does each sample have a loss and a gradient of its own?"""
        state = trust.state_of(self.model)
        if self._measurable != state:
            trust.require_usable(self.model)
            examination.require_measurable(self.evaluation, self.samples)
            self._measurable = state

    @property
    def _findings(self) -> examination.Findings:
        """Once per state of the model: which parameters have no layer rule that holds?"""
        state = trust.state_of(self.model)
        if self._examined is None or self._examined[0] != state:
            self._require_measurable()
            self._examined = (state, examination.examine(self.evaluation, self.samples))
        return self._examined[1]


__all__ = ["Chunk", "Problem"]
