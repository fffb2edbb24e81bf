"""One self-contained page: reading, figures, tables, agreement, provenance. It asks no network for anything."""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from shotnoise.compare import Agreement
from shotnoise.show import stored
from shotnoise.show.captions import Caption
from shotnoise.show.style import render
from shotnoise.show.tables import Sheet, agreement_sheet

PROVENANCE = {
    "model": "model",
    "parameters": "trainable parameters",
    "loss_name": "loss",
    "l2": "l2 penalty",
    "n_samples": "samples in the data set",
    "samples_used": "samples used",
    "sampling": "sampling of batches",
    "confidence": "confidence of intervals",
    "dtype": "number format",
    "device": "device",
    "seed": "seed",
    "model_fingerprint": "model fingerprint",
    "data_fingerprint": "data fingerprint",
    "shotnoise_version": "shotnoise",
    "torch_version": "PyTorch",
    "numpy_version": "NumPy",
    "python_version": "Python",
    "created": "created",
}


class Picture(NamedTuple):
    """A figure as the page wants it: its file name, its SVG as a data URI, and the words around it."""

    name: str
    source: str
    words: Caption


def picture(name: str, figure: Figure, words: Caption) -> Picture:
    return Picture(name, _data_uri(render(figure, "svg")), words)


def rendered(
    *,
    title: str,
    summary: str,
    sentences: Sequence[str],
    pictures: Sequence[Picture],
    tables: Sequence[Sheet],
    provenance: Sequence[tuple[str, str]],
    layers: Sheet | None = None,
    agreement: Agreement | None = None,
    compared: tuple[str, str] = ("measured", "observed"),
) -> str:
    """The page. Every word that comes from outside is escaped by the template."""
    environment = Environment(
        loader=PackageLoader("shotnoise.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        sentences=sentences,
        pictures=pictures,
        tables=tables,
        layers=layers,
        agreement=agreement,
        comparison=None if agreement is None else agreement_sheet(agreement, compared),
        provenance=provenance,
    )


def summary_line(result: xr.Dataset) -> str:
    """Which model, how large, on how much data: as much of it as the result knows."""
    words = result.attrs
    parts = [str(words["model"])] if "model" in words else []
    for name, unit in (("parameters", "parameters"), ("n_samples", "samples")):
        if (number := stored.count(result, name)) is not None:
            parts.append(f"{number:,} {unit}")
    return " · ".join([*parts, *(str(words[name]) for name in ("loss_name", "sampling") if name in words)])


def provenance_lines(result: xr.Dataset, observed: xr.Dataset | None = None) -> list[tuple[str, str]]:
    known = [(label, result.attrs[name]) for name, label in PROVENANCE.items() if name in result.attrs]
    others = [(str(name), entry) for name, entry in result.attrs.items() if name not in PROVENANCE]
    drawn = {} if observed is None else observed.attrs
    redrawn = [
        (f"observed: {name.replace('_', ' ')}", drawn[name]) for name in ("draws", "seed", "sampling") if name in drawn
    ]
    return [(label, _plain(entry)) for label, entry in [*known, *others, *redrawn]]


def _plain(entry: Any) -> str:
    return f"{entry:,}" if isinstance(entry, int) and not isinstance(entry, bool) else str(entry)


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
