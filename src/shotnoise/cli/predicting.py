"""`shotnoise predict ...`: what theory says before any training."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.text import Text

from shotnoise import results, show
from shotnoise.cli.common import ERR, OUT, print_table, scheme, tell, warnings_as_lines, whole_numbers
from shotnoise.errors import InputError
from shotnoise.experiment import sources
from shotnoise.files import check_writable, write_atomically
from shotnoise.predict import batch_size_report, regression_stability
from shotnoise.predict import regression as predict_regression
from shotnoise.sampling import WithoutReplacement, WithReplacement
from shotnoise.schedules import InverseTime

predict = typer.Typer(no_args_is_help=True, help="Predict the noise from theory, before any training.")
USUAL_SIZES = [2**k for k in range(8)]
INITIAL = ("zeros", "normal")


@predict.callback()
def about() -> None:
    """Predict the noise from theory, before any training."""


@predict.command()
def regression(
    data: Annotated[str, typer.Option(help="A CSV file, or a regression data set by name (diabetes).")],
    target: Annotated[str | None, typer.Option(help="The column to predict, for a CSV file.")] = None,
    drop: Annotated[str, typer.Option(help="Columns of a CSV file to leave out, with commas.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Do not standardise the columns of a CSV file.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; default $SHOTNOISE_DATA.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Default: powers of two to 128, as far as there is data.")] = (
        None
    ),
    steps: Annotated[int, typer.Option(help="Updates.")] = 200,
    learning_rate: Annotated[float, typer.Option(help="At the first update.")] = 0.1,
    decay: Annotated[float, typer.Option(help="d of the learning rate a / (1 + d t).")] = 0.0,
    momentum: Annotated[float, typer.Option(help="PyTorch's, at least 0 and below 1.")] = 0.0,
    l2: Annotated[float, typer.Option(help="Penalty (l2/2) ||w||^2.")] = 0.0,
    sampling: Annotated[str, typer.Option(help="with-replacement, without-replacement or epochs.")] = (
        "without-replacement"
    ),
    intercept: Annotated[bool, typer.Option(help="Fit an intercept too.")] = True,
    initial: Annotated[str, typer.Option(help="First weights: zeros or normal (standard normal).")] = "zeros",
    seed: Annotated[int, typer.Option(help="Of normal first weights.")] = 0,
    loss_variance: Annotated[bool, typer.Option("--loss-variance", help="Also the variance of the loss.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page for people (HTML).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the figure (.svg, .pdf or .png).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result for machines (JSON).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the result as a Zarr store (folder or .zip).")] = None,
) -> None:
    """Exact variances of SGD on a linear regression, at every step and for all batch sizes at once."""
    for path in (report, figure, json, save):
        if path is not None and not (path is save and path.is_dir()):
            check_writable(path)
    if initial not in INITIAL:
        raise InputError(f"--initial {initial!r}: one of {', '.join(INITIAL)}")
    x, y = _table(data, target, drop, raw, data_dir)
    width = x.shape[1] + intercept
    w0 = np.zeros((y.shape[1], width)) if initial == "zeros" else _normal(seed, (y.shape[1], width))
    some = [b for b in USUAL_SIZES if b <= len(x)]
    sizes = some if batch_sizes is None else whole_numbers("--batch-sizes", batch_sizes)
    scheme_ = scheme(sampling)
    with warnings_as_lines():
        predicted = predict_regression(
            x, y, w0, InverseTime(learning_rate, decay), sizes, steps, sampling=scheme_, intercept=intercept,
            l2=l2, momentum=momentum, loss_variance=loss_variance,
        )  # fmt: skip
    predicted.attrs |= {"data": data, "learning_rate": repr(InverseTime(learning_rate, decay)), "initial": initial}
    advice = batch_size_report(predicted) if len(sizes) > 1 else None
    fresh = isinstance(scheme_, (WithReplacement, WithoutReplacement))
    limits = (
        regression_stability(x, sizes, sampling=scheme_, intercept=intercept, l2=l2, momentum=momentum)
        if fresh and l2 >= 0
        else None
    )
    print_table(show.set_for_terminal(show.prediction_sheet(predicted, advice, limits)))
    for sentence in show.prediction_sentences(predicted, advice):
        OUT.print(Text(f"• {sentence}"))
    written = []
    if report is not None:
        written.append(show.prediction_report(predicted, report, advice, limits))
    if figure is not None:
        written.append(show.save(show.prediction(predicted), figure))
    if json is not None:
        written.append(write_atomically(json, results.to_json(predicted)))
    if save is not None:
        written.append(results.save(predicted, save))
    for path in written:
        tell(ERR, f"wrote {path}")


def _table(data: str, target: str | None, drop: str, raw: bool, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    options: dict[str, object] = {}
    if data.endswith(".csv"):
        if target is None:
            raise InputError(f"--data {data} is a table: name the column to predict with --target")
        options = {"target": target, "drop": [name for name in drop.split(",") if name.strip()], "standardise": not raw}
    elif target is not None or drop or raw:
        raise InputError("--target, --drop and --raw are for CSV files")
    found = sources.load(data, data_dir, **options)
    if found.classes is not None:
        raise InputError(
            f"--data {data}: its targets are classes; a linear regression needs numbers (diabetes, a CSV file)"
        )
    return found.inputs.double().numpy(), found.targets.double().numpy()


def _normal(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)
