"""Files that appear whole or not at all, and the question whether they can, asked before the long work."""

import contextlib
import os
import tempfile
from pathlib import Path

from shotnoise.errors import InputError


def check_writable(path: str | Path) -> Path:
    """`path` with links followed, if a file can be written there; nothing is left behind.

    Raises InputError, which says what is in the way: no such directory, a directory of that name, no
    permission. An existing regular file is no obstacle: it would be replaced.

    >>> check_writable("/no/such/folder/report.html")
    Traceback (most recent call last):
    ...
    shotnoise.errors.InputError: cannot write /no/such/folder/report.html: the directory /no/such/folder \
does not exist. Create it first or choose another path.
    """
    try:
        target = Path(path).resolve()
        _check_target(path, target)
        descriptor, trial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
        os.close(descriptor)
        os.unlink(trial)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: links in a circle; ValueError: a NUL byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot write {path}: {error}. Choose a path that you may write to.") from error
    return target


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write text (as UTF-8) or bytes so that a reader finds the old file or the new one, never a part.

    Returns the path as given. Raises InputError if it cannot be written; a file already there is then
    unchanged.
    """
    target = check_writable(path)
    data = content.encode() if isinstance(content, str) else content
    part = target.with_name(f".{target.name[:40]}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}. Free some space or choose another path.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return Path(path)


def _check_target(path: str | Path, target: Path) -> None:
    folder = target.parent
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a directory. Name a file, such as {target / 'report.html'}.")
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file. Name an ordinary file.")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {path}: the file is write-protected. Choose another path.")
    if not folder.exists():
        raise InputError(
            f"cannot write {path}: the directory {folder} does not exist. Create it first or choose another path."
        )
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is not a directory. Choose another path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no permission to write in the directory {folder}. Choose another path.")
