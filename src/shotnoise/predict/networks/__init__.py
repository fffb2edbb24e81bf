"""Networks: the variance of the stochastic gradient as an explicit polynomial in 1/b, from the initial weights."""

from shotnoise.predict.networks.engines import Interrupted
from shotnoise.predict.networks.expectation import expectation
from shotnoise.predict.networks.expressions import Constant, FullGradient, Gradient, Loss, Weight
from shotnoise.predict.networks.inputs import Moments, Points
from shotnoise.predict.networks.polynomial import NetworkPolynomial
from shotnoise.predict.networks.quadrature import gradient_variance_at
from shotnoise.predict.networks.surrogate import polynomial_surrogate
from shotnoise.predict.networks.tabulated import tabulate
from shotnoise.predict.networks.verb import (
    full_gradient_variance_polynomial,
    gradient_variance_polynomial,
    loss_polynomial,
    loss_variance_polynomial,
    predicted_seconds,
)

__all__ = [
    "Constant",
    "FullGradient",
    "Gradient",
    "Interrupted",
    "Loss",
    "Moments",
    "NetworkPolynomial",
    "Points",
    "Weight",
    "expectation",
    "full_gradient_variance_polynomial",
    "gradient_variance_at",
    "gradient_variance_polynomial",
    "loss_polynomial",
    "loss_variance_polynomial",
    "polynomial_surrogate",
    "predicted_seconds",
    "tabulate",
]
