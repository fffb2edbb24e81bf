"""May I think of my SGD as a diffusion at this learning rate and batch size, and what does that diffusion say?

Noise: `noise_sources`, `covariance_from_batches`. Near a minimum, in closed form beside the discrete chain:
`ornstein_uhlenbeck`, `transient`, `autocorrelation`, `exact_embedding`, `rotation`, and `regression_moments` with the
noise of a linear model. Anywhere: a `Landscape`, `Quadratic` or `Problem` (`Network`), the equations `first_order`,
`second_order`, `underdamped`, `rmsprop`, `adam`, and `integrate`. Densities of one and two weights: `FokkerPlanck`,
`tempered_posterior`, `detailed_balance`, `approximate_inference`. Whether to believe it: `validity`, `svag`,
`epoch_correlation`, `epoch_covariance`.

Sigma and C are the covariance of ONE sample's gradient, eps = eta s_f with s_f the variance factor of a batch, and time
is k eta. After lecture notes on the continuous-time limit, corrected where they are wrong: each function says where.
"""

from shotnoise.predict.diffusion.epochs import epoch_correlation, epoch_covariance
from shotnoise.predict.diffusion.fokker_planck import CONVENTIONS, FokkerPlanck
from shotnoise.predict.diffusion.integrate import integrate
from shotnoise.predict.diffusion.landscape import Landscape, Quadratic
from shotnoise.predict.diffusion.moments import LinearModel, regression_moments
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.diffusion.noise import covariance_from_batches, noise_sources
from shotnoise.predict.diffusion.ornstein_uhlenbeck import (
    autocorrelation,
    exact_embedding,
    ornstein_uhlenbeck,
    transient,
)
from shotnoise.predict.diffusion.rotation import rotation
from shotnoise.predict.diffusion.sde import adam, first_order, rmsprop, second_order, underdamped
from shotnoise.predict.diffusion.svag import svag
from shotnoise.predict.diffusion.tempered import approximate_inference, detailed_balance, tempered_posterior
from shotnoise.predict.diffusion.validity import validity

__all__ = [
    "CONVENTIONS",
    "FokkerPlanck",
    "Landscape",
    "LinearModel",
    "Network",
    "Quadratic",
    "adam",
    "approximate_inference",
    "autocorrelation",
    "covariance_from_batches",
    "detailed_balance",
    "epoch_correlation",
    "epoch_covariance",
    "exact_embedding",
    "first_order",
    "integrate",
    "noise_sources",
    "ornstein_uhlenbeck",
    "regression_moments",
    "rmsprop",
    "rotation",
    "second_order",
    "svag",
    "tempered_posterior",
    "transient",
    "underdamped",
    "validity",
]
