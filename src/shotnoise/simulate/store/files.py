"""Files that survive a power cut, and values as plain JSON."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from shotnoise.errors import InputError

PARTIAL = ".partial"  # how the names of unfinished files end, here and in zarr


def sync(path: Path) -> None:
    """Return when a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no such call for folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and everything in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def write_durably(path: Path, text: str) -> None:
    """Write a file so that at every moment, power cuts included, its name has the old content or the new one."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(part, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def plain(value: Any, what: str) -> Any:
    """`value` after a way through JSON: text, numbers, true, false, null, lists and dictionaries with text keys.

    NumPy numbers become Python's. Raises InputError, which names `what`, for anything else, NaN and infinity included.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_number))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} cannot be kept as JSON: {error}; use text, finite numbers, lists and dictionaries only"
        ) from error


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is of type {type(value).__name__}")
