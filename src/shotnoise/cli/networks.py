"""`shotnoise predict networks`: a network's gradient variance as an exact polynomial in 1/b."""

import json as json_
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from shotnoise import show
from shotnoise.cli.common import ERR, OUT, print_table, tell, whole_numbers
from shotnoise.cli.outputs import Drawing, Machine, Outputs, Page, Store
from shotnoise.errors import InputError
from shotnoise.predict import networks as theory
from shotnoise.predict.networks.tabulated import QUANTITIES

POLYNOMIALS = {
    "gradient_variance": theory.gradient_variance_polynomial,
    "full_gradient_variance": theory.full_gradient_variance_polynomial,
}
TOLD = 2.0  # predicted seconds that are worth saying
OF_THE_LOSS = {"loss": theory.loss_polynomial, "loss_variance": theory.loss_variance_polynomial}


def networks(
    student: Annotated[
        str | None, typer.Option(help="Weight matrices as JSON, first layer first, or a .json file with them.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Likewise; one matrix is a linear teacher.")] = None,
    widths: Annotated[
        str | None,
        typer.Option(help="Instead of both: widths such as 64,256,128, weights normal with variance 1/fan-in."),
    ] = None,
    learning_rate: Annotated[str, typer.Option(help="A number; a fraction such as 1/24 is kept exact.")] = "0.01",
    step: Annotated[int, typer.Option(help="Updates before the gradient that is asked about.")] = 1,
    layer: Annotated[int, typer.Option(help="Whose gradient; 0 is the first.")] = 0,
    activation: Annotated[
        str | None, typer.Option(help="Coefficients c0,c1,... of the hidden layers' polynomial; default linear.")
    ] = None,
    quantity: Annotated[str, typer.Option(help="gradient_variance, full_gradient_variance, loss or loss_variance.")] = (
        "gradient_variance"
    ),
    batch_sizes: Annotated[str, typer.Option(help="Where to evaluate it.")] = "1,2,4,8,16,32,64,128,256,512,1024",
    seconds: Annotated[float, typer.Option(help="Refuse what is predicted to take longer.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of the weights that --widths draws.")] = 0,
    report: Page = None,
    figure: Drawing = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """The exact polynomial in 1/b of a deep linear or polynomially activated network on fresh Gaussian inputs."""
    outputs = Outputs(json, save, report, figure)
    if quantity not in QUANTITIES:
        raise InputError(f"--quantity {quantity!r}: one of {', '.join(QUANTITIES)}")
    sizes = whole_numbers("--batch-sizes", batch_sizes)
    own, target = _weights(student, teacher, widths, seed)
    options: dict[str, Any] = {"seconds": seconds, "activation": activation.split(",") if activation else None}
    rate = _exactly(learning_rate)
    try:
        found = _with_progress(quantity, own, target, rate, step, layer, options)
    except theory.Interrupted as stopped:
        if not stopped.partial:
            raise
        step, found = max(stopped.partial.items())
        tell(ERR, f"interrupted: this is step {step}, the last one that was finished", "bold red")
    predicted = theory.tabulate(found, sizes, quantity)
    predicted.attrs |= {"learning_rate": learning_rate, "step": step, "layer": layer, "inputs": "gaussian"}
    predicted.attrs |= {"widths": widths, "seed": seed} if widths is not None else {}
    print_table(show.set_for_terminal(show.polynomial_sheet(predicted)))
    for sentence in show.polynomial_sentences(predicted):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(
        predicted,
        report=lambda path: show.polynomial_report(predicted, path),
        figure=lambda: show.polynomial(predicted),
    )


def _with_progress(
    quantity: str, own: Any, target: Any, rate: str, step: int, layer: int, options: dict[str, Any]
) -> theory.NetworkPolynomial:
    cost = {name: value for name, value in options.items() if name != "seconds"}
    seconds = theory.predicted_seconds(own, target, rate, step, layer, **cost)
    if TOLD < seconds <= options["seconds"]:
        tell(ERR, f"about {seconds:.2g} seconds; Ctrl-C keeps the steps that are finished")
    with show.progress(ERR) as bar:
        options = options | {"progress": bar(f"step {step:,}")}
        if quantity in OF_THE_LOSS:
            return OF_THE_LOSS[quantity](own, target, rate, step, **options)
        return POLYNOMIALS[quantity](own, target, rate, step, layer, **options)


def _weights(student: str | None, teacher: str | None, widths: str | None, seed: int) -> tuple[Any, Any]:
    if (widths is None) == (student is None) or (student is None) != (teacher is None):
        raise InputError("give --student and --teacher, or --widths alone")
    if widths is not None:
        sizes = whole_numbers("--widths", widths)
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"--widths {widths!r}: inputs, hidden layers and outputs, such as 64,256,128")
        rng = np.random.default_rng(seed)
        own, target = ([rng.normal(size=(m, n)) / np.sqrt(n) for n, m in pairwise(sizes)] for _ in range(2))
        return own, target
    return _read("--student", student or ""), _read("--teacher", teacher or "")


def _read(option: str, text: str) -> Any:
    """Numbers as they are written, decimals exactly."""
    if text.endswith(".json"):
        try:
            text = Path(text).expanduser().read_text()
        except OSError as error:
            raise InputError(f"{option} {text}: cannot be read ({error})") from error
    try:
        return json_.loads(text, parse_float=str)
    except json_.JSONDecodeError as error:
        raise InputError(f"{option}: not JSON ({error}); weight matrices look like [[[1, 2]], [[3]]]") from error


def _exactly(text: str) -> str:
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--learning-rate {text!r}: a number, or a fraction such as 1/24") from None
    return text
