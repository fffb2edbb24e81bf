"""Where data files lie: the folder given, or the one in the environment variable SHOTNOISE_DATA."""

import os
from collections.abc import Iterable
from pathlib import Path

from shotnoise.errors import DataError

ENVIRONMENT_VARIABLE = "SHOTNOISE_DATA"
_HOW_TO_SET = f"set data_dir (--data-dir on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"


def data_folder(data_dir: str | os.PathLike[str] | None, *, wanted_for: str, how_to_get: str) -> Path:
    """The folder to read from; DataError when none is named or the one named is not a folder."""
    named = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    if named is None:
        raise DataError(f"{wanted_for} is read from files, but no folder is named; {_HOW_TO_SET}.\n{how_to_get}")
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"{wanted_for} was to be read from {str(folder)!r}, which is not a folder; {_HOW_TO_SET}.")
    return folder


def search_folders(folder: Path, subfolders: Iterable[str]) -> tuple[Path, ...]:
    """The folder itself, then those of the usual subfolders that exist."""
    return (folder, *(folder / name for name in subfolders if (folder / name).is_dir()))


def missing_files(what: str, wanted: Iterable[str], places: Iterable[Path], how_to_get: str) -> DataError:
    """The error that lists what is missing, where it was looked for, and how to get it."""
    files = "".join(f"\n  {name}" for name in wanted)
    looked = "".join(f"\n  {place}" for place in places)
    return DataError(f"{what}: missing{files}\nlooked for in{looked}\n{how_to_get}\nTo look elsewhere, {_HOW_TO_SET}.")


def read_bytes(path: Path) -> bytes:
    """The content of a file; DataError when the system does not hand it over."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
