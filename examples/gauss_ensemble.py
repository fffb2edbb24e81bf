"""Hundreds of trainings of a small network from random weights: how the loss, its spread and the noise evolve.

    python examples/gauss_ensemble.py [runs] [figure.svg]        # the paper has 10,000 runs

Gauss-10 with the network 50-10-30-10 of Li, Gu, Zhou, Chen and Banerjee, batch 5 against batch 50 (datasets.gauss says
at which scale of inputs and weights it trains).
"""

import sys

import torch

import shotnoise as sn


def main(runs: int = 200, figure: str | None = None) -> None:
    data = sn.datasets.load("gauss-10")
    relu, linear = torch.nn.ReLU, torch.nn.Linear
    model = torch.nn.Sequential(linear(50, 10), relu(), linear(10, 30), relu(), linear(30, 10))
    problem = sn.Problem(model, "cross_entropy", data.inputs, data.targets)
    ensemble = sn.simulate(
        problem,
        optimizer=sn.rules.SGD(learning_rate=0.1),
        batch_size=[5, 50],
        steps=200,
        runs=runs,
        initial=lambda rng: 0.1 * rng.standard_normal(problem.parameter_count),
        record=["loss", "gradient_cosine", "gradient_variance"],
        every=5,
    )
    summary = sn.simulate.summary(ensemble)
    if figure is not None:
        sn.show.save(sn.show.ensemble(summary), figure)

    end = summary.isel(step=-1)
    for b in (5, 50):
        here = end.sel(batch_size=b)
        variance, stderr = float(here["gradient_variance"]), float(here["gradient_variance_stderr"])
        print(f"batch size {b}: median loss {float(here['loss_quantile'].sel(quantile=0.5)):.3g} after 200 steps,")
        print(f"    gradient variance {variance:.3g} +- {stderr:.2g}")
    # Both batch sizes train; with the small one successive steps agree far less.
    assert float(end["loss"].max()) < 0.5 * float(summary["loss"].isel(step=0).min())
    assert float(end["gradient_cosine"].sel(batch_size=5)) < float(end["gradient_cosine"].sel(batch_size=50))


if __name__ == "__main__":
    main(*(int(argument) if argument.isdigit() else argument for argument in sys.argv[1:]))
