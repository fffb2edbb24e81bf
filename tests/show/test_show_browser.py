"""The page in a real browser, headless and offline: the headings are there and the console is silent."""

import re
import shutil
import subprocess

import pytest

from shotnoise import show
from shotnoise.show.report import page

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser found: none of {', '.join(NAMES)} is on PATH"),
]


@pytest.fixture
def visit(tmp_path):
    """Open a file; the answer is the document as the browser holds it, and the lines of its console."""

    def visit(path, *flags):
        command = [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            *flags,
            "--dump-dom",
            path.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return visit


@pytest.fixture
def full(build, tmp_path):
    result = build.series(modes=4)
    observed = build.observed(result)
    return show.report(result, tmp_path / "report.html", observed, build.agreement(result, observed), "A <b> title")


def test_the_page_opens_without_a_word(full, visit):
    document, console = visit(full)
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", document)
    assert headings == ["Reading", "Figures", "Table", "Layers", "Agreement", "Provenance"]
    assert re.findall(r"<h1>([^<]*)</h1>", document) == ["A &lt;b&gt; title"]
    assert console == []


def test_a_broken_twin_is_caught(full, visit, tmp_path):
    """The check above can fail: a script error, a script or a picture that the policy stops."""
    text = full.read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=.*>\n", text)[0]
    twins = {
        "on purpose": text.replace(policy, "").replace("</body>", "<script>throw Error('on purpose')</script></body>"),
        "Content Security Policy": text.replace("</body>", "<script>document.body.remove()</script></body>"),
        "img-src": text.replace("</body>", '<img src="missing.png" alt=""></body>'),
    }
    for complaint, twin in twins.items():
        path = tmp_path / "twin.html"
        path.write_text(twin, encoding="utf-8")
        document, console = visit(path)
        assert any(complaint in line for line in console), complaint
        assert "Provenance" in document


def test_every_picture_is_drawn(full, visit, tmp_path):
    """A script of the test, put into a twin without the policy, reads how large the browser drew each
    picture.
    """
    text = full.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=.*>\n", "", text)
    script = (
        "<script>onload = () => document.body.insertAdjacentHTML('beforeend', '<pre>' + "
        "[...document.images].map(i => i.naturalWidth > 99 && i.complete).join() + '|' + "
        "(document.body.scrollWidth <= innerWidth) + '</pre>')</script></body>"
    )
    path = tmp_path / "measured.html"
    path.write_text(text.replace("</body>", script), encoding="utf-8")
    document, console = visit(path, "--window-size=500,900")
    assert re.search(r"<pre>([^<]*)</pre>", document)[1] == "true,true,true,true,true|true"
    assert console == []


def test_hostile_names_stay_words(build, visit, tmp_path):
    bad = "<script>throw Error('injected')</script><img src=x onerror=alert(1)>"
    result = build.result(layers=[bad, "b", "c"], model=bad)
    path = tmp_path / "hostile.html"
    path.write_text(page(result, title=bad), encoding="utf-8")
    document, console = visit(path)
    assert console == []
    assert "<script" not in document
