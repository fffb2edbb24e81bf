"""What theory says before any training: exact answers where they exist, approximations that say so elsewhere."""

from shotnoise.predict import bounds, diffusion, generalization, networks, stationary
from shotnoise.predict.batch_exponent import batch_exponent
from shotnoise.predict.batch_polynomial import BatchPolynomial
from shotnoise.predict.batch_report import batch_size_report
from shotnoise.predict.linear_regression import (
    RegressionPolynomials,
    regression,
    regression_polynomial,
    regression_stability,
    regression_stationary,
)
from shotnoise.predict.propagation import propagation

__all__ = [
    "BatchPolynomial",
    "RegressionPolynomials",
    "batch_exponent",
    "batch_size_report",
    "bounds",
    "diffusion",
    "generalization",
    "networks",
    "propagation",
    "regression",
    "regression_polynomial",
    "regression_stability",
    "regression_stationary",
    "stationary",
]
