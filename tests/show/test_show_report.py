"""The page is well-formed, self-contained, escaped, and written whole."""

import base64
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import xarray as xr

from shotnoise import show
from shotnoise.errors import InputError
from shotnoise.show.report import page

VOID = {"meta", "link", "img", "br", "hr"}


class Outline(HTMLParser):
    """Every start tag with its attributes, the text of the headings, and whether all tags were closed in
    order.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings = [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append([tag, ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1][1] += data

    def titles(self, tag):
        return [text for level, text in self.headings if level == tag]

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def full(build):
    """A page with everything on it."""
    result = build.series(modes=4)
    observed = build.observed(result)
    return page(result, observed, build.agreement(result, observed), "Digits")


def test_sections_and_headings(full, result):
    outline = Outline(full)
    assert outline.titles("h1") == ["Digits"]
    assert outline.titles("h2") == ["Reading", "Figures", "Table", "Layers", "Agreement", "Provenance"]
    assert outline.all("html") == [{"lang": "en"}]
    assert "Agreement" not in Outline(page(result)).titles("h2")


def test_the_reading_is_on_the_page(full, build):
    result = build.series(modes=4)
    for sentence in show.reading(result):
        assert sentence.replace("'", "&#39;") in full


def test_figures_have_words_and_a_download(full):
    outline = Outline(full)
    pictures, links = outline.all("img"), outline.all("a")
    assert len(pictures) == len(links) == 5
    for picture, link in zip(pictures, links, strict=True):
        assert len(picture["alt"]) > 20 and link["download"].endswith(".svg")
        assert picture["src"] == link["href"]
        svg = base64.b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,"))
        assert b"<svg" in svg and b"<text" not in svg
    assert outline.titles("h3")[0] == "Variance against batch size"


def test_nothing_is_loaded_from_elsewhere(full):
    text = re.sub(r"data:image/svg\+xml;base64,[\w+/=]*", "", full)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<iframe", text)
    assert not re.search(r"https?://", full)
    for _, attrs in Outline(full).tags:
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")


def test_tables_have_headers_and_scroll(full):
    outline = Outline(full)
    assert all(attrs.get("scope") in ("col", "row") for attrs in outline.all("th"))
    assert full.count("<table>") == full.count("<caption>") == full.count('role="region"') == 4


def test_provenance(full):
    for words in ("<dt>seed</dt><dd>0</dd>", "<dt>observed: draws</dt><dd>400</dd>", "<dd>6,570</dd>"):
        assert words in full


def test_foreign_words_are_escaped(build):
    bad = "</td><script>alert(1)</script>"
    result = build.result(layers=[bad, "b", "c"], model=bad, sampling=bad, loss_name=bad)
    result.attrs[bad] = bad
    observed = build.observed(result)
    observed.attrs["sampling"] = bad
    agreement = build.agreement(result, observed)
    agreement = replace(agreement, rows=tuple(replace(row, variable=bad) for row in agreement.rows))
    text = page(result, observed, agreement, title=bad)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 9
    Outline(text)


def test_what_can_be_missing_is(build):
    result = build.result().drop_vars(["layer_noise_scale", "layer_signal_to_noise", "layer_parameters", "layer_path"])
    result.attrs = {}
    outline = Outline(page(result))
    assert outline.titles("h2") == ["Reading", "Figures", "Table", "Provenance"]


def test_the_same_result_gives_the_same_page(result):
    assert page(result) == page(result)


def test_a_result_survives_the_disk(build, tmp_path):
    result = build.series()
    result.to_zarr(tmp_path / "result.zarr", zarr_format=2)
    with xr.open_zarr(tmp_path / "result.zarr") as stored:
        assert show.reading(stored) == show.reading(result)
        assert page(stored, title="x").count("<figure") == page(result, title="x").count("<figure")


def test_it_is_written_whole(result, tmp_path, monkeypatch):
    path = show.report(result, tmp_path / "report.html")
    assert path == tmp_path / "report.html" and list(tmp_path.iterdir()) == [path]
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk on fire")))
    with pytest.raises(InputError, match="disk on fire"):
        show.report(result, path, title="another")
    assert path.read_text(encoding="utf-8") == before


def test_an_unwritable_path_is_found_first(result, tmp_path, monkeypatch):
    module = sys.modules["shotnoise.show.report"]  # shotnoise.show.report itself is the function
    monkeypatch.setattr(module, "page", lambda *_: pytest.fail("drawn before the path was tried"))
    with pytest.raises(InputError, match="does not exist"):
        show.report(result, tmp_path / "missing" / "report.html")
