"""Theory and trainings of a linear regression: do they agree, how large may the rate be, what does a batch buy?

python examples/regression_theory.py [figure.svg]
"""

import sys

import torch

import shotnoise as sn

BATCH_SIZES, STEPS, RATE = [4, 16, 64], 60, 0.1


def main(figure: str | None = None) -> None:
    data = sn.datasets.load("diabetes")
    inputs, targets = data.inputs.double(), data.targets.double()
    model = torch.nn.Linear(10, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    problem = sn.Problem(model, "mse", inputs, targets)

    theory = sn.predict.regression(inputs, targets, torch.zeros(10), RATE, BATCH_SIZES, STEPS)
    runs = sn.simulate(
        problem, sn.rules.SGD(RATE), BATCH_SIZES, STEPS, runs=500, sampling=sn.sampling.WithoutReplacement(), every=5,
        record=["loss", "gradient_variance", "full_gradient_variance"],
    )  # fmt: skip
    simulated = sn.simulate.summary(runs)
    later = runs["step"].values[1:]  # at step 0 the loss is known
    verdict = sn.compare(theory.sel(step=later), simulated.sel(step=later), variables=["loss", "gradient_variance"])
    print(verdict.sentence)

    limits = sn.predict.regression_stability(inputs, BATCH_SIZES)
    for b in BATCH_SIZES:
        print(f"batch size {b}: learning rates up to {float(limits['critical_learning_rate'].sel(batch_size=b)):.3f}")
    print(*sn.show.prediction_sentences(theory, sn.predict.batch_size_report(theory)), sep="\n")
    if figure is not None:
        sn.show.save(sn.show.prediction(theory, simulated), figure)
    assert verdict.agrees


if __name__ == "__main__":
    main(*sys.argv[1:])
