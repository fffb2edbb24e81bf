"""The curvature along the training as recorders: one look at the weights of all runs, many quantities of it."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from shotnoise.measure.curvature.runs import RunCurvature
from shotnoise.problem import Problem
from shotnoise.simulate.recorders import Recorder
from shotnoise.simulate.state import State

FAMILY = "curvature"


def curvature(
    top: int = 15,
    *,
    steps: Sequence[int] | None = None,
    layers: bool = False,
    full: bool = False,
    probes: int = 8,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> tuple[Recorder, ...]:
    """Recorders of the curvature of every run at chosen steps, for `simulate(..., record=["loss", curvature(...)])`.

    top: leading eigenpairs of the Hessian H, the second moment M and the residual H_p = M - H. steps: at which steps,
    for this costs about as much as some hundred full gradients; default all that are recorded. Values are by run, along
    `curvature_step` where steps are given, by `mode`:
    `hessian_eigenvalues`, `second_moment_eigenvalues`, `residual_eigenvalues`, `residual_lowest_eigenvalues`,
    `principal_angle_cosines` between the spaces of `top` dimensions, the literal `subspace_overlap` of the leading d,
    `gradient_share`; `layer_loading` by layer; `hessian_trace`, `second_moment_trace` and the three Frobenius norms,
    the trace of H and squares of the norms of H and H_p estimated without bias from `probes` random vectors;
    `eigenpair_error`, the largest residual relative to the largest eigenvalue. An eigenvalue beyond `tolerance` is NaN.
    layers: add `layer_hessian_eigenvalues` and `subnetwork_hessian_eigenvalues`. full: add all eigenvalues, by `index`.
    Arithmetic is in double precision for fully connected networks, which are taken many runs at a time. Mean spectra
    over the runs with their errors are in `simulate.summary`.
    """
    found = RunCurvature(top, layers, full, probes, tolerance, seed)
    own = None if steps is None else tuple(int(t) for t in steps)

    def seen(name: str) -> Callable[[State], Tensor]:
        def observe(state: State) -> Tensor:
            if found not in state.memo:
                state.memo[found] = found.of(state.engine.problem, state.weights)
            values: Tensor = state.memo[found][name]
            return values

        return observe

    def one(name: str) -> Recorder:
        axes = partial(_axes, found, name)
        return Recorder(name, seen(name), steps=own, family=FAMILY, axes=axes, check=found.check)

    return tuple(one(name) for name in found.names)


def _axes(found: RunCurvature, name: str, problem: Problem) -> dict[str, int]:
    return found.axes(problem)[name]
