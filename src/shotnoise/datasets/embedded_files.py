"""Reads the small data sets that travel inside the package (origin and licences: embedded/NOTICE.md)."""

import io
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from shotnoise.datasets.checksums import require_digest

_SHA256 = {
    "digits.npz": "19762e197c6b643a59fcb94a34c3cb5625774e9ab3b5a71bb4c0701e65ed268e",
    "diabetes.npz": "bcd7d657ef4fbc01e378ecd620b2875b3f1e5800e7a090f8fac0f45cc9efb8b3",
}


def read_embedded(name: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of an embedded .npz file; DataError when the installed file has been altered.

    >>> read_embedded("digits.npz")["images"].shape
    (1797, 8, 8)
    """
    content = resources.files("shotnoise.datasets").joinpath("embedded", name).read_bytes()
    advice = "This installation of shotnoise is damaged; install it again."
    require_digest(content, "sha256", _SHA256[name], where=f"The embedded file {name}", advice=advice)
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)
