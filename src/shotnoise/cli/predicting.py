"""`shotnoise predict ...`: what theory says before any training."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from shotnoise import show
from shotnoise.cli.common import OUT, numbers, print_table, scheme, warnings_as_lines, whole_numbers
from shotnoise.cli.networks import networks
from shotnoise.cli.outputs import Drawing, Machine, Outputs, Page, Store
from shotnoise.cli.propagation import propagation
from shotnoise.errors import InputError
from shotnoise.experiment import sources
from shotnoise.predict import batch_size_report, regression_stability
from shotnoise.predict import regression as predict_regression
from shotnoise.predict.diffusion import ornstein_uhlenbeck, rotation
from shotnoise.predict.stationary import gaussian, optimal_weight_decay
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
    report: Page = None,
    figure: Drawing = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Exact variances of SGD on a linear regression, at every step and for all batch sizes at once."""
    outputs = Outputs(json, save, report, figure)
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
    outputs.write(
        predicted,
        report=lambda path: show.prediction_report(predicted, path, advice, limits),
        figure=lambda: show.prediction(predicted),
    )


predict.command()(networks)
predict.command()(propagation)

stationary = typer.Typer(no_args_is_help=True, help="Where SGD settles at a constant rate, and how widely it moves.")
predict.add_typer(stationary, name="stationary")

Spectrum = Annotated[str, typer.Option(help="Variances of the features in their own axes, such as 1,0.5.")]
Rates = Annotated[str, typer.Option(help="One, several with commas, or low:high:count.")]
Sizes = Annotated[str, typer.Option(help="Batch sizes.")]
LabelVariance = Annotated[float, typer.Option(help="Variance of the noise on the labels.")]
Momentum = Annotated[float, typer.Option(help="PyTorch's, at least 0 and below 1.")]
Sweep = Annotated[Path | None, typer.Option(help="Write the figure (.svg, .pdf or .png); needs several rates.")]
Target = Annotated[str | None, typer.Option(help="The weights to be learnt; default 1 in every direction.")]


@stationary.callback()
def about_stationary() -> None:
    """Where SGD settles at a constant rate, and how widely it moves: exact, for Gaussian features."""


@stationary.command("label-noise")
def label_noise(
    spectrum: Spectrum,
    label_variance: LabelVariance,
    learning_rate: Rates,
    batch_size: Sizes = "1",
    momentum: Momentum = 0.0,
    report: Page = None,
    figure: Sweep = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Linear regression whose labels are noisy."""
    _settled(spectrum, learning_rate, batch_size, None, Outputs(json, save, report, figure),
             label_variance=label_variance, momentum=momentum)  # fmt: skip


@stationary.command("input-noise")
def input_noise(
    spectrum: Spectrum,
    noise_spectrum: Annotated[str, typer.Option(help="Variances of the noise on the features, such as 0.1,0.1.")],
    learning_rate: Rates,
    batch_size: Sizes = "1",
    target: Target = None,
    label_variance: LabelVariance = 0.0,
    momentum: Momentum = 0.0,
    report: Page = None,
    figure: Sweep = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Linear regression whose inputs are noisy."""
    _settled(spectrum, learning_rate, batch_size, target or "", Outputs(json, save, report, figure),
             label_variance=label_variance, momentum=momentum,
             input_covariance=numbers("--noise-spectrum", noise_spectrum))  # fmt: skip


@stationary.command("weight-decay")
def weight_decay(
    spectrum: Spectrum,
    l2: Annotated[float, typer.Option(help="gamma of the penalty (gamma/2) ||w||^2, of either sign.")],
    learning_rate: Rates,
    batch_size: Sizes = "1",
    target: Target = None,
    label_variance: LabelVariance = 0.0,
    momentum: Momentum = 0.0,
    report: Page = None,
    figure: Sweep = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Linear regression with weight decay, and the best decay for each setting if there is one setting."""
    _settled(spectrum, learning_rate, batch_size, target or "", Outputs(json, save, report, figure),
             label_variance=label_variance, momentum=momentum, l2=l2)  # fmt: skip
    rates, sizes = numbers("--learning-rate", learning_rate), whole_numbers("--batch-size", batch_size)
    if len(rates) == len(sizes) == 1:
        features = numbers("--spectrum", spectrum)
        best = optimal_weight_decay(
            features, numbers("--target", target) if target else [1.0] * len(features), rates[0], sizes[0],
            label_variance=label_variance, momentum=momentum,
        )  # fmt: skip
        low, optimal, high, loss = (
            float(best[name]) for name in ("lowest_l2", "optimal_l2", "highest_l2", "test_loss")
        )
        OUT.print(
            Text(
                "• No weight decay is stable at this rate and batch size."
                if np.isnan(low)
                else f"• The best weight decay is {optimal:.4g} (test loss {loss:.4g}); stable are those between "
                f"{low:.4g} and {high:.4g}."
            )
        )


def _settled(
    spectrum: str, learning_rate: str, batch_size: str, target: str | None, outputs: Outputs, **options: Any
) -> None:
    """target: None where it does not matter, "" for ones."""
    features = numbers("--spectrum", spectrum)
    if target is not None:
        options["target"] = numbers("--target", target) if target else [1.0] * len(features)
    rates, sizes = numbers("--learning-rate", learning_rate), whole_numbers("--batch-size", batch_size)
    state = gaussian(features, rates if len(rates) > 1 else rates[0], sizes if len(sizes) > 1 else sizes[0], **options)
    state.attrs |= {"spectrum": spectrum} | {name: str(value) for name, value in options.items()}
    print_table(show.set_for_terminal(show.stationary_sheet(state)))
    for sentence in show.stationary_sentences(state):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(state, report=lambda path: show.stationary_report(state, path), figure=lambda: show.stationary(state))


@predict.command()
def diffusion(
    hessian: Annotated[str, typer.Option(help='Of the loss at the minimum: rows with semicolons, "2,0.5;0.5,1".')],
    noise: Annotated[str, typer.Option(help="Covariance of one sample's gradient there, written the same way.")],
    learning_rate: Annotated[float, typer.Option(help="Constant.")],
    batch_size: Annotated[int, typer.Option(help="Fresh batches, drawn with replacement.")] = 1,
    momentum: Momentum = 0.0,
    json: Machine = None,
    save: Store = None,
) -> None:
    """SGD near a minimum as a diffusion: covariance of the weights by each continuous model and the discrete one."""
    outputs = Outputs(json, save)
    H, C = _matrix("--hessian", hessian), _matrix("--noise", noise)
    found = ornstein_uhlenbeck(H, C, learning_rate, batch_size, momentum)
    found.attrs |= {"hessian": hessian, "noise": noise}
    print_table(show.set_for_terminal(show.diffusion_sheet(found)))
    turning = None if momentum or (found["status"] != "stationary").any() else rotation(H, C, learning_rate, batch_size)
    for sentence in show.diffusion_sentences(found, turning):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(found)


def _matrix(option: str, text: str) -> np.ndarray:
    rows = [numbers(option, row) for row in text.split(";")]
    if any(len(row) != len(rows) for row in rows):
        raise InputError(f'{option} {text!r}: a square matrix, rows with semicolons, such as "2,0.5;0.5,1"')
    return np.array(rows)


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
