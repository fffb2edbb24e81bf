"""Figures, tables, sentences and a page from stored results. Nothing here measures anything."""

from shotnoise.files import check_writable
from shotnoise.show.advice import advice_sheet
from shotnoise.show.bounds import distributions, loss_change, loss_process
from shotnoise.show.curvature_report import (
    curvature,
    curvature_report,
    curvature_sentences,
    curvature_sheet,
    curvature_steps,
)
from shotnoise.show.diffusion import current, densities
from shotnoise.show.diffusion_table import diffusion_sentences, diffusion_sheet
from shotnoise.show.ensembles import ensemble
from shotnoise.show.figures import conditional_variance, figures, noise_share, spectrum
from shotnoise.show.grids import Cell, grid
from shotnoise.show.layers import layers
from shotnoise.show.polynomials import (
    exponents,
    polynomial,
    polynomial_picture,
    polynomial_report,
    polynomial_sentences,
    polynomial_sheet,
)
from shotnoise.show.prediction_report import prediction_report, prediction_sentences, prediction_sheet
from shotnoise.show.predictions import against_batch_size, prediction
from shotnoise.show.progress import ProgressReport, progress
from shotnoise.show.propagations import propagation_sentences, propagation_sheet
from shotnoise.show.reading import reading
from shotnoise.show.report import report
from shotnoise.show.scale import noise_scale
from shotnoise.show.stationary_report import (
    stationary,
    stationary_report,
    stationary_sentences,
    stationary_sheet,
)
from shotnoise.show.style import house_style, save
from shotnoise.show.sweeps import ellipses, sweeps
from shotnoise.show.tables import set_for_terminal, table
from shotnoise.show.tails import tail_stability

__all__ = [
    "Cell",
    "ProgressReport",
    "advice_sheet",
    "against_batch_size",
    "check_writable",
    "conditional_variance",
    "current",
    "curvature",
    "curvature_report",
    "curvature_sentences",
    "curvature_sheet",
    "curvature_steps",
    "densities",
    "diffusion_sentences",
    "diffusion_sheet",
    "distributions",
    "ellipses",
    "ensemble",
    "exponents",
    "figures",
    "grid",
    "house_style",
    "layers",
    "loss_change",
    "loss_process",
    "noise_scale",
    "noise_share",
    "polynomial",
    "polynomial_picture",
    "polynomial_report",
    "polynomial_sentences",
    "polynomial_sheet",
    "prediction",
    "prediction_report",
    "prediction_sentences",
    "prediction_sheet",
    "progress",
    "propagation_sentences",
    "propagation_sheet",
    "reading",
    "report",
    "save",
    "set_for_terminal",
    "spectrum",
    "stationary",
    "stationary_report",
    "stationary_sentences",
    "stationary_sheet",
    "sweeps",
    "table",
    "tail_stability",
]
