"""Populations: unlimited data, fresh samples at every step, and what is known of the loss over all of it.

The full loss and gradient of a population are those of an ordinary `Problem` on *evaluation points*. For affine
networks under squared loss these are the 2 d points +-sqrt(d) S^(1/2) e_j, over which the mean of a quadratic function
equals its expectation for any inputs of mean 0 and covariance S: the population gradient is then exact. Otherwise the
evaluation points are a sample, drawn once, and full quantities are estimates with its error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shotnoise.errors import InputError
from shotnoise.evaluation import quiet
from shotnoise.losses import LossFunction
from shotnoise.problem import Problem

Draw = Callable[[np.random.Generator, int], tuple[Any, Any]]
DrawInputs = Callable[[np.random.Generator, int], NDArray[Any]]
EXACT = "closed form"


class Population:
    """A model, a loss and a way to draw samples, to be trained online: `sampling.Online()`.

    draw: draw(rng, count) -> (inputs, targets), arrays with the samples on axis 0, from the generator alone.
    evaluation_samples: size of the sample on which full loss, gradient and accuracy are estimated; the same for all
        runs and steps, drawn with `seed`. Its relative error is of order 1/sqrt(evaluation_samples).

    >>> def draw(rng, count):
    ...     x = rng.standard_normal((count, 3), dtype=np.float32)
    ...     return x, x.sum(1, keepdims=True)
    >>> Population(nn.Linear(3, 1), "mse", draw, evaluation_samples=100).full_quantities
    'estimates from 100 evaluation samples'
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        draw: Draw,
        *,
        evaluation_samples: int = 4096,
        l2: float = 0.0,
        seed: int = 0,
    ) -> None:
        if evaluation_samples < 1:
            raise InputError(f"evaluation_samples={evaluation_samples}: at least one")
        self._draw = draw
        inputs, targets = draw(np.random.default_rng(seed), evaluation_samples)
        self.problem = Problem(model, loss, inputs, targets, l2=l2)
        if self.problem.n != evaluation_samples:
            raise InputError(
                f"draw(rng, {evaluation_samples}) gave {self.problem.n} samples; axis 0 must be those asked for"
            )
        self.full_quantities = f"estimates from {evaluation_samples} evaluation samples"

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """`count` fresh samples: inputs (count, ...), targets (count, ...)."""
        inputs, targets = self._draw(rng, count)
        return torch.as_tensor(inputs), torch.as_tensor(targets)

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of many runs together as the loss takes them; what is cheaper for all at once is done here."""
        return inputs, targets


class TeacherStudent(Population):
    """A student network learns from a teacher on random inputs, squared loss 1/2 ||student(x) - teacher(x) - e||^2.

    student: the model to train. teacher: a module, or a matrix (outputs, dimension). Both take inputs (n, dimension).
    inputs: "gaussian" for N(0, I), or a function inputs(rng, count) -> (count, dimension).
    covariance: (dimension, dimension) of the Gaussian inputs, default I.
    label_noise: standard deviation of the independent normal noise e on every target.

    With Gaussian inputs, student and teacher made of Linear and Identity modules, full loss and gradient are exact;
    otherwise estimates from `evaluation_samples` samples. `full_quantities` says which.

    >>> student = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    >>> TeacherStudent(student, torch.ones(2, 3)).full_quantities
    'closed form'
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Tensor,
        *,
        inputs: str | DrawInputs = "gaussian",
        dimension: int | None = None,
        covariance: Tensor | NDArray[Any] | None = None,
        label_noise: float = 0.0,
        evaluation_samples: int = 4096,
        l2: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(inputs, str) and covariance is not None:
            raise InputError("covariance is that of Gaussian inputs; leave it out when inputs is a function")
        if isinstance(inputs, str) and inputs != "gaussian":
            raise InputError(f'inputs={inputs!r}: "gaussian", or a function inputs(rng, count) -> (count, dimension)')
        if not 0 <= label_noise < float("inf"):
            raise InputError(f"label_noise={label_noise}: a standard deviation, finite and not negative")
        self.dtype = next(student.parameters()).dtype
        self.dimension = _dimension(student, teacher) if dimension is None else dimension
        self.teacher = _as_module(teacher, self.dtype)
        self.label_noise = float(label_noise)
        self._root = None if covariance is None else _square_root(covariance, self.dimension)
        self._inputs = None if isinstance(inputs, str) else inputs
        exact = self._inputs is None and _is_affine(student) and _is_affine(self.teacher)
        points = self._cubature if exact else self._sample
        super().__init__(
            student, "mse", points, evaluation_samples=self._points(exact, evaluation_samples), l2=l2, seed=seed
        )
        if exact:
            self.full_quantities = EXACT

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Inputs (count, dimension) and the noise of their targets (count, outputs), or (count, 0) without noise."""
        kind = np.dtype(str(self.dtype).removeprefix("torch."))
        if self._inputs is None:
            x = torch.from_numpy(rng.standard_normal((count, self.dimension), dtype=kind))
        else:
            x = torch.as_tensor(np.asarray(self._inputs(rng, count), dtype=kind))
            if tuple(x.shape) != (count, self.dimension):
                raise InputError(
                    f"inputs(rng, {count}) gave an array {tuple(x.shape)}; expected ({count}, {self.dimension})"
                )
        outputs = self._outputs if self.label_noise else 0
        return x, torch.from_numpy(self.label_noise * rng.standard_normal((count, outputs), dtype=kind))

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs with their covariance, and the teacher's answers plus the noise."""
        if self._root is not None:
            inputs = inputs @ self._root.to(inputs)
        with quiet(), torch.no_grad():
            answers = self.teacher(inputs)
        return inputs, answers + targets if targets.shape[-1] else answers

    @property
    def _outputs(self) -> int:
        with quiet(), torch.no_grad():
            return int(self.teacher(torch.zeros(1, self.dimension, dtype=self.dtype)).shape[-1])

    def _points(self, exact: bool, evaluation_samples: int) -> int:
        return (4 if self.label_noise else 2) * self.dimension if exact else evaluation_samples

    def _sample(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        return self.finish(*self.draw(rng, count))

    def _cubature(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """+-sqrt(d) e_j, each with the noise of both signs."""
        d = self.dimension
        x = d**0.5 * torch.cat([torch.eye(d), -torch.eye(d)]).to(self.dtype)
        noise = torch.full((2 * d, self._outputs), self.label_noise, dtype=self.dtype)
        if not self.label_noise:
            return self.finish(x, noise[:, :0])
        return self.finish(torch.cat([x, x]), torch.cat([noise, -noise]))


def _as_module(teacher: nn.Module | Tensor, dtype: torch.dtype) -> nn.Module:
    if isinstance(teacher, nn.Module):
        return teacher
    if teacher.ndim != 2:
        raise InputError(f"a teacher given as a tensor is a matrix (outputs, dimension), not {tuple(teacher.shape)}")
    linear = nn.utils.skip_init(nn.Linear, teacher.shape[1], teacher.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(teacher)
    return linear.requires_grad_(False)


def _dimension(student: nn.Module, teacher: nn.Module | Tensor) -> int:
    if isinstance(teacher, Tensor) and teacher.ndim == 2:
        return int(teacher.shape[1])
    for module in student.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise InputError("the dimension of the inputs cannot be read off the student; pass dimension=")


def _is_affine(model: nn.Module) -> bool:
    """Built of Linear and Identity modules alone, as they come."""
    plain = (nn.Sequential, nn.Linear, nn.Identity)
    return all(type(module) in plain and not module._forward_hooks for module in model.modules())


def _square_root(covariance: Tensor | NDArray[Any], dimension: int) -> Tensor:
    matrix = torch.as_tensor(covariance, dtype=torch.float64)
    if tuple(matrix.shape) != (dimension, dimension) or not torch.allclose(matrix, matrix.T):
        raise InputError(
            f"covariance: a symmetric matrix ({dimension}, {dimension}) is needed; got {tuple(matrix.shape)}"
        )
    values, vectors = torch.linalg.eigh(matrix)
    if float(values[0]) < -1e-10 * max(1.0, float(values[-1])):
        raise InputError(
            f"covariance has the negative eigenvalue {float(values[0]):.3g}; it must be positive semidefinite"
        )
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
