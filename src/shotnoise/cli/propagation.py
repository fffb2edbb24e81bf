"""`shotnoise predict propagation`: the law of the gradient's variance for large batches, for any model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from shotnoise import show
from shotnoise.cli.common import OUT, print_table, scheme, whole_numbers
from shotnoise.cli.measuring import problem_from
from shotnoise.cli.outputs import Drawing, Machine, Outputs, Store
from shotnoise.predict import batch_exponent
from shotnoise.predict import propagation as law_of
from shotnoise.schedules import InverseTime


def propagation(
    data: Annotated[str | None, typer.Option(help="A data set by name (digits, mnist, ...), or a CSV file.")] = None,
    model: Annotated[str, typer.Option(help="linear, mlp:64,32 or cnn:16,32.")] = "mlp:64,32",
    problem: Annotated[str | None, typer.Option(help="package.module:function returning a shotnoise.Problem.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; default $SHOTNOISE_DATA.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict, for a CSV file.")] = None,
    l2: Annotated[float, typer.Option(help="Penalty (l2/2) ||w||^2.")] = 0.0,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to predict for.")] = "8,32,128,512",
    steps: Annotated[int, typer.Option(help="Updates.")] = 20,
    learning_rate: Annotated[float, typer.Option(help="At the first update.")] = 0.1,
    decay: Annotated[float, typer.Option(help="d of the learning rate a / (1 + d t).")] = 0.0,
    probes: Annotated[
        int | None, typer.Option(help="Deviations followed; default exact up to 200 weights, else 32.")
    ] = (None),
    sampling: Annotated[str, typer.Option(help="with-replacement or without-replacement.")] = "with-replacement",
    seed: Annotated[int, typer.Option(help="Of weights and probes.")] = 0,
    figure: Drawing = None,
    json: Machine = None,
    save: Store = None,
) -> None:
    """The variance of any model's gradient along a training, to first order in 1/b, before any stochastic step."""
    outputs = Outputs(json, save, figure=figure)
    subject = problem_from(problem, data, model, data_dir, target, l2, seed)
    sizes, rate = whole_numbers("--batch-sizes", batch_sizes), InverseTime(learning_rate, decay)
    law = law_of(subject, None, rate, steps, sizes, probes, sampling=scheme(sampling), seed=seed)
    law.attrs |= {"learning_rate": repr(rate), "data": data or str(problem)}
    print_table(show.set_for_terminal(show.propagation_sheet(law)))
    exponent = batch_exponent(law.isel(step=-1)) if len(sizes) > 1 else None
    for sentence in show.propagation_sentences(law, exponent):
        OUT.print(Text(f"• {sentence}"))
    outputs.write(law, figure=lambda: show.prediction(law, lines="to first order"))
