"""`shotnoise curvature`: the Hessian beside the second moment of the gradients, along a training."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import xarray as xr
from rich.text import Text

from shotnoise import results, show
from shotnoise.cli.common import ERR, OUT, print_table, tell, warnings_as_lines, whole_numbers
from shotnoise.cli.measuring import problem_from
from shotnoise.cli.outputs import Drawing, Machine, Outputs, Page, Store
from shotnoise.errors import InputError, NonFiniteError
from shotnoise.measure import Curvature
from shotnoise.problem import Problem
from shotnoise.sampling import ReshuffledEpochs
from shotnoise.training import SGD, check_steps, stops


def curvature(
    data: Annotated[str | None, typer.Option(help="A data set by name (gauss-10, digits, ...), or a CSV file.")] = None,
    model: Annotated[str, typer.Option(help="linear, mlp:64,32 or cnn:16,32.")] = "mlp:10,30",
    problem: Annotated[str | None, typer.Option(help="package.module:function returning a shotnoise.Problem.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; default $SHOTNOISE_DATA.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict, for a CSV file.")] = None,
    l2: Annotated[float, typer.Option(help="Penalty (l2/2) ||w||^2.")] = 0.0,
    samples: Annotated[int | None, typer.Option(help="Train on all, look at so many samples, drawn once.")] = None,
    top: Annotated[int, typer.Option(help="Leading eigenpairs, and dimensions of the spaces compared.")] = 15,
    layers: Annotated[bool, typer.Option(help="Add the spectra of the layers' blocks and of sub-networks.")] = False,
    dense: Annotated[
        bool | None, typer.Option("--dense/--products", help="Whole matrices; default up to 2,000 parameters.")
    ] = None,
    density: Annotated[bool, typer.Option(help="Add the density of the spectrum.")] = False,
    at: Annotated[str, typer.Option(help="Steps of training at which to look.")] = "0",
    learning_rate: Annotated[float, typer.Option(help="Of SGD between the looks.")] = 0.1,
    train_batch_size: Annotated[int, typer.Option(help="Of SGD between the looks.")] = 64,
    seed: Annotated[int, typer.Option(help="Of weights, batches, chosen samples and random vectors.")] = 0,
    report: Page = None,
    figure: Drawing = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """Leading eigenpairs of the Hessian and of the gradients' second moment, and how their eigenspaces lie."""
    outputs = Outputs(json, save, report, figure)
    steps = whole_numbers("--at", at)
    check_steps(steps)
    subject = problem_from(problem, data, model, data_dir, target, l2, seed)
    chosen = _indices(subject, samples, seed)
    rule = SGD(learning_rate, min(train_batch_size, subject.n), ReshuffledEpochs(), seed)
    found: list[tuple[int, xr.Dataset]] = []
    stopped = None
    with show.progress(ERR) as bar, warnings_as_lines():
        try:
            for step in stops(subject, rule, steps, bar("training") if steps[-1] else None):
                looked = subject if chosen is None else subject.on(*subject.samples.batch(torch.from_numpy(chosen)))
                one = Curvature()(looked, top, layers=layers, dense=dense, density=density, seed=seed)
                found.append((step, one))
        except KeyboardInterrupt:
            stopped = "interrupted"
        except NonFiniteError as error:
            stopped = f"training at learning rate {learning_rate:g} stopped: {error}"
    if found:
        training = {"learning_rate": rule.learning_rate, "train_batch_size": rule.batch_size}
        whole = found[0][1] if steps == [0] else results.along_steps(found, training)
        _deliver(whole, outputs)
    if stopped:
        tell(ERR, f"{stopped}; {len(found)} of {len(steps)} looks were done and are kept", "bold red")
        raise typer.Exit(1)


def _indices(subject: Problem, samples: int | None, seed: int) -> np.ndarray | None:
    if samples is None or samples == subject.n:
        return None
    if not 1 <= samples <= subject.n:
        raise InputError(f"--samples {samples}: there are {subject.n:,}")
    return np.random.default_rng(seed).choice(subject.n, samples, replace=False)


def _deliver(result: xr.Dataset, outputs: Outputs) -> None:
    for sheet in (show.curvature_steps(result), show.curvature_sheet(result)):
        if sheet is not None:
            print_table(show.set_for_terminal(sheet))
    for sentence in show.curvature_sentences(result):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(
        result, report=lambda path: show.curvature_report(result, path), figure=lambda: show.curvature(result)
    )
