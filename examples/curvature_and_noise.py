"""Does the noise of the minibatches know the curvature? Hessian against second moment, before and after training.

    python examples/curvature_and_noise.py [runs]        # the paper has 10,000 runs

Gauss-10 with a network of 1,150 parameters (Li, Gu, Zhou, Chen and Banerjee): the fifteen leading directions of both
matrices, how far they agree beyond chance, in which layers they lie, and what the perturbation bounds say.
"""

import sys

import torch

import shotnoise as sn

STEPS = (0, 150)


def main(runs: int = 6) -> None:
    data = sn.datasets.load("gauss-10")
    relu, linear = torch.nn.ReLU, torch.nn.Linear
    model = torch.nn.Sequential(linear(50, 10), relu(), linear(10, 30), relu(), linear(30, 10))
    problem = sn.Problem(model, "cross_entropy", data.inputs, data.targets)
    ensemble = sn.simulate(
        problem,
        optimizer=sn.rules.SGD(learning_rate=0.1),
        batch_size=5,
        steps=STEPS[-1],
        runs=runs,
        initial=lambda rng: 0.1 * rng.standard_normal(problem.parameter_count),
        record=["loss", sn.simulate.curvature(top=15, steps=STEPS), sn.simulate.weights(steps=STEPS[-1:])],
        every=50,
    )
    mean = sn.simulate.summary(ensemble).sel(batch_size=5)
    for t in STEPS:
        here = mean.sel(curvature_step=t)
        tenth, stderr = float(here["principal_angle_cosines"][9]), float(here["principal_angle_cosines_stderr"][9])
        print(f"step {t}: tenth of fifteen cosines {tenth:.2f} +- {stderr:.2f}, the ten leading directions of one")
        print(f"    within those of the other {float(here['subspace_overlap'][9]):.2f} (by chance 0.01)")

    # One of the runs in full, at its last weights.
    torch.nn.utils.vector_to_parameters(torch.as_tensor(ensemble["weights"].values[0, 0, -1]), model.parameters())
    c = sn.measure.curvature(problem, top=10, layers=True)
    for layer, loading in zip(c["layer"].values, c["layer_loading"].values[:, 0], strict=True):
        print(f"layer {layer}: the first eigenvector loads {loading:.2f} times its share of the parameters")
    print(c.attrs["statement"])

    start, end = (mean.sel(curvature_step=t) for t in STEPS)
    assert float(end["principal_angle_cosines"][9]) > float(start["principal_angle_cosines"][9]) + 0.3
    assert float(end["second_moment_frobenius_norm"] / end["hessian_frobenius_norm"]) < 0.5, "H_p is near -H"
    assert c["eigenpair_converged"].all() and float(c["layer_loading"][-1, 0]) > 1
    # Single precision, run by run, against the whole matrix of the same run.
    seen = ensemble["hessian_eigenvalues"].values[0, 0, -1, 0]
    assert abs(seen / float(c["hessian_eigenvalues"][0]) - 1) < 1e-3


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
