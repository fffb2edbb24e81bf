"""Where a problem comes from: a data set and a model by name, a teacher and a student, or a function of the user's."""

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from shotnoise import datasets, models
from shotnoise.datasets import Data
from shotnoise.errors import InputError
from shotnoise.population import TeacherStudent
from shotnoise.problem import Problem

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load(name: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Data:
    """A data set by name, or a CSV file by its path, which ends in .csv."""
    if name.endswith(".csv"):
        return datasets.load("csv", data_dir=data_dir, path=name, **options)
    return datasets.load(name, data_dir=data_dir, **options)


def problem(data: Data, model: str, *, l2: float, seed: int, dtype: str = "float32") -> Problem:
    """A new model for the data, with cross-entropy for classes and else with the squared loss."""
    kind, network = DTYPES[dtype], models.build(model, data, seed)
    if data.classes is None:
        return Problem(network.to(kind), "mse", data.inputs.to(kind), data.targets.to(kind), l2=l2)
    return Problem(network.to(kind), "cross_entropy", data.inputs.to(kind), data.targets, l2=l2)


def imported(name: str, expected: tuple[type, ...], folders: Iterable[Path] = ()) -> Any:
    """What package.module:function returns, the module found as Python would find it from here, or in the folders.

    Raises InputError if there is no such function, or if it returns something else than expected.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(f"{name!r}: expected package.module:function, as in mypackage.data:make_problem")
    sys.path[:0] = [os.getcwd(), *map(str, folders)]
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"{name!r}: importing {module_name} failed ({type(error).__name__}: {error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{name!r}: {module_name} has no function {function_name!r}")
    made = function()
    if not isinstance(made, expected):
        kinds = " or a ".join(f"shotnoise.{kind.__name__}" for kind in expected)
        raise InputError(f"{name!r}: it returned {type(made).__name__}, expected a {kinds}")
    return made


def teacher_student(
    teacher: str,
    student: str,
    *,
    dimension: int,
    outputs: int,
    label_noise: float,
    evaluation_samples: int,
    l2: float,
    seed: int,
    teacher_seed: int,
    dtype: str,
) -> TeacherStudent:
    """A network learns from another one on Gaussian inputs; both are named as in `models.build`."""
    shapes = Data("teacher-student", torch.zeros(1, dimension), torch.zeros(1, outputs), task="regression")
    learning, teaching = (
        models.build(name, shapes, own).to(DTYPES[dtype]) for name, own in ((student, seed), (teacher, teacher_seed))
    )
    return TeacherStudent(
        learning,
        teaching,
        dimension=dimension,
        label_noise=label_noise,
        evaluation_samples=evaluation_samples,
        l2=l2,
        seed=seed,
    )
