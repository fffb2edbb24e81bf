"""Linear regression: the whole story of the variance, exactly."""

from shotnoise.predict.linear_regression.polynomial import RegressionPolynomials, regression_polynomial
from shotnoise.predict.linear_regression.stability import regression_stability, regression_stationary
from shotnoise.predict.linear_regression.verb import regression

__all__ = [
    "RegressionPolynomials",
    "regression",
    "regression_polynomial",
    "regression_stability",
    "regression_stationary",
]
