"""The shape of the house: which module may use which, and that the written instructions exist."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "shotnoise"

# A module may import from its own level and from those above it in this list.
LEVELS = [
    ["_native", "errors"],
    ["files", "named", "random_state", "sampling", "schedules", "losses"],
    ["samples"],
    ["evaluation"],
    ["per_sample"],
    ["problem"],
    ["results", "datasets", "fully_connected", "population", "rules"],
    ["compare", "measure", "models", "training"],
    ["optim", "predict", "simulate"],
    ["advice", "experiment", "show"],
    ["reproduce"],
    ["cli"],
]


def rooms() -> dict[str, int]:
    return {room: level for level, names in enumerate(LEVELS) for room in names}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shotnoise"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_arrows_point_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    levels = rooms()
    assert room in levels, f"{room} has no level yet"
    for used in imports(path) - {room}:
        assert levels[used] < levels[room], f"{path.name} imports {used}, which is not below {room}"


def test_the_rule_sees_an_arrow_that_runs_backwards(tmp_path):
    wrong = tmp_path / "sampling.py"
    wrong.write_text("from shotnoise.measure.verb import measure\nfrom shotnoise import show\n")
    assert imports(wrong) == {"measure", "show"}


def test_the_readme_names_commands_that_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^    make ([a-z-]+)", readme, re.M))
    assert commands == {"demo", "test"}
    assert all(re.search(rf"^{command}:", makefile, re.M) for command in commands)
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / link).exists(), f"README points to {link}"


def output(*arguments: str) -> str:
    """Of a Python without warnings; on one thread, for beside other tests two of them wait for each other."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 4
    assert "a larger batch stops paying" in output("-c", "\n".join(blocks))


@pytest.mark.parametrize(
    ("page", "count"), [("predict.md", 4), ("bounds.md", 3), ("curvature.md", 3), ("diffusion.md", 3), ("optim.md", 1)]
)
def test_the_python_of_the_pages_runs(page, count):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) == count
    output("-c", "\n".join(blocks))


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_the_examples_run_and_assert_what_they_show(example):
    assert output(str(example))


def test_optional_and_heavy_libraries_are_not_imported_at_the_top():
    unwanted = [
        "lightning",
        "transformers",
        "wandb",
        "tensorboard",
        "curvlinops",
        "torchvision",
        "sklearn",
    ]
    code = f"import sys, shotnoise; print([m for m in {unwanted!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_versions_agree():
    version = re.search(r'__version__ = "(.*)"', (SOURCE / "__init__.py").read_text()).group(1)
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
