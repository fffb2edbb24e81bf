"""The store into which an ensemble of trainings streams its results, piece by piece.

A folder that `xarray.open_zarr(path, consolidated=False)` opens as it is, and inside it the folder `manifest` with
what the experiment is and a record of every finished piece. A run that was killed continues with the missing pieces,
and ends with the same bytes as one that was not. Any number of processes, also on several hosts that share the
folder, may work on one store at a time.
"""

import contextlib
import errno
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from shotnoise.errors import DataError, InputError
from shotnoise.files import check_writable
from shotnoise.simulate.layout import Layout, Piece
from shotnoise.simulate.store.arrays import Arrays, checksum, create_arrays
from shotnoise.simulate.store.claims import CLAIMS, WORKERS, Claims, Worker
from shotnoise.simulate.store.files import PARTIAL, plain, sync, sync_tree
from shotnoise.simulate.store.manifest import FOLDER, Manifest, manifest_file, read_manifest, refuse_differences
from shotnoise.simulate.store.records import PIECES, Records

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Store:
    """An open store. `Store.open` makes one; close it after use, or use it in a `with` statement.

    Its methods may be called by several threads. It belongs to the process that opened it: open it anew after a fork.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self.layout = manifest.layout
        self.configuration = manifest.configuration
        self._arrays = Arrays(path, self.layout, "r+")
        self._records = Records(path, self.layout)
        self._claims = Claims(path)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        layout: Layout,
        configuration: Mapping[str, Any],
        *,
        attributes: Mapping[str, Any],
        variable_attributes: Mapping[str, Mapping[str, Any]],
        versions: Mapping[str, str],
    ) -> "Store":
        """Create the store at `path`, or continue it. Several processes may do so at once.

        `configuration` is everything that determines the results, as plain JSON. `attributes` (of the whole) and
        `variable_attributes` (by field or coordinate) are written when the store is created. `versions` names the
        libraries and instructions in use: others than before are noted in the store, with a UserWarning.
        Raises InputError if there is something else at `path`, a store for another configuration or layout (with the
        differences), or no permission to write; what is there is left untouched. DataError for a damaged store.
        """
        path = Path(path).resolve()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        asked = Manifest(plain(configuration, "the configuration"), layout, [dict(versions)], now)
        try:
            if not path.exists():
                _create(path, asked, plain(attributes, "attributes"), plain(variable_attributes, "variable attributes"))
            if not manifest_file(path).is_file():
                raise InputError(f"{path} is no store of an ensemble; choose another path, nothing was changed")
            stored = read_manifest(path)
            refuse_differences(path, stored, asked)
            store = cls(path, stored)
            store._enter(asked.versions[0])
        except OSError as error:
            raise InputError(f"cannot write {path}: {_reason(error)}; choose a folder you may write to") from error
        return store

    def finished(self) -> set[int]:
        """The pieces that have a record."""
        return self._records.finished()

    def missing(self, pieces: Iterable[int] | None = None) -> list[int]:
        """Those of `pieces` (of all, if None) that are not finished, in order."""
        wanted = range(self.layout.pieces) if pieces is None else pieces
        return sorted(set(wanted) - self.finished())

    def claim(self, piece: int) -> bool:
        """Reserve a piece for the caller; False if it is finished, or claimed by a living process or another thread."""
        self.layout.piece(piece)
        try:
            with self._claims.guard():
                return not self._records.has(piece) and self._claims.take(piece)
        except OSError as error:
            raise self._cannot_write(piece, error) from error

    def release(self, piece: int) -> None:
        """Give a claim back without having written the piece."""
        with contextlib.suppress(OSError), self._claims.guard():  # a claim that stays ends with this process
            self._claims.drop(piece)

    def owner(self, piece: int) -> Worker | None:
        """The living process that has claimed a piece, possibly this one."""
        with self._claims.guard():
            return self._claims.owner(piece)

    def write(self, piece: int, content: Mapping[str, NDArray[Any]]) -> None:
        """Write a whole piece and its record, and release the claim; a piece that nobody has claimed is claimed first.

        `content` has an array for every field: shape `layout.piece_shape(name, layout.piece(piece))`, dtype the
        field's. To write a finished piece again with equal content does nothing.
        Raises InputError if the content does not fit, another process has the piece, or the disk refuses (what was
        finished stays so, and the piece has no record); DataError if the piece is finished with other content.
        """
        where = self.layout.piece(piece)
        self._check(where, content)
        checksums = {name: checksum(content[name]) for name in self.layout.fields}
        if not self._claims.holds(piece) and not self.claim(piece):
            return self._refuse_second(piece, checksums)
        try:
            self._arrays.write(where, content)
            self._records.write(where, checksums)
        except OSError as error:
            raise self._cannot_write(piece, error) from error
        finally:
            self.release(piece)

    def verify(
        self, pieces: Iterable[int] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> list[int]:
        """Read the finished ones of `pieces` (of all, if None) back; what is not as written loses its record.

        Returns the pieces that were damaged. `progress` is told how many pieces are done, of how many.
        """
        damaged = []
        finished = sorted(self.finished() if pieces is None else self.finished() & set(pieces))
        for done, piece in enumerate(finished, 1):
            if not self._intact(piece) and self._forget(piece):
                damaged.append(piece)
            if progress is not None:
                progress(done, len(finished))
        return damaged

    def digest(self) -> str:
        """SHA-256 over configuration, layout and records: equal for equal results, however they came about."""
        return self._records.digest(self._manifest)

    def close(self) -> None:
        """Give up all claims. The store object is of no use afterwards."""
        with contextlib.suppress(OSError):  # the folder may be gone, and the claims with it
            self._claims.leave()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, versions: dict[str, str]) -> None:
        folders = [self.path / name for name in (FOLDER, PIECES, CLAIMS, WORKERS)]
        for folder in [*folders, *self._arrays.folders()]:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write in {folder}")
        with self._claims.guard():
            if self._claims.enter():  # nobody else is writing, so what is half-written is left from a kill
                for folder in [*folders, *self._arrays.folders()]:
                    for part in folder.glob(f"*{PARTIAL}"):
                        part.unlink()
            manifest = read_manifest(self.path)
            if versions in manifest.versions:
                return
            replace(manifest, versions=[*manifest.versions, versions]).write(self.path)
        _warn_of_versions(self.path, manifest.versions[-1], versions)

    def _check(self, piece: Piece, content: Mapping[str, NDArray[Any]]) -> None:
        if content.keys() != self.layout.fields.keys():
            raise InputError(
                f"piece {piece.index} came with the fields {', '.join(sorted(content)) or 'none'}; "
                f"expected {', '.join(sorted(self.layout.fields))}"
            )
        for name, values in content.items():
            shape, dtype = self.layout.piece_shape(name, piece), self.layout.fields[name].dtype
            if values.shape != shape or values.dtype != np.dtype(dtype):
                raise InputError(
                    f"{name} of piece {piece.index} has shape {values.shape} and dtype {values.dtype}; "
                    f"expected {shape} and {dtype}"
                )

    def _refuse_second(self, piece: int, checksums: dict[str, str]) -> None:
        """Nothing for a finished piece with these checksums, else an error."""
        if not self._records.has(piece):
            raise InputError(f"piece {piece} is being computed by {self.owner(piece)}; claim a piece before writing it")
        stored = self._records.checksums(piece) or {}
        other = [name for name, value in checksums.items() if stored.get(name) != value]
        if other:
            raise DataError(
                f"piece {piece} is finished with other values of {', '.join(other)}: it is not reproducible on this "
                "machine, or damaged. Verify the store; the values in it were kept"
            )

    def _intact(self, piece: int) -> bool:
        return self._arrays.intact(self.layout.piece(piece), self._records.checksums(piece))

    def _forget(self, piece: int) -> bool:
        with self._claims.guard():
            # Another process may have found the damage too, and have mended it meanwhile.
            if not self._records.has(piece) or self._intact(piece):
                return False
            self._records.remove(piece)
            return True

    def _cannot_write(self, piece: int, error: OSError) -> InputError:
        remedy = "free some space" if error.errno in FULL else "see to it"
        return InputError(
            f"cannot write piece {piece} to {self.path}: {_reason(error)}; {len(self.finished())} of "
            f"{self.layout.pieces} pieces are finished and intact; {remedy} and start the same command again"
        )


def _create(path: Path, manifest: Manifest, attributes: Any, variable_attributes: Any) -> None:
    """Build the store beside its place and move it there whole, unless another process is first."""
    try:
        check_writable(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:40]}.") as folder:
            fresh = Path(folder) / "store"
            create_arrays(fresh, manifest.layout, attributes, variable_attributes)
            zarr.create_group(fresh / FOLDER, zarr_format=3)  # else zarr warns of a folder that it does not know
            for name in (PIECES, CLAIMS, WORKERS):
                (fresh / name).mkdir()
            manifest.write(fresh)
            sync_tree(fresh)
            os.rename(fresh, path)
        sync(path.parent)
    except (OSError, InputError):
        if not path.exists():
            raise


def _warn_of_versions(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    changes = ", ".join(f"{name} {before.get(name, 'none')} before and {now.get(name, 'none')} now" for name in names)
    warnings.warn(
        f"{path} continues with other libraries or on another processor ({changes}); "
        "the new pieces may differ from the old in their last digits",
        UserWarning,
        stacklevel=4,
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
