"""The page about a measurement."""

from pathlib import Path

import xarray as xr

from shotnoise.compare import Agreement
from shotnoise.files import check_writable, write_atomically
from shotnoise.show import stored
from shotnoise.show.captions import caption
from shotnoise.show.figures import figures
from shotnoise.show.page import picture, provenance_lines, rendered, summary_line
from shotnoise.show.reading import reading
from shotnoise.show.tables import batch_sheet, layer_sheet, step_sheet


def report(
    result: xr.Dataset,
    path: str | Path,
    observed: xr.Dataset | None = None,
    agreement: Agreement | None = None,
    title: str = "Gradient noise report",
) -> Path:
    """Write the page about `result` to `path`, whole or not at all, and return the path.

    `observed` is drawn over the measurement, `agreement` is what `shotnoise.compare` said about the two.
    Raises InputError if this is not a result of `measure` or the path cannot be written (found before
    anything is drawn).
    """
    stored.check(result, observed)
    check_writable(path)
    return write_atomically(path, page(result, observed, agreement, title))


def page(
    result: xr.Dataset,
    observed: xr.Dataset | None = None,
    agreement: Agreement | None = None,
    title: str = "Gradient noise report",
) -> str:
    """The page itself."""
    return rendered(
        title=title,
        summary=summary_line(result),
        sentences=reading(result, observed, agreement),
        pictures=[
            picture(name, figure, caption(name, result, observed)) for name, figure in figures(result, observed).items()
        ],
        tables=[step_sheet(result), batch_sheet(result, observed)],
        layers=layer_sheet(result),
        agreement=agreement,
        provenance=provenance_lines(result, observed),
    )
