"""Where SGD settles on a linear regression with noisy labels, how widely it moves there, and whether a run has settled.

python examples/stationary_state.py [figure.svg]
"""

import sys

import numpy as np
import torch

import shotnoise as sn

SPECTRUM, LABEL_VARIANCE, RATE, BATCH_SIZE = [1.0, 0.5], 0.25, 0.6, 8


def main(figure: str | None = None) -> None:
    theory = sn.predict.stationary.label_noise(SPECTRUM, LABEL_VARIANCE, RATE, BATCH_SIZE)
    print(*sn.show.stationary_sentences(theory), sep="\n")

    student = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    population = sn.TeacherStudent(
        student, torch.ones(1, 2, dtype=torch.float64), covariance=np.diag(SPECTRUM), label_noise=LABEL_VARIANCE**0.5
    )
    runs = sn.simulate(
        population, sn.rules.SGD(RATE), BATCH_SIZE, 100, runs=2000, record=[sn.simulate.weights(steps=[100])]
    )
    weights = runs["weights"].values.reshape(2000, 2)
    simulated = np.cov(weights.T)
    predicted = theory["weight_covariance"].values
    print(f"covariance of the weights, predicted:\n{predicted.round(4)}\nand over 2,000 runs:\n{simulated.round(4)}")
    # The variance of each weight within four standard errors, by the fourth moments of the runs.
    squares = (weights - weights.mean(0)) ** 2
    assert (abs(squares.mean(0) - predicted.diagonal()) < 4 * squares.std(0) / 2000**0.5).all()

    rivals = sn.predict.stationary.rivals(SPECTRUM, RATE, BATCH_SIZE, label_variance=LABEL_VARIANCE)
    for name in rivals["theory"].values[:-1]:
        error = float(rivals["relative_error"].sel(theory=name, quantity="weight_covariance"))
        print(f"{name}: off by {100 * error:.0f} %")
    if figure is not None:
        sweep = sn.predict.stationary.label_noise(SPECTRUM, LABEL_VARIANCE, np.linspace(0.05, 1.9, 80), [4, 8, 64])
        sn.show.save(sn.show.stationary(sweep), figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
