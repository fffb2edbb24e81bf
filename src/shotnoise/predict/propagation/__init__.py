"""The variance of any network's gradient for large batches, before a single stochastic step is taken."""

from shotnoise.predict.propagation.verb import propagation

__all__ = ["propagation"]
