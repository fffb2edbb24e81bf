"""What is guaranteed of the next step, of the coming steps and of new data, for a linear classifier on digits.

python examples/guarantees.py [figure.svg]
"""

import sys

import torch

import shotnoise as sn

RATE, BATCH_SIZE = 0.02, 32


def main(figure: str | None = None) -> None:
    data = sn.datasets.load("digits")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    problem = sn.Problem(model, "cross_entropy", data.inputs[:500], data.targets[:500])

    step = sn.predict.bounds.one_step(problem, RATE, BATCH_SIZE, draws=300)
    print("next step:", step.attrs["expectation_says"])
    print("tails:", step.attrs["tails_say"])
    assert (step["exceedance"] <= step["tail_probability"]).all(), "no bound is exceeded more often than it says"

    first = problem.flatten(problem.parameters).detach().clone()
    rule = sn.training.SGD(0.1, BATCH_SIZE, sn.sampling.WithReplacement())
    for _ in sn.training.stops(problem, rule, [300]):
        found = sn.predict.generalization.pac_bayes(problem, initial_weights=first, prior_std=0.3, draws=200)
        print(f"new data: an error of at most {float(found['best_risk_bound']):.2f}, {found.attrs['vacuity']}")
    assert float(found["best_risk_bound"]) < 0.9, "better than guessing"

    advice = sn.advise(problem, RATE, BATCH_SIZE)
    print(*advice["sentence"].values, sep="\n")
    if figure is not None:
        sn.show.save(sn.show.loss_change(step), figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
