"""Optimizers whose step size follows from the noise: ordinary torch optimizers, told how noisy each batch is.

optimizer = sn.optim.AdaptiveSGD(model.parameters(), noise=sn.optim.Observed(model), smoothness=4.0)

Theorem 3 of Li, Gu, Zhou, Chen, Banerjee, "Hessian based analysis of SGD for deep nets", as corrected in docs/optim.md.
"""

from shotnoise.optim.adaptive import AdaptiveSGD
from shotnoise.optim.exact import Exact
from shotnoise.optim.microbatches import Microbatches
from shotnoise.optim.observed import Observed
from shotnoise.optim.preconditioned import PreconditionedSGD
from shotnoise.optim.smoothness import HessianNorm, Secant
from shotnoise.optim.theory import guaranteed_decrease, signal_ratio, steps_needed, window

__all__ = [
    "AdaptiveSGD",
    "Exact",
    "HessianNorm",
    "Microbatches",
    "Observed",
    "PreconditionedSGD",
    "Secant",
    "guaranteed_decrease",
    "signal_ratio",
    "steps_needed",
    "window",
]
