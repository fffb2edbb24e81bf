"""Looking at one point of weight space: how large the minibatch noise is, in which directions, in which layers.

`shotnoise.measure(problem)` is the verb; its parts can be had by themselves, as `shotnoise.measure.gram(problem)`.
"""

from shotnoise.measure.covariance import NoiseCovariance
from shotnoise.measure.curvature import Curvature
from shotnoise.measure.hessian_scale import hessian_noise_scale
from shotnoise.measure.moments import Moments
from shotnoise.measure.moments import of_all as moments
from shotnoise.measure.observed import observed
from shotnoise.measure.products import gram, parameter_variance, per_sample_norms
from shotnoise.measure.verb import measure, noise_scale


class Measure:
    """The verb, called as `shotnoise.measure(problem, ...)`; help(shotnoise.measure.__call__) tells all of it.

    Its parts are attributes: what one wants of the noise by itself, without the labelled result.
    """

    __call__ = staticmethod(measure)
    noise_scale = staticmethod(noise_scale)
    moments = staticmethod(moments)
    observed = staticmethod(observed)
    per_sample_norms = staticmethod(per_sample_norms)
    gram = staticmethod(gram)
    parameter_variance = staticmethod(parameter_variance)
    noise_covariance = NoiseCovariance
    hessian_noise_scale = staticmethod(hessian_noise_scale)
    curvature = Curvature()


__all__ = [
    "Curvature",
    "Measure",
    "Moments",
    "NoiseCovariance",
    "gram",
    "hessian_noise_scale",
    "measure",
    "moments",
    "noise_scale",
    "observed",
    "parameter_variance",
    "per_sample_norms",
]
