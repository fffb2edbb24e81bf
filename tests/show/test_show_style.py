"""The look leaks nothing, and files come out whole, the same every time, or not at all."""

import sys

import matplotlib
import pytest

from shotnoise import show
from shotnoise.errors import InputError
from shotnoise.show.style import MARKERS, PALETTE, colours, house_style, render

SIGNATURES = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}


def test_drawing_leaves_the_settings_and_pyplot_alone(build, tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "black"}):
        mine = dict(matplotlib.rcParams)
        figures = show.figures(build.series(modes=3))
        for name, figure in figures.items():
            show.save(figure, tmp_path / f"{name}.svg")
        assert dict(matplotlib.rcParams) == mine
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_callers_style_does_not_shine_through(result):
    plain = render(show.noise_share(result), "svg")
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "black", "lines.linewidth": 9}):
        assert render(show.noise_share(result), "svg") == plain


def test_the_style_ends_with_an_error():
    before = matplotlib.rcParams["font.size"]

    def fail():
        with house_style():
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert matplotlib.rcParams["font.size"] == before


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_saving_twice_gives_the_same_bytes(kind, series, tmp_path):
    paths = [show.save(show.noise_scale(series), tmp_path / f"{name}.{kind}") for name in "ab"]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(SIGNATURES[kind])
    assert b"Date" not in first


def test_letters_are_paths_in_svg(result):
    assert b"<text" not in render(show.conditional_variance(result), "svg")


def test_an_unknown_ending_is_refused(result, tmp_path):
    with pytest.raises(InputError, match=r"\.svg, \.pdf and \.png are known"):
        show.save(show.noise_share(result), tmp_path / "figure.jpg")


def test_colours_differ():
    assert len(set(PALETTE)) == len(PALETTE) == len(MARKERS)
    assert len(set(colours(40))) == 40
