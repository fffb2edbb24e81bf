"""Figures of papers, made again: one recipe per file over the verbs, each ending in a verdict of `compare`."""

from shotnoise.reproduce.graduate_admission import graduate_admission
from shotnoise.reproduce.reproduction import Reproduction

__all__ = ["Reproduction", "graduate_admission"]
