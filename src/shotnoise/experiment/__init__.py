"""A simulation described in a file: what `shotnoise simulate` reads, checks, estimates and carries out."""

from shotnoise.experiment.estimate import Estimate, piece_seconds, together
from shotnoise.experiment.job import Job
from shotnoise.experiment.reading import Experiment, read

__all__ = ["Estimate", "Experiment", "Job", "piece_seconds", "read", "together"]
