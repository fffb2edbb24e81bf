"""`shotnoise advise`."""

from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from rich.text import Text

from shotnoise import show
from shotnoise.advice import advise as advise_on
from shotnoise.cli.common import ERR, OUT, print_table, scheme
from shotnoise.cli.measuring import problem_from
from shotnoise.cli.outputs import Machine, Outputs, Store
from shotnoise.sampling import SCHEMES
from shotnoise.show.advice import advice_sheet


def advise(
    learning_rate: Annotated[float, typer.Option(help="Of SGD.")],
    batch_size: Annotated[int, typer.Option(help="Samples per step.")],
    data: Annotated[str | None, typer.Option(help="A data set by name (digits, mnist, ...), or a CSV file.")] = None,
    model: Annotated[str, typer.Option(help="linear, mlp:64,32 or cnn:16,32.")] = "mlp:64,32",
    problem: Annotated[str | None, typer.Option(help="package.module:function returning a shotnoise.Problem.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files; default $SHOTNOISE_DATA.")] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict, for a CSV file.")] = None,
    l2: Annotated[float, typer.Option(help="Penalty (l2/2) ||w||^2.")] = 0.0,
    momentum: Annotated[float, typer.Option(help="As in PyTorch.")] = 0.0,
    sampling: Annotated[
        str, typer.Option(help=f"How batches are drawn: {', '.join(SCHEMES)}.")
    ] = "without-replacement",
    samples: Annotated[int | None, typer.Option(help="Spend only so many samples on the noise.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and chosen samples.")] = 0,
    json: Machine = None,
    save: Store = None,
) -> None:
    """How large the learning rate may be, when a larger batch stops paying, and what scaling both would do: why."""
    outputs = Outputs(json, save)
    subject = problem_from(problem, data, model, data_dir, target, l2, seed)
    with show.progress(ERR):
        found = advise_on(
            subject, learning_rate, batch_size, momentum=momentum, sampling=scheme(sampling), samples=samples, seed=seed
        )
    _deliver(found, outputs)


def _deliver(found: xr.Dataset, outputs: Outputs) -> None:
    print_table(show.set_for_terminal(advice_sheet(found)))
    for k in range(found.sizes["advice"]):
        words = {name: str(found[name].values[k]) for name in ("sentence", "formula", "assumptions", "certainty")}
        OUT.print(Text(f"• {words['sentence']}"))
        reasons = [f"{name}: {words[name]}" for name in ("formula", "assumptions", "certainty") if words[name]]
        OUT.print(Text(f"  {'; '.join(reasons)}", style="dim"))
    outputs.write(found)
