"""Figures of papers, made again: one recipe per file over the verbs, each ending in a verdict of `compare`."""

from shotnoise.reproduce.adaptive_steps import adaptive_steps
from shotnoise.reproduce.continuous_limit import FIGURES as CONTINUOUS_LIMIT
from shotnoise.reproduce.continuous_limit import continuous_limit
from shotnoise.reproduce.gauss_bounds import FIGURES as GAUSS_BOUNDS
from shotnoise.reproduce.gauss_bounds import gauss_bounds
from shotnoise.reproduce.graduate_admission import graduate_admission
from shotnoise.reproduce.hessian_sgd import FIGURES as HESSIAN_SGD
from shotnoise.reproduce.hessian_sgd import hessian_sgd
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.reproduce.strength_of_noise import FIGURES as STRENGTH_OF_NOISE
from shotnoise.reproduce.strength_of_noise import strength_of_noise
from shotnoise.reproduce.teacher_student import teacher_student

__all__ = [
    "CONTINUOUS_LIMIT",
    "GAUSS_BOUNDS",
    "HESSIAN_SGD",
    "STRENGTH_OF_NOISE",
    "Reproduction",
    "adaptive_steps",
    "continuous_limit",
    "gauss_bounds",
    "graduate_admission",
    "hessian_sgd",
    "strength_of_noise",
    "teacher_student",
]
