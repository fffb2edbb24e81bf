"""Spectra of symmetric operators that are known by their products: eigenpairs, traces, densities, subspaces."""

from shotnoise.measure.spectra.density import Density, spectral_density
from shotnoise.measure.spectra.lanczos import RitzPairs, lanczos
from shotnoise.measure.spectra.operator import Eigenpairs, Symmetric, Value
from shotnoise.measure.spectra.subspaces import PrincipalAngles, principal_angles
from shotnoise.measure.spectra.traces import diagonal, frobenius_norm, trace

__all__ = [
    "Density",
    "Eigenpairs",
    "PrincipalAngles",
    "RitzPairs",
    "Symmetric",
    "Value",
    "diagonal",
    "frobenius_norm",
    "lanczos",
    "principal_angles",
    "spectral_density",
    "trace",
]
