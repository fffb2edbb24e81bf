"""shotnoise: measure, predict and simulate the noise of minibatch gradients.

import shotnoise as sn
problem = sn.Problem(model, "cross_entropy", inputs, targets)
result = sn.measure(problem, batch_sizes=[1, 8, 64, 512])
"""

from shotnoise import datasets, models, results, rules, sampling, schedules, show, training
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

__version__ = "0.1.0"

measure = Measure()
simulate = Simulate()

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
    "compare",
    "datasets",
    "load",
    "measure",
    "models",
    "results",
    "rules",
    "sampling",
    "save",
    "schedules",
    "show",
    "simulate",
    "training",
]
