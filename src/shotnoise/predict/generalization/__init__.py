"""How well the trained network will do on new data, with a guarantee where there is one: PAC-Bayes.

`pac_bayes`: the bound, its terms, and which of them makes it vacuous. `scale_invariance`, `alpha_scale`: what rescaling
the layers of a ReLU network does to it. `kl_inverse`, `binary_kl`, `log_constant`: what it is made of.
After Li, Gu, Zhou, Chen and Banerjee, "Hessian based analysis of SGD for deep nets: dynamics and generalization"
(2020), section 6, corrected where it is wrong: each function says where.
"""

from shotnoise.predict.generalization.bound import pac_bayes
from shotnoise.predict.generalization.diagonal import hessian_diagonal
from shotnoise.predict.generalization.invariance import alpha_scale, scale_invariance
from shotnoise.predict.generalization.relative_entropy import binary_kl, kl_inverse, log_constant

__all__ = [
    "alpha_scale",
    "binary_kl",
    "hessian_diagonal",
    "kl_inverse",
    "log_constant",
    "pac_bayes",
    "scale_invariance",
]
