"""What every recipe returns: its numbers, its figures, its verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from shotnoise import results, show
from shotnoise.compare import Agreement
from shotnoise.files import write_atomically
from shotnoise.show.captions import Caption
from shotnoise.show.page import picture, provenance_lines, rendered
from shotnoise.show.tables import Sheet


@dataclass(frozen=True)
class Reproduction:
    """A reproduced figure: what it says in sentences, the stored numbers, figures with captions, and whether theory and
    simulation agree (`agreement`, None where nothing could be judged), all that was asked of it included (`holds`)."""

    title: str
    sentences: list[str]
    data: Mapping[str, xr.Dataset]
    figures: Mapping[str, tuple[Figure, Caption]]
    agreement: Agreement | None
    holds: bool
    tables: list[Sheet] = field(default_factory=list)

    def save(self, folder: Path) -> list[Path]:
        """Write numbers (Zarr), figures (SVG and PNG) and the page into an existing folder."""
        written = [results.save(dataset, folder / f"{name}.zip") for name, dataset in self.data.items()]
        for name, (figure, _) in self.figures.items():
            written += [show.save(figure, folder / f"{name}.{kind}") for kind in ("svg", "png")]
        first = next(iter(self.data.values()))
        html = rendered(
            title=self.title,
            summary=", ".join(str(first.attrs[name]) for name in ("data", "sampling") if name in first.attrs),
            sentences=self.sentences,
            pictures=[picture(name, figure, words) for name, (figure, words) in self.figures.items()],
            tables=self.tables,
            agreement=self.agreement,
            compared=("predicted", "simulated"),
            provenance=provenance_lines(first),
        )
        return [*written, write_atomically(folder / "report.html", html)]
