"""Figures of papers, made again: one recipe per file over the verbs, each ending in a verdict of `compare`."""

from shotnoise.reproduce.continuous_limit import FIGURES as CONTINUOUS_LIMIT
from shotnoise.reproduce.continuous_limit import continuous_limit
from shotnoise.reproduce.graduate_admission import graduate_admission
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.reproduce.strength_of_noise import FIGURES as STRENGTH_OF_NOISE
from shotnoise.reproduce.strength_of_noise import strength_of_noise

__all__ = [
    "CONTINUOUS_LIMIT",
    "STRENGTH_OF_NOISE",
    "Reproduction",
    "continuous_limit",
    "graduate_admission",
    "strength_of_noise",
]
