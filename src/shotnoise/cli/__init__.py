"""The verbs on the command line: options in, files and tables out. No science in here."""

import sys
from typing import Annotated

import typer
from rich.text import Text

from shotnoise import __version__
from shotnoise.cli.advising import advise
from shotnoise.cli.common import ERR, OUT
from shotnoise.cli.curvature import curvature
from shotnoise.cli.informing import info
from shotnoise.cli.measuring import measure
from shotnoise.cli.predicting import predict
from shotnoise.cli.reproducing import reproduce
from shotnoise.cli.simulating import simulate
from shotnoise.errors import ShotnoiseError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(measure)
app.command()(curvature)
app.add_typer(predict, name="predict")
app.command()(simulate)
app.command()(advise)
app.add_typer(reproduce, name="reproduce")
app.command()(info)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Measure, predict and simulate the noise of minibatch gradients."""
    if version:
        OUT.print(f"shotnoise {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point: errors made on purpose end in one line, not in a traceback."""
    try:
        app()
    except ShotnoiseError as error:
        ERR.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
