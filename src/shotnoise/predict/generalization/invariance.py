"""Rescaling the layers of a ReLU network: what leaves the function alone, and what leaves the bound alone.

    W_l -> a_l W_l,   b_l -> (a_1 ... a_l) b_l,   a_1 ... a_L = 1        the function is unchanged
    b_l -> a_l b_l (Definition 1 read for biases)                        it is not

With A the diagonal map of all parameters, H -> A^-1 H A^-1, so that nu -> A^-2 nu and KL(Q || P) is unchanged if the
prior is moved too (w0 -> A w0, s_j -> A_jj s_j): an invariance under a change of coordinates. Under a fixed prior the
relative entropy of the rescaled network is another one.
Source: Definition 1 and Corollary 3 of Li, Gu, Zhou, Chen, Banerjee, where the second half is not said.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.generalization.bound import Prior, posterior_kl, prior_deviations
from shotnoise.predict.generalization.diagonal import LINEAR, hessian_diagonal, piecewise_linear
from shotnoise.problem import Problem

Array = NDArray[np.float64]
RULES = ("original", "cumulative biases", "definition 1")
PRIORS = ("original", "moved", "fixed")


def alpha_scale(problem: Problem, factors: Sequence[float], *, cumulative: bool = True) -> Array:
    """The diagonal A (p,) of the alpha-scale transformation of a chain of linear layers with ReLU between them.

    factors: one positive number per linear layer, their product 1. cumulative: False scales each bias like its weights.
    Raises InputError for another kind of network.

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    >>> alpha_scale(Problem(net, "mse", torch.ones(2, 1), torch.ones(2, 1)), [4.0, 0.25]).tolist()  # W1, b1, W2, b2
    [4.0, 4.0, 0.25, 1.0]
    """
    layers = [module for module in problem.model.modules() if isinstance(module, LINEAR)]
    if not piecewise_linear(problem.model) or any(not p.requires_grad for p in problem.model.parameters()):
        raise InputError(
            f"{type(problem.model).__name__}: rescaling is for an nn.Sequential of linear layers with ReLU, LeakyReLU "
            "or pooling between them, all of them trained"
        )
    a = np.asarray(factors, np.float64)
    if a.shape != (len(layers),) or not (np.isfinite(a) & (a > 0)).all() or abs(np.log(a).sum()) > 1e-9:
        raise InputError(f"factors={list(factors)}: {len(layers)} positive numbers, one per layer, with product 1")
    of: dict[int, float] = {}
    for layer, own, joint in zip(layers, a, np.cumprod(a), strict=True):
        of[id(layer.weight)] = float(own)
        if layer.bias is not None:
            of[id(layer.bias)] = float(joint if cumulative else own)
    return np.concatenate([np.full(p.numel(), of[id(p)]) for p in problem.parameters.values()])


def scale_invariance(
    problem: Problem,
    factors: Sequence[float],
    initial_weights: ArrayLike = 0.0,
    prior_std: Prior = 1.0,
    *,
    curvature_scale: float = 1.0,
) -> xr.Dataset:
    """What the alpha-scale transformation does to this network, to its loss and to the PAC-Bayes relative entropy.

    Arguments as in `alpha_scale` and `pac_bayes`; the diagonal of the Hessian is computed anew at the rescaled weights.
    A penalty (l2) is not invariant: leave it out. Returns `loss` and `output_change`, the largest change of an output
    (rule: "original", "cumulative biases", "definition 1"), and `kl_divergence` (prior: "original"; "moved" and
    "fixed", both of the rescaled network).

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
    >>> x = torch.randn(8, 2, dtype=torch.float64)
    >>> found = scale_invariance(Problem(net, "cross_entropy", x, torch.arange(8) % 2), [2.0, 0.5], prior_std=0.3)
    >>> bool(abs(found["kl_divergence"].sel(prior="moved") - found["kl_divergence"].sel(prior="original")) < 1e-10)
    True
    """
    if problem.l2:
        raise InputError(f"l2={problem.l2}: a penalty changes under rescaling; give a Problem without it")
    p = problem.parameter_count
    std = prior_deviations(problem, prior_std)
    start = np.broadcast_to(np.asarray(initial_weights, np.float64), (p,))
    weights = problem.flatten(problem.parameters).detach().double().cpu().numpy()
    A = alpha_scale(problem, factors)
    moved = {RULES[0]: np.ones(p), RULES[1]: A, RULES[2]: alpha_scale(problem, factors, cumulative=False)}
    at = {rule: _at(problem, weights * scale) for rule, scale in moved.items()}
    outputs = {rule: _outputs(own) for rule, own in at.items()}
    before, after = (hessian_diagonal(at[rule]) for rule in RULES[:2])
    entropies = [
        posterior_kl(weights - start, std, before, curvature_scale).value,
        posterior_kl(A * (weights - start), A * std, after, curvature_scale).value,
        posterior_kl(A * weights - start, std, after, curvature_scale).value,
    ]
    found = {
        "loss": ("rule", np.array([at[rule].loss() for rule in RULES])),
        "output_change": ("rule", np.array([float((outputs[r] - outputs[RULES[0]]).abs().max()) for r in RULES])),
        "kl_divergence": ("prior", np.array(entropies)),
    }
    scales = {"factors": [float(a) for a in factors], "curvature_scale": curvature_scale}
    return results.dataset(found, {"rule": list(RULES), "prior": list(PRIORS)}, results.provenance(problem) | scales)


def _at(problem: Problem, weights: Array) -> Problem:
    own = problem.replica()
    own.place(weights)
    return own


def _outputs(problem: Problem) -> torch.Tensor:
    inputs = problem.samples.batch(torch.arange(problem.n))[0]
    with torch.no_grad():
        return torch.as_tensor(problem.model(inputs.to(problem.device)))
