"""Linear regression: the whole story of the variance, exactly."""

from shotnoise.predict.regression.verb import regression

__all__ = ["regression"]
