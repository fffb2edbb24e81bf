"""Amplified-variance SGD: does a network's SGD behave as its diffusion, tested without ever simulating the diffusion.

    w <- w - (eta / l) [ (1 + r)/2 g_1 + (1 - r)/2 g_2 ],   r = sqrt(2 l - 1),   g_1, g_2 on independent batches

has the mean gradient of SGD, l times its noise covariance at 1/l of the rate, hence the same diffusion as SGD for every
l, and tends to it as l grows, l updates counting as one: l = 1 is SGD itself. Where the loss over the runs does not
change with l, the diffusion describes SGD; where it does, it does not. Source: Li, Malladi and Arora, "On the validity
of modeling SGD with stochastic differential equations (SDEs)" (2021), which changes l the same way.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.diffusion.network import Network
from shotnoise.predict.diffusion.settings import Array, positive
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, ReshuffledEpochs, Sampling, WithReplacement


def svag(
    problem: Problem,
    learning_rate: float,
    batch_size: int,
    steps: int,
    runs: int,
    amplifications: Sequence[int] = (1, 2, 4, 8),
    *,
    sampling: Sampling | None = None,
    record: Sequence[int] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Mean loss and weights over runs of amplified-variance SGD, by amplification l; l = 1 is SGD.

    Runs start from the model's weights; l l-th updates count as one of the `steps`. sampling: fresh batches, default
    WithReplacement(). record: after which steps, default the last alone. All amplifications have random numbers of
    their own, so that results at different l are independent.

    Returns by (amplification, step) `loss` over the data, `log_loss`, the mean of its logarithm, which a few runs that
    run away do not rule, `mean_weights` and `weights_variance`, with standard errors; `distance`, of each loss to that
    at the largest l, in standard errors of the difference. Costs steps * sum(l) batches of twice the size per run.

    >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> r = svag(Problem(line, "mse", x, x), 0.1, 2, steps=5, runs=20, amplifications=[1, 4])
    >>> r["loss"].dims, int(r.attrs["draws"])
    (('amplification', 'step'), 20)
    """
    rate = positive("learning_rate", learning_rate)
    chosen = WithReplacement() if sampling is None else sampling
    if isinstance(chosen, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(f"{chosen!r}: amplified noise needs two independent batches at each update; draw fresh ones")
    chosen.check(batch_size, problem.n)
    factors = [int(level) for level in amplifications]
    if not factors or min(factors) < 1 or len(set(factors)) < len(factors) or factors != sorted(factors):
        raise InputError(f"amplifications={amplifications}: whole numbers from 1 on, rising")
    if steps < 1 or runs < 2:
        raise InputError(f"steps={steps}, runs={runs}: at least one step and two runs")
    when = [steps] if record is None else sorted({int(k) for k in record})
    if when[0] < 0 or when[-1] > steps:
        raise InputError(f"record={record}: numbers of steps from 0 to {steps}")
    network = Network(problem)
    parts = [_amplified(network, chosen, rate, batch_size, level, steps, runs, when, seed) for level in factors]
    found = {name: (parts[0][name][0], np.stack([part[name][1] for part in parts])) for name in parts[0]}
    found = {name: (("amplification", *dims), values) for name, (dims, values) in found.items()}
    loss, error = found["loss"][1], found["loss_stderr"][1]
    spread = np.hypot(error, error[-1])
    found["distance"] = (
        ("amplification", "step"),
        np.divide(loss - loss[-1], spread, out=np.zeros_like(loss), where=spread > 0),
    )
    attributes = {
        "theory": "amplified-variance SGD, the same diffusion for every amplification",
        "draws": runs,
        "seed": seed,
        "learning_rate": rate,
        "batch_size": int(batch_size),
        "sampling": str(chosen),
        **results.provenance(problem),
    }
    return results.dataset(found, {"amplification": factors, "step": when}, attributes)


def mixture(level: int) -> tuple[float, float]:
    """The weights of both batches at this amplification.

    >>> mixture(1), mixture(5)
    ((1.0, 0.0), (2.0, -1.0))
    """
    root = float(np.sqrt(2 * level - 1))
    return (1 + root) / 2, (1 - root) / 2


def _amplified(
    network: Network, sampling: Sampling, rate: float, b: int, level: int, steps: int, runs: int, when: list[int], seed:
    int
) -> dict[str, tuple[tuple[str, ...], Array]]:  # fmt: skip
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence((seed, level)).spawn(runs)]
    draws = sampling.draws(b, network.problem.n, streams)
    first, second = mixture(level)
    batches = 2 if level > 1 else 1
    coefficients = torch.tensor([first] * b + [second] * b, dtype=torch.float64)[: batches * b] / b
    w, kept, losses = network.start.repeat(runs, 1), [], []
    for k in range(steps + 1):
        if k in when:
            kept.append(w.numpy().copy())
            losses.append(network.loss(w).numpy())
        if k == steps:
            break
        for _ in range(level):
            indices = torch.from_numpy(draws(batches).reshape(runs, batches * b))
            w = w - rate / level * network.on_batches(w, indices, coefficients.expand(runs, -1))
    weights, found = np.array(kept), np.array(losses)
    squares = ((weights - weights.mean(1, keepdims=True)) ** 2).sum(2)
    root, logs = np.sqrt(runs), np.log(np.maximum(found, np.finfo(float).tiny))
    return {
        "loss": (("step",), found.mean(1)),
        "loss_stderr": (("step",), found.std(1, ddof=1) / root),
        "log_loss": (("step",), logs.mean(1)),
        "log_loss_stderr": (("step",), logs.std(1, ddof=1) / root),
        "mean_weights": (("step", "parameter"), weights.mean(1)),
        "mean_weights_stderr": (("step", "parameter"), weights.std(1, ddof=1) / root),
        "weights_variance": (("step",), squares.sum(1) / (runs - 1)),
        "weights_variance_stderr": (("step",), squares.std(1, ddof=1) / root),
    }
