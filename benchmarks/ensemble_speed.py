"""Gauss-10, 1,150 parameters: run-steps per second, bare at two batch sizes, and with quantities recorded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import torch

import ensemble_jax as peer
import shotnoise as sn
from ensemble_cases import (
    BATCH,
    LARGER_BATCH,
    RATE,
    PlainLoop,
    batches,
    flops_per_step,
    gauss,
    gauss_plan,
    largest_difference,
    layers,
    whole,
)
from ensemble_timing import Maker, Work, at_best_chunks, beside_sgemm, timed

STEPS, FEW_STEPS = 200, 20  # of a timed call, and of one of the slower methods
LOOP_RUNS, LOOP_STEPS = 8, 40
CHECKED_RUNS, CHECKED_STEPS = 8, 20
TOLERANCE, RECORDS_TOLERANCE = 1e-5, 1e-3  # float32 after so few steps; cosines of small gradients lose digits
RECORDED = ("loss", "gradient_norm", "gradient_cosine")
KERNEL = "its kernel, batches given"
NATIVE, DENSE, LOOP = "shotnoise, native engine", "shotnoise, dense engine", "plain loop of torch modules"
GIVEN = ("vmap", "runs outside", "by hand", "by hand, fused")
DRAWING = ("vmap", "by hand, fused")


def speed(rounds: int) -> dict[str, Any]:
    """Microseconds per run-step of shotnoise, JAX and the plain loop."""
    problem = gauss()
    runs = jax_ensemble(problem)
    difference = check_weights(problem, runs)
    makers: dict[str, Maker] = {
        NATIVE: partial(shotnoise_work, problem, "native", STEPS),
        KERNEL: partial(kernel_work, problem, STEPS),
        DENSE: partial(shotnoise_work, problem, "dense", STEPS),
        "shotnoise, stacked engine": partial(shotnoise_work, problem, "stacked", FEW_STEPS),
        **{f"JAX {form}": partial(given_work, runs, runs.given(form), STEPS) for form in GIVEN},
        **{f"JAX {form}, drawing": partial(drawing_work, runs, runs.drawing(form, STEPS, BATCH)) for form in DRAWING},
    }
    works = at_best_chunks(makers)
    works[LOOP] = Work(
        PlainLoop(problem, batches(gauss_plan(problem, LOOP_RUNS, LOOP_STEPS, "dense"), BATCH, LOOP_STEPS)),
        LOOP_RUNS * LOOP_STEPS,
    )
    return {
        **beside_sgemm(works, rounds),
        "largest_difference": difference,
        "batch": BATCH,
        "flops_per_run_step": flops_per_step(problem, BATCH),
    }


def larger(rounds: int) -> dict[str, Any]:
    """The same with larger batches; `speed` and `recording` check the answers."""
    problem, steps = gauss(), STEPS // 10
    runs = jax_ensemble(problem)
    makers: dict[str, Maker] = {
        NATIVE: partial(shotnoise_work, problem, "native", STEPS, b=LARGER_BATCH),
        KERNEL: partial(kernel_work, problem, steps, b=LARGER_BATCH),
        DENSE: partial(shotnoise_work, problem, "dense", steps, b=LARGER_BATCH),
        **{f"JAX {form}": partial(given_work, runs, runs.given(form), steps, b=LARGER_BATCH) for form in GIVEN},
    }
    return {
        **beside_sgemm(at_best_chunks(makers), rounds),
        "batch": LARGER_BATCH,
        "flops_per_run_step": flops_per_step(problem, LARGER_BATCH),
    }


def recording(rounds: int) -> dict[str, Any]:
    """The same with full loss, norm of the full gradient and cosine of successive gradients at every step."""
    problem = gauss()
    runs = jax_ensemble(problem)
    difference = check_records(problem, runs)
    makers: dict[str, Maker] = {
        NATIVE: partial(shotnoise_work, problem, "native", STEPS, record=RECORDED, every=1),
        DENSE: partial(shotnoise_work, problem, "dense", FEW_STEPS, record=RECORDED, every=1),
        **{
            f"JAX {form}": partial(given_work, runs, runs.recording(form), FEW_STEPS)
            for form in ("vmap", "by hand", "by hand, fused")
        },
    }
    return {"rows": timed(at_best_chunks(makers), rounds), "largest_difference": difference, "batch": BATCH}


def jax_ensemble(problem: sn.Problem) -> peer.JaxEnsemble:
    return peer.JaxEnsemble(problem.samples.inputs.numpy(), problem.samples.targets.numpy(), layers(problem), RATE)


def shotnoise_work(problem: sn.Problem, engine: str, steps: int, runs: int, **options: Any) -> Work:
    return Work(whole(gauss_plan(problem, runs, steps, engine, **options)), runs * steps, runs)


def kernel_work(problem: sn.Problem, steps: int, runs: int, b: int = BATCH) -> Work:
    """The native engine as JAX is timed: on batches drawn beforehand, by streams made beforehand."""
    plan = gauss_plan(problem, runs, steps, "native", b)
    train, start = plan.engine().trainer(plan.rules[0]), problem.flatten(problem.parameters).detach()
    weights = start.repeat(runs, 1)
    indices = torch.from_numpy(np.random.default_rng(0).integers(problem.n, size=(runs, steps, b)))
    return Work(lambda: train(weights, {}, indices, plan.rates[0], 0, {}, {}, None), runs * steps, runs)


def given_work(ensemble: peer.JaxEnsemble, compiled: Callable[..., Any], steps: int, runs: int, b: int = BATCH) -> Work:
    """JAX on batches drawn beforehand, which costs it nothing here."""
    indices = np.random.default_rng(0).integers(ensemble.n, size=(steps, runs, b), dtype=np.int32)
    arguments = ensemble.weights(runs), jax.numpy.asarray(indices)
    return Work(lambda: jax.block_until_ready(compiled(*arguments)), runs * steps, runs)


def drawing_work(ensemble: peer.JaxEnsemble, compiled: Callable[..., Any], runs: int) -> Work:
    weights = ensemble.weights(runs)
    return Work(lambda: jax.block_until_ready(compiled(weights)), runs * STEPS, runs)


def check_weights(problem: sn.Problem, ensemble: peer.JaxEnsemble) -> dict[str, float]:
    """All methods on the batches that shotnoise draws: the weights after a few steps are those of the plain loop."""
    at_end = sn.simulate.weights(steps=[CHECKED_STEPS])
    plans = {
        name: gauss_plan(problem, CHECKED_RUNS, CHECKED_STEPS, name, record=[at_end])
        for name in ("native", "dense", "stacked")
    }
    drawn = batches(plans["dense"], BATCH, CHECKED_STEPS)
    loop = PlainLoop(problem, drawn)
    loop()
    found = {f"shotnoise {name}": whole(plan)()[0]["weights"][:, 0] for name, plan in plans.items()}
    arguments = ensemble.weights(CHECKED_RUNS), jax.numpy.asarray(drawn.astype(np.int32))
    found |= {f"JAX {form}": peer.flattened(ensemble.given(form)(*arguments)) for form in GIVEN}
    return _small({name: largest_difference(weights, loop.weights()) for name, weights in found.items()}, TOLERANCE)


def check_records(problem: sn.Problem, ensemble: peer.JaxEnsemble) -> dict[str, float]:
    """What JAX records on shotnoise's batches is what shotnoise records, and the first is the problem's own."""
    plan = gauss_plan(problem, CHECKED_RUNS, CHECKED_STEPS, "native", record=RECORDED, every=1)
    (records,) = whole(plan)()
    drawn = batches(plan, BATCH, CHECKED_STEPS).astype(np.int32)
    own = {name: records[name][:, :CHECKED_STEPS].T for name in RECORDED}
    gradient = torch.cat([g.flatten() for g in problem.gradient().values()])
    found = {
        "shotnoise loss": largest_difference(own["loss"][0], np.array(problem.loss())),
        "shotnoise gradient_norm": largest_difference(own["gradient_norm"][0], np.array(float(gradient.norm()))),
    }
    for form in ("vmap", "by hand", "by hand, fused"):
        theirs = ensemble.recording(form)(ensemble.weights(CHECKED_RUNS), jax.numpy.asarray(drawn))
        for name, values in zip(RECORDED, np.asarray(theirs), strict=True):
            known = slice(1, None) if name == "gradient_cosine" else slice(None)
            found[f"JAX {form} {name}"] = largest_difference(values[known], own[name][known])
    return _small(found, RECORDS_TOLERANCE)


def _small(differences: dict[str, float], tolerance: float) -> dict[str, float]:
    wrong = {name: value for name, value in differences.items() if not value < tolerance}
    if wrong:
        raise SystemExit(f"results differ by more than {tolerance}: {wrong}")
    return differences
