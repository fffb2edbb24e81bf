"""Where a command's result goes: checked before the work, written and told after it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from matplotlib.figure import Figure

from shotnoise import results, show
from shotnoise.cli.common import ERR, tell
from shotnoise.files import check_writable, write_atomically

Page = Annotated[Path | None, typer.Option(help="Write a page for people (HTML).")]
Drawing = Annotated[Path | None, typer.Option(help="Write the figure (.svg, .pdf or .png).")]
Machine = Annotated[Path | None, typer.Option(help="Write the result for machines (JSON).")]
Store = Annotated[Path | None, typer.Option(help="Write the result as a Zarr store (folder or .zip).")]


@dataclass(frozen=True)
class Outputs:
    """Made before the work: raises InputError for a path that could not be written."""

    json: Path | None = None
    save: Path | None = None
    report: Path | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.report, self.figure, self.json):
            if path is not None:
                check_writable(path)
        if self.save is not None and not self.save.is_dir():
            check_writable(self.save)

    def write(
        self,
        result: xr.Dataset,
        *,
        report: Callable[[Path], Any] | None = None,
        figure: Callable[[], Figure] | None = None,
    ) -> None:
        """report: writes the page to a path; figure: draws what is asked for."""
        written: list[Any] = []
        if self.report is not None and report is not None:
            written.append(report(self.report))
        if self.figure is not None and figure is not None:
            written.append(show.save(figure(), self.figure))
        if self.json is not None:
            written.append(write_atomically(self.json, results.to_json(result)))
        if self.save is not None:
            written.append(results.save(result, self.save))
        for path in written:
            tell(ERR, f"wrote {path}")
