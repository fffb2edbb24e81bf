"""What the noise knows about the curvature: `shotnoise.measure.curvature(problem)` and its parts."""

from shotnoise.measure.covariance import SecondMoment
from shotnoise.measure.curvature.diagonal import gauss_newton_diagonal
from shotnoise.measure.curvature.extreme import Extreme, extreme
from shotnoise.measure.curvature.layers import layer_block, layer_loading, subnetwork
from shotnoise.measure.curvature.operators import GaussNewton, Hessian, Residual
from shotnoise.measure.curvature.verb import curvature
from shotnoise.measure.spectra import density, subspaces, traces


class Curvature:
    """The verb, called as `shotnoise.measure.curvature(problem, ...)`; help(....__call__) tells all of it.

    Its parts are attributes: operators of H, M, H_p = M - H and the Gauss-Newton matrix, which SciPy takes and which
    have `top`, `diagonal`, `to_dense`; estimates from random vectors; the comparison of subspaces; layers.
    """

    __call__ = staticmethod(curvature)
    hessian, second_moment, residual, gauss_newton = Hessian, SecondMoment, Residual, GaussNewton
    extreme = staticmethod(extreme)
    trace = staticmethod(traces.trace)
    frobenius_norm = staticmethod(traces.frobenius_norm)
    estimated_diagonal = staticmethod(traces.diagonal)
    gauss_newton_diagonal = staticmethod(gauss_newton_diagonal)
    spectral_density = staticmethod(density.spectral_density)
    principal_angles = staticmethod(subspaces.principal_angles)
    gradient_share = staticmethod(subspaces.gradient_share)
    layer_loading = staticmethod(layer_loading)
    layer_block = staticmethod(layer_block)
    subnetwork = staticmethod(subnetwork)
    subspaces = subspaces


__all__ = [
    "Curvature",
    "Extreme",
    "GaussNewton",
    "Hessian",
    "Residual",
    "SecondMoment",
    "curvature",
    "extreme",
    "gauss_newton_diagonal",
]
