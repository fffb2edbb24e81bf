"""What theory says before any training: exact answers where they exist, approximations that say so elsewhere."""

from shotnoise.predict.regression import regression

__all__ = ["regression"]
