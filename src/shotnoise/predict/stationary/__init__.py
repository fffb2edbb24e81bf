"""Where SGD settles, how widely it fluctuates, and when it never settles: discrete time, exact minibatch noise."""

from shotnoise.predict.stationary.decay import optimal_weight_decay
from shotnoise.predict.stationary.dissipation import dissipation_terms, fluctuation_dissipation
from shotnoise.predict.stationary.finite import finite_data, high_dimensional, high_dimensional_limit
from shotnoise.predict.stationary.hill import hill
from shotnoise.predict.stationary.meter import DissipationMeter
from shotnoise.predict.stationary.minima import minimum
from shotnoise.predict.stationary.rivals import rivals
from shotnoise.predict.stationary.scaling import linear_scaling
from shotnoise.predict.stationary.second_order import damped_newton, natural_gradient
from shotnoise.predict.stationary.stability import critical_batch_size, critical_learning_rate, critical_width
from shotnoise.predict.stationary.tails import tail_index, tail_index_matrix
from shotnoise.predict.stationary.verb import gaussian, input_noise, label_noise, regularised

__all__ = [
    "DissipationMeter",
    "critical_batch_size",
    "critical_learning_rate",
    "critical_width",
    "damped_newton",
    "dissipation_terms",
    "finite_data",
    "fluctuation_dissipation",
    "gaussian",
    "high_dimensional",
    "high_dimensional_limit",
    "hill",
    "input_noise",
    "label_noise",
    "linear_scaling",
    "minimum",
    "natural_gradient",
    "optimal_weight_decay",
    "regularised",
    "rivals",
    "tail_index",
    "tail_index_matrix",
]
