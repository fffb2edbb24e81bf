"""One look for every figure, applied for as long as a figure is drawn or written and not a moment longer.

Colours are those of Okabe and Ito (2008), told apart with every common kind of colour vision; a long series
of steps runs through viridis instead. Fonts are the STIX family that comes with Matplotlib, so no LaTeX is
needed and no machine lacks them. Letters are drawn as paths in SVG and embedded as TrueType in PDF: a page or
a paper looks the same wherever it is opened.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from shotnoise.errors import InputError
from shotnoise.files import write_atomically

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
MARKERS = "osD^vPX"
GREY = "#666666"
WIDTH = 6.3  # inches, the text width of an A4 page with usual margins

STYLE: Any = {  # newer versions of Matplotlib type the keys, older ones do not
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "shotnoise",
    "pdf.fonttype": 42,
}

_UNDATED: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}


@contextmanager
def house_style() -> Iterator[None]:
    """Our settings inside the block or the decorated function, the caller's again after it.

    >>> import matplotlib
    >>> before = matplotlib.rcParams["font.size"]
    >>> with house_style():
    ...     matplotlib.rcParams["font.size"]
    11.0
    >>> matplotlib.rcParams["font.size"] == before
    True
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a dark or LaTeX style of the caller's would otherwise shine through
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of `width` x `height` inches that pyplot never hears of."""
    return Figure(figsize=(width, height), layout="constrained")


def colours(count: int) -> list[Any]:
    """`count` colours that can be told apart: Okabe and Ito's up to seven, then steps of viridis.

    >>> colours(2)
    ['#0072B2', '#D55E00']
    >>> len(colours(30))
    30
    """
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    viridis = matplotlib.colormaps["viridis"]
    return [viridis(0.92 * k / (count - 1)) for k in range(count)]  # the last tenth is too pale on white


@house_style()
def render(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a file of this kind ("svg", "pdf" or "png"), the same bytes every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_UNDATED[kind])
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to `path`; its ending, .svg, .pdf or .png, says how. Returns the path.

    The same figure gives the same bytes every time. Raises InputError for another ending or an unwritable
    path.
    """
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in _UNDATED:
        raise InputError(
            f"cannot save a figure as {str(path)!r}: the file's ending says the format, and .svg, .pdf "
            f"and .png are known. Try {str(Path(path).with_suffix('.svg'))!r}."
        )
    return write_atomically(path, render(figure, kind))
