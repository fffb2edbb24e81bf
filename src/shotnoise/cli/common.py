"""What the commands share: the terminal, and options written as text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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


def numbers(option: str, text: str) -> list[float]:
    """Numbers with commas, or low:high:count for so many from low to high.

    >>> numbers("--learning-rate", "0.1:0.5:3"), numbers("--spectrum", "1,0.5")
    ([0.1, 0.3, 0.5], [1.0, 0.5])
    """
    try:
        if ":" in text:
            low, high, count = text.split(":")
            return [float(f"{x:.12g}") for x in np.linspace(float(low), float(high), int(count)).tolist()]
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text!r}: expected numbers with commas, or low:high:count such as 0.1:1.9:50"
        ) from None


def whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected whole numbers with commas, such as 1,8,64") from None
