"""What the commands share: the terminal, and options written as text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shotnoise.errors import InputError
from shotnoise.sampling import SCHEMES, Sampling

OUT, ERR = Console(), Console(stderr=True)
WIDE = 160  # columns of a table that goes into a file


def print_table(table: Table) -> None:
    (OUT if OUT.is_terminal else Console(width=WIDE)).print(table)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *where: Any, **rest: Any) -> None:
        tell(ERR, f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def tell(console: Console, line: str, style: str = "") -> None:
    """One line as it is: paths are not broken, nor read as markup."""
    console.print(Text(line, style), soft_wrap=True)


def scheme(name: str) -> Sampling:
    if name not in SCHEMES:
        raise InputError(f"--sampling {name!r} is not known; use one of {', '.join(SCHEMES)}")
    return SCHEMES[name]()


def whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected whole numbers with commas, such as 1,8,64") from None
