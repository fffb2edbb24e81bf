"""May I think of my SGD as a diffusion, and what does that diffusion say?"""

from shotnoise.predict.diffusion.fokker_planck import CONVENTIONS, FokkerPlanck
from shotnoise.predict.diffusion.integrate import integrate
from shotnoise.predict.diffusion.landscape import Landscape, Quadratic
from shotnoise.predict.diffusion.moments import LinearModel, regression_moments
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.diffusion.ornstein_uhlenbeck import (
    autocorrelation,
    exact_embedding,
    ornstein_uhlenbeck,
    transient,
)
from shotnoise.predict.diffusion.rotation import rotation
from shotnoise.predict.diffusion.sde import adam, first_order, rmsprop, second_order, underdamped
from shotnoise.predict.diffusion.svag import svag

__all__ = [
    "CONVENTIONS",
    "FokkerPlanck",
    "Landscape",
    "LinearModel",
    "Network",
    "Quadratic",
    "adam",
    "autocorrelation",
    "exact_embedding",
    "first_order",
    "integrate",
    "ornstein_uhlenbeck",
    "regression_moments",
    "rmsprop",
    "rotation",
    "second_order",
    "svag",
    "transient",
    "underdamped",
]
