"""shotnoise: measure, predict and simulate the noise of minibatch gradients.

import shotnoise as sn
problem = sn.Problem(model, "cross_entropy", inputs, targets)
result = sn.measure(problem, batch_sizes=[1, 8, 64, 512])
"""

from typing import TYPE_CHECKING, Any

from shotnoise import datasets, models, optim, predict, results, rules, sampling, schedules, training
from shotnoise.advice import advise
from shotnoise.compare import Agreement, compare
from shotnoise.errors import (
    DataError,
    InputError,
    NonFiniteError,
    PerSampleGradientError,
    ShotnoiseError,
)
from shotnoise.measure import Measure
from shotnoise.population import Population, TeacherStudent
from shotnoise.problem import Problem
from shotnoise.results import load, save
from shotnoise.simulate import Simulate

if TYPE_CHECKING:
    from shotnoise import reproduce, show

__version__ = "0.1.0"

measure = Measure()
simulate = Simulate()


def __getattr__(name: str) -> Any:
    """`show` and `reproduce` bring Matplotlib, which many a worker process never needs: loaded when first asked for."""
    if name in ("show", "reproduce"):
        from importlib import import_module

        return import_module(f"shotnoise.{name}")
    raise AttributeError(f"module 'shotnoise' has no attribute {name!r}")


__all__ = [
    "Agreement",
    "DataError",
    "InputError",
    "NonFiniteError",
    "PerSampleGradientError",
    "Population",
    "Problem",
    "ShotnoiseError",
    "TeacherStudent",
    "advise",
    "compare",
    "datasets",
    "load",
    "measure",
    "models",
    "optim",
    "predict",
    "reproduce",
    "results",
    "rules",
    "sampling",
    "save",
    "schedules",
    "show",
    "simulate",
    "training",
]
