"""Update rules that lead R independent runs together from w_t to w_{t+1}.

Weights and gradients are tensors (R, P), one run per row, P all parameters of a run flattened. A rule changes the
weights in place, never the gradient, and no row depends on another one: a run comes out the same, bit for bit, alone
and in any crowd, and a row of NaN stays the only one. g is the gradient, a the learning rate of the update.

    SGD                 PyTorch's: m <- mu m + g from m = g at first, w <- w - a m
    AveragedMomentum    m <- mu m + (1 - mu) g from m = 0,            w <- w - a m
    HeavyBall           Polyak's: w_{t+1} = w_t - a g_t + mu (w_t - w_{t-1})
    Adam, AdamW         PyTorch's
    RMSProp             PyTorch's
    Preconditioned      w <- w - a M m, m as in SGD
    DampedNewton        w <- w - a (H + damping I)^-1 m
    NaturalGradient     w <- w - a (J(w) + damping I)^-1 m
    Clipped             any of these on gradients of bounded norm

AveragedMomentum at a is SGD at a (1 - mu). HeavyBall is SGD as long as a stays the same; when a changes, SGD applies
the new value to the old gradients in m too, and HeavyBall does not. `weight_decay` adds weight_decay * w to g, in
AdamW it subtracts a * weight_decay * w from w; unlike PyTorch's it may be negative, which theory sometimes finds
to be optimal.
"""

import hashlib
import inspect
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shotnoise import schedules
from shotnoise.errors import InputError
from shotnoise.schedules import LearningRate, number

State = dict[str, Tensor]
SHARED = "matrix"  # the one entry of a state that is not (R, P), one row per run, but belongs to all runs


class Curvature(Protocol):
    """Second derivatives and Fisher matrices of linear regression with squared loss, for the rules that use them."""

    def hessian(self) -> Tensor:
        """The Hessian of the training loss, (P, P); the same at all weights."""

    def model_fisher(self) -> Tensor:
        """(1/n) sum_i x_i x_i^T, (P, P): Fisher's matrix of Gaussian labels of unit variance, the same everywhere."""

    def fisher(self, weights: Tensor) -> Tensor:
        """(1/n) sum_i g_i g_i^T of the per-sample gradients at each run's weights: (R, P) to (R, P, P)."""


@dataclass(frozen=True)
class Rule:
    """An update rule; use one of its subclasses.

    `learning_rate` is a number, a sequence with one value per update, or a function of t (see `schedules`); who runs
    the rule takes its values from there and hands each to `step`. All parameters are checked on construction, and
    InputError says which one is wrong.
    """

    learning_rate: LearningRate

    def __post_init__(self) -> None:
        self._keep("learning_rate", schedules.checked(self.learning_rate))

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    @property
    def needs_curvature(self) -> bool:
        """Whether `step` wants a Curvature, which only linear regression with squared loss has."""
        return False

    def check(self, parameter_count: int) -> None:
        """Raise InputError unless the rule can advance runs of so many parameters."""

    def start(self, weights: Tensor) -> State:
        """The state before the first update of the runs with these weights (R, P)."""
        if weights.ndim != 2 or not weights.is_floating_point():
            raise InputError(
                f"weights of shape {tuple(weights.shape)} and type {weights.dtype}: expected real floating-point "
                "numbers of shape (runs, parameters); flatten the parameters of each run into one row"
            )
        self.check(weights.shape[1])
        return {name: torch.zeros_like(weights) for name in self._per_run()}

    def step(
        self,
        weights: Tensor,
        gradient: Tensor,
        state: State,
        learning_rate: float,
        t: int,
        curvature: Curvature | None = None,
    ) -> None:
        """Update t = 0, 1, ... since `start`: changes `weights` and `state` in place and leaves `gradient` alone.

        Neither may require gradients.
        """
        self._advance(weights, gradient, state, learning_rate, t)

    def describe(self, steps: int) -> dict[str, Any]:
        """What identifies the rule over `steps` updates, ready for JSON: its name, its parameters and the learning
        rate as `schedules.describe` has it. Unlike the repr it knows functions by their values.

        >>> SGD(0.1, momentum=0.9).describe(100)["momentum"]
        0.9
        """
        named = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "learning_rate"}
        parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}
        return {"name": self.name, **parameters, "learning_rate": schedules.describe(self.learning_rate, steps)}

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        """`step` of a rule that needs no curvature."""
        raise NotImplementedError

    def _per_run(self) -> tuple[str, ...]:
        """The names of what the rule remembers of each run, (R, P)."""
        return ()

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _keep_number(self, name: str, *, such_as: float, low: float = -math.inf, below: float = math.inf) -> None:
        self._keep(name, number(name, getattr(self, name), low=low, below=below, such_as=such_as))

    def _keep_flag(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise InputError(f"{name}={getattr(self, name)!r}: expected True or False")


@dataclass(frozen=True)
class SGD(Rule):
    """`torch.optim.SGD`: m <- mu m + (1 - dampening) g, undamped m = g at first, and w <- w - a m.

    With nesterov the step is a (g + mu m). mu = 0 is w <- w - a g.

    >>> rule, weights = SGD(0.1, momentum=0.5), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> state = rule.start(weights)
    >>> for t in range(2):
    ...     rule.step(weights, torch.ones_like(weights), state, 0.1, t)
    >>> weights.tolist()
    [[0.75, 1.75]]
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_number("momentum", low=0, below=1, such_as=0.9)
        self._keep_number("dampening", low=0, below=1, such_as=0.0)
        self._keep_number("weight_decay", such_as=1e-4)
        self._keep_flag("nesterov")
        if self.nesterov and (not self.momentum or self.dampening):
            raise InputError(
                f"nesterov=True with momentum={self.momentum:g} and dampening={self.dampening:g}: "
                "expected momentum > 0 and dampening=0"
            )

    def _per_run(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        gradient = _decayed(gradient, weights, self.weight_decay)
        momentum = self._buffer(gradient, state, t)
        if self.nesterov:
            weights.add_(gradient, alpha=-learning_rate)
            weights.add_(momentum, alpha=-learning_rate * self.momentum)
        else:
            weights.add_(momentum, alpha=-learning_rate)

    def _buffer(self, gradient: Tensor, state: State, t: int) -> Tensor:
        if not self.momentum or not self.dampening:
            return _momentum(gradient, state, self.momentum)
        if t == 0:
            return state["momentum"].copy_(gradient)
        return state["momentum"].mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)


@dataclass(frozen=True)
class AveragedMomentum(Rule):
    """m <- mu m + (1 - mu) g from m = 0, w <- w - a m: the step is an average of the gradients so far.

    The same as SGD(a (1 - mu), momentum=mu). PyTorch's SGD with dampening=mu differs: its first gradient enters
    with weight 1.
    """

    momentum: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_number("momentum", low=0, below=1, such_as=0.9)
        self._keep_number("weight_decay", such_as=1e-4)

    def _per_run(self) -> tuple[str, ...]:
        return ("momentum",)

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        gradient = _decayed(gradient, weights, self.weight_decay)
        weights.add_(state["momentum"].lerp_(gradient, 1 - self.momentum), alpha=-learning_rate)


@dataclass(frozen=True)
class HeavyBall(Rule):
    """Polyak's w_{t+1} = w_t - a_t g_t + mu (w_t - w_{t-1}), from w_{-1} = w_0.

    The state holds the last step w_t - w_{t-1}, free of the rounding of that difference.
    """

    momentum: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_number("momentum", low=0, below=1, such_as=0.9)
        self._keep_number("weight_decay", such_as=1e-4)

    def _per_run(self) -> tuple[str, ...]:
        return ("last_step",)

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        gradient = _decayed(gradient, weights, self.weight_decay)
        weights.add_(state["last_step"].mul_(self.momentum).add_(gradient, alpha=-learning_rate))


@dataclass(frozen=True)
class Adam(Rule):
    """`torch.optim.Adam`, the decay being part of the gradient; its eps is outside the root."""

    learning_rate: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise InputError(f"betas={self.betas!r}: expected two numbers, such as (0.9, 0.999)")
        kept = [number(f"betas[{i}]", beta, low=0, below=1, such_as=0.9) for i, beta in enumerate(self.betas)]
        self._keep("betas", tuple(kept))
        self._keep_number("eps", low=0, such_as=1e-8)
        self._keep_number("weight_decay", such_as=1e-2)
        self._keep_flag("amsgrad")

    def _per_run(self) -> tuple[str, ...]:
        return ("mean", "square", "largest_square") if self.amsgrad else ("mean", "square")

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        gradient = self._decay(weights, gradient, learning_rate)
        beta1, beta2 = self.betas
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if self.amsgrad:
            square = torch.maximum(state["largest_square"], square, out=state["largest_square"])
        # Both bias corrections go into the two numbers of the step, which spares a pass over the weights.
        root = math.sqrt(1 - beta2 ** (t + 1))
        rate = learning_rate * root / (1 - beta1 ** (t + 1))
        weights.addcdiv_(mean, square.sqrt().add_(self.eps * root), value=-rate)

    def _decay(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        """The gradient to use, after what the decay does to the weights themselves."""
        return _decayed(gradient, weights, self.weight_decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """`torch.optim.AdamW`: Adam with w <- (1 - a weight_decay) w before the step, the decay not in the gradient."""

    weight_decay: float = 1e-2

    def _decay(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
        if self.weight_decay:
            weights.mul_(1 - learning_rate * self.weight_decay)
        return gradient


@dataclass(frozen=True)
class RMSProp(Rule):
    """`torch.optim.RMSprop`: the gradient over the root of its mean square, or with `centered` of its variance."""

    learning_rate: LearningRate = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_number("alpha", low=0, below=1, such_as=0.99)
        self._keep_number("eps", low=0, such_as=1e-8)
        self._keep_number("weight_decay", such_as=1e-4)
        self._keep_number("momentum", low=0, below=1, such_as=0.9)
        self._keep_flag("centered")

    def _per_run(self) -> tuple[str, ...]:
        return ("square", *["mean"] * self.centered, *["momentum"] * bool(self.momentum))

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        gradient = _decayed(gradient, weights, self.weight_decay)
        square = state["square"].mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        if self.centered:
            mean = state["mean"].lerp_(gradient, 1 - self.alpha)
            root = square.addcmul(mean, mean, value=-1).sqrt_().add_(self.eps)
        else:
            root = square.sqrt().add_(self.eps)
        if self.momentum:
            weights.add_(state["momentum"].mul_(self.momentum).addcdiv_(gradient, root), alpha=-learning_rate)
        else:
            weights.addcdiv_(gradient, root, value=-learning_rate)


@dataclass(frozen=True, init=False, repr=False)
class Matrix:
    """A matrix (P, P), or the diagonal (P,) of one, kept read-only in float64; compares by value, prints short.

    Raises InputError for other shapes and for entries that are not finite numbers.

    >>> Matrix([1.0, 2.0]) == Matrix((1, 2)), Matrix([1.0, 2.0]) == Matrix([[1.0, 0.0], [0.0, 2.0]])
    (True, False)
    """

    array: NDArray[np.float64] = field(compare=False)
    sha256: str

    def __init__(self, entries: ArrayLike | Tensor) -> None:
        try:
            found = entries.detach().cpu().numpy() if isinstance(entries, Tensor) else entries
            array = np.array(found).astype(np.float64, casting="same_kind")
        except (TypeError, ValueError) as error:
            raise InputError(f"matrix: expected real numbers of shape (P, P) or (P,), but {error}") from error
        if array.ndim not in (1, 2) or array.shape[0] != array.shape[-1] or not array.size:
            raise InputError(f"matrix has shape {array.shape}; expected (P, P), or (P,) for a diagonal matrix")
        if not np.isfinite(array).all():
            raise InputError(f"matrix: {np.sum(~np.isfinite(array))} of its entries are NaN or infinite")
        array.flags.writeable = False
        object.__setattr__(self, "array", array)
        digest = hashlib.sha256(repr(array.shape).encode() + array.astype("<f8").tobytes()).hexdigest()
        object.__setattr__(self, "sha256", digest)

    def __repr__(self) -> str:
        return f"Matrix(shape={self.array.shape}, sha256={self.sha256[:16]})"


@dataclass(frozen=True)
class Preconditioned(Rule):
    """w <- w - a M m with a fixed M, an array or tensor (P, P), or (P,) for a diagonal; m <- mu m + g as in SGD.

    >>> rule, weights = Preconditioned(1.0, [0.5, 0.25]), torch.tensor([[1.0, 1.0]])
    >>> rule.step(weights, weights.clone(), rule.start(weights), 1.0, 0)
    >>> weights.tolist()
    [[0.5, 0.75]]
    """

    matrix: Any  # given as an array, kept as a Matrix
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("matrix", self.matrix if isinstance(self.matrix, Matrix) else Matrix(self.matrix))
        self._keep_number("momentum", low=0, below=1, such_as=0.9)

    def check(self, parameter_count: int) -> None:
        shape = self.matrix.array.shape
        if shape[0] != parameter_count:
            raise InputError(
                f"matrix has shape {shape}, but each run has {parameter_count} parameters; "
                f"expected {(parameter_count,) * 2} or {(parameter_count,)}"
            )

    def start(self, weights: Tensor) -> State:
        columns = torch.from_numpy(np.array(self.matrix.array.T, order="C"))
        return {**super().start(weights), SHARED: columns.to(weights)}

    def _per_run(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _advance(self, weights: Tensor, gradient: Tensor, state: State, learning_rate: float, t: int) -> None:
        matrix, momentum = state[SHARED], _momentum(gradient, state, self.momentum)
        if matrix.ndim == 1:
            weights.addcmul_(momentum, matrix, value=-learning_rate)
        else:
            weights.add_(_products(matrix, momentum), alpha=-learning_rate)

    def describe(self, steps: int) -> dict[str, Any]:
        matrix = {"shape": list(self.matrix.array.shape), "sha256": self.matrix.sha256}
        return {**super().describe(steps), "matrix": matrix}


class _SecondOrder(Rule):
    """w <- w - a (curvature + damping I)^-1 m; a constant curvature is inverted once, by the first update."""

    damping: float
    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_number("damping", low=0, such_as=1e-3)
        self._keep_number("momentum", low=0, below=1, such_as=0.9)

    @property
    def needs_curvature(self) -> bool:
        return True

    def _per_run(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def step(
        self,
        weights: Tensor,
        gradient: Tensor,
        state: State,
        learning_rate: float,
        t: int,
        curvature: Curvature | None = None,
    ) -> None:
        if curvature is None:
            raise InputError(
                f"{self.name} is for linear regression with squared loss, whose curvature is known; none was given "
                "here. Use Preconditioned with a matrix of your own, or another rule"
            )
        momentum = _momentum(gradient, state, self.momentum)
        weights.add_(self._direction(momentum, weights, state, curvature), alpha=-learning_rate)

    def _direction(self, momentum: Tensor, weights: Tensor, state: State, curvature: Curvature) -> Tensor:
        """(curvature + damping I)^-1 m in every row, (R, P)."""
        raise NotImplementedError

    def _inverse(self, curvature: Tensor, words: str, weights: Tensor) -> Tensor:
        """(curvature + damping I)^-1 in the type of the weights, (P, P)."""
        count = weights.shape[1]
        if curvature.shape != (count, count) or not bool(curvature.isfinite().all()):
            raise InputError(
                f"the {words} has shape {tuple(curvature.shape)} and {int((~curvature.isfinite()).sum())} entries "
                f"that are NaN or infinite; expected finite numbers of shape {(count, count)}"
            )
        eigenvalues, vectors = torch.linalg.eigh(curvature.double())
        eigenvalues = eigenvalues + self.damping
        sizes = eigenvalues.abs()
        if sizes.min() <= count * torch.finfo(curvature.dtype).eps * sizes.max():
            raise InputError(
                f"the {words} plus damping={self.damping:g} is singular: its eigenvalues range in size from "
                f"{float(sizes.min()):.2g} to {float(sizes.max()):.2g}; pass a larger damping, such as "
                f"{max(1e-3 * float(sizes.max()), 1e-3):.1g}"
            )
        return ((vectors / eigenvalues) @ vectors.T).to(weights)


@dataclass(frozen=True)
class DampedNewton(_SecondOrder):
    """w <- w - a (H + damping I)^-1 m, H the Hessian of linear regression with squared loss; m as in SGD.

    H is inverted by the first update, which raises InputError if H + damping I is singular.
    """

    damping: float = 0.0
    momentum: float = 0.0

    def _direction(self, momentum: Tensor, weights: Tensor, state: State, curvature: Curvature) -> Tensor:
        if SHARED not in state:
            state[SHARED] = self._inverse(curvature.hessian(), "Hessian", weights)
        return _products(state[SHARED], momentum)


@dataclass(frozen=True)
class NaturalGradient(_SecondOrder):
    """w <- w - a (J(w_t) + damping I)^-1 m for linear regression with squared loss; m as in SGD.

    fisher="empirical": J(w) = (1/n) sum_i g_i g_i^T at each run's weights, a system of equations per run and update.
    A run becomes NaN, as diverged ones do, where J + damping I is singular; with fewer samples than parameters J
    always is, up to rounding.
    fisher="model": J = (1/n) sum_i x_i x_i^T, labels of unit variance; inverted by the first update, which raises
    InputError if J + damping I is singular.
    """

    damping: float = 0.0
    fisher: Literal["empirical", "model"] = "empirical"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher not in ("empirical", "model"):
            raise InputError(f"fisher={self.fisher!r}: expected 'empirical' or 'model'")

    def _direction(self, momentum: Tensor, weights: Tensor, state: State, curvature: Curvature) -> Tensor:
        if self.fisher == "empirical":
            return self._solved(curvature.fisher(weights), momentum)
        if SHARED not in state:
            state[SHARED] = self._inverse(curvature.model_fisher(), "model's Fisher matrix", weights)
        return _products(state[SHARED], momentum)

    def _solved(self, fisher: Tensor, momentum: Tensor) -> Tensor:
        if self.damping:
            fisher = fisher + self.damping * torch.eye(fisher.shape[1], dtype=fisher.dtype, device=fisher.device)
        solution, info = torch.linalg.solve_ex(fisher, momentum.unsqueeze(2))
        return solution.squeeze(2).masked_fill_((info != 0).unsqueeze(1), math.nan)


@dataclass(frozen=True)
class Clipped(Rule):
    """`rule` on gradients scaled by min(1, max_norm / (||g|| + 1e-6)), as by `torch.nn.utils.clip_grad_norm_`.

    The norm is that of one run over all its parameters, without the weight decay, which the rule adds afterwards.

    >>> Clipped(SGD(0.1), max_norm=1.0).learning_rate
    0.1
    """

    learning_rate: LearningRate = field(init=False, repr=False, compare=False)
    rule: Rule
    max_norm: float

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InputError(f"rule={self.rule!r}: expected an update rule, such as SGD(0.1)")
        self._keep("learning_rate", self.rule.learning_rate)
        self._keep_number("max_norm", low=0, such_as=1.0)
        if not self.max_norm:
            raise InputError("max_norm=0 stops every run; expected a positive number, such as 1")

    @property
    def needs_curvature(self) -> bool:
        return self.rule.needs_curvature

    def check(self, parameter_count: int) -> None:
        self.rule.check(parameter_count)

    def start(self, weights: Tensor) -> State:
        return self.rule.start(weights)

    def step(
        self,
        weights: Tensor,
        gradient: Tensor,
        state: State,
        learning_rate: float,
        t: int,
        curvature: Curvature | None = None,
    ) -> None:
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        clipped = gradient * (self.max_norm / (norms + 1e-6)).clamp_(max=1.0)
        self.rule.step(weights, clipped, state, learning_rate, t, curvature)

    def describe(self, steps: int) -> dict[str, Any]:
        return {"name": self.name, "max_norm": self.max_norm, "rule": self.rule.describe(steps)}


RULES: dict[str, type[Rule]] = {
    "sgd": SGD,
    "averaged-momentum": AveragedMomentum,
    "heavy-ball": HeavyBall,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSProp,
    "preconditioned": Preconditioned,
    "damped-newton": DampedNewton,
    "natural-gradient": NaturalGradient,
}


def from_name(name: str, **options: Any) -> Rule:
    """The rule of that name in RULES with these parameters.

    Raises InputError for a name that is not there, and for parameters that the rule lacks or needs.

    >>> from_name("heavy-ball", learning_rate=0.1, momentum=0.9)
    HeavyBall(learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    """
    if name not in RULES:
        raise InputError(f"rule {name!r} is not known; use one of {', '.join(RULES)}")
    signature = inspect.signature(RULES[name])
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(f"rule {name!r}: {error}; its parameters are {', '.join(signature.parameters)}") from error
    return RULES[name](**options)


def _decayed(gradient: Tensor, weights: Tensor, weight_decay: float) -> Tensor:
    return torch.add(gradient, weights, alpha=weight_decay) if weight_decay else gradient


def _momentum(gradient: Tensor, state: State, mu: float) -> Tensor:
    """m <- mu m + g in one pass; m is 0 at the start, so that the first m is g."""
    if not mu:
        return gradient
    momentum = state["momentum"]
    return torch.add(gradient, momentum, alpha=mu, out=momentum)


def _products(columns: Tensor, vectors: Tensor) -> Tensor:
    """M v for every row v. Column by column, because a BLAS product rounds a row in one way here and another there,
    as the number of rows and their place in memory have it."""
    products = torch.zeros_like(vectors)
    for column, entries in zip(columns.unbind(0), vectors.split(1, dim=1), strict=True):
        products.addcmul_(entries, column)
    return products
