"""Where SGD settles, how widely it fluctuates, and when it never settles: discrete time, exact minibatch noise."""

from shotnoise.predict.stationary.verb import gaussian, input_noise, label_noise, regularised

__all__ = [
    "gaussian",
    "input_noise",
    "label_noise",
    "regularised",
]
