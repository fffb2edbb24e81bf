"""What this installation can do, for people: versions, engines, the instruction set in use."""

import os
import platform
from importlib import metadata

from shotnoise import __version__
from shotnoise.simulate.engines import native
from shotnoise.simulate.engines.choice import ENGINES

PACKAGES = ("torch", "numpy", "scipy", "xarray", "zarr")


def installation() -> list[str]:
    """Lines of text.

    >>> installation()[0].startswith("shotnoise ")
    True
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    there = [name for name in ENGINES if name != "native" or native.MODULE is not None]
    return [
        f"shotnoise {__version__}",
        f"Python {platform.python_version()}, {versions}",
        f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
        f"engines of simulate: {', '.join(there)}",
        f"native: {_native()}",
    ]


def _native() -> str:
    if native.MODULE is None:
        return f"not there ({native.MISSING}); install again where a C++20 compiler is found, everything else works"
    used, *others = native.instruction_sets()
    return f"compiled, uses {used}" + (f", could use {', '.join(others)}" if others else "")
