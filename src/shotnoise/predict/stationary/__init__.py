"""Where SGD settles, how widely it fluctuates, and when it never settles: discrete time, exact minibatch noise.

The stationary state of linear models, exactly: `gaussian` and its parts `label_noise`, `input_noise`, `regularised`;
`finite_data`; `high_dimensional` (an approximation); `rivals`, what other theories make of it. When there is one:
`critical_learning_rate`, `critical_batch_size`, `critical_width`. What to choose: `linear_scaling`,
`optimal_weight_decay`; other methods: `damped_newton`, `natural_gradient`. Tails: `tail_index`, `tail_index_data`,
`tail_index_matrix`, `hill`. Any model: `minimum`; any run: `fluctuation_dissipation`, `DissipationMeter`.

After Ziyin, Liu, Mori and Ueda, "Strength of Minibatch Noise in SGD" (ICLR 2022), corrected where it is wrong: each
function says where. Momentum is m <- mu m + g, w <- w - lambda m; the loss 1/2 (x^T w - y)^2; C is the covariance of
the minibatch gradient, 1/S included; batches are fresh at every step.
"""

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
from shotnoise.predict.stationary.tail_population import tail_index_matrix
from shotnoise.predict.stationary.tails import tail_index, tail_index_data
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
    "tail_index_data",
    "tail_index_matrix",
]
