"""How gradient noise grows while a small network learns, and that real minibatches have the variance foretold.

    python examples/noise_along_training.py [--figures docs/images]

Trains a 64-64-32-10 network on the embedded digits with SGD, measures the noise after 0, 10, 100 and 1,000 steps,
redraws real minibatches at each of these weights, and asserts what it shows.
"""

import argparse
from pathlib import Path

import shotnoise as sn
from shotnoise import models, results
from shotnoise.training import SGD, stops

BATCH_SIZES = [1, 8, 64, 512]


def main(figures: Path | None = None, steps: tuple[int, ...] = (0, 10, 100, 1000), draws: int = 400) -> None:
    data = sn.datasets.load("digits")
    problem = sn.Problem(models.build("mlp:64,32", data), "cross_entropy", data.inputs, data.targets)
    rule = SGD(learning_rate=0.1, batch_size=64, sampling=sn.sampling.ReshuffledEpochs())

    measured, observed = [], []
    for step in stops(problem, rule, steps):
        measured.append((step, sn.measure(problem, BATCH_SIZES)))
        observed.append((step, sn.measure.observed(problem, BATCH_SIZES, draws=draws, seed=step)))
    result, seen = results.along_steps(measured, {}), results.along_steps(observed, {})

    agreement = sn.compare(result, seen)
    assert agreement.agrees, agreement.sentence
    variance = result["conditional_gradient_variance"]
    assert bool((variance.diff("batch_size") < 0).all()), "a larger batch has less noise"
    for sentence in sn.show.reading(result, seen, agreement):
        print("-", sentence)
    if figures is not None:
        for name, figure in sn.show.figures(result, seen).items():
            print("wrote", sn.show.save(figure, figures / f"{name}.svg"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, help="a folder for the figures, as SVG")
    main(parser.parse_args().figures)
