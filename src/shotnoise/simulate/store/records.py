"""The records of finished pieces: a small file each, with a SHA-256 for every field.

A piece is finished if and only if its record exists. It is written last, whole or not at all, and holds nothing that
depends on time, place or process: what was interrupted and continued has the same records as what was not.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from shotnoise.errors import DataError
from shotnoise.simulate.layout import Layout, Piece
from shotnoise.simulate.store.files import sync, write_durably
from shotnoise.simulate.store.manifest import FOLDER, Manifest

PIECES = f"{FOLDER}/pieces"
NAME = re.compile(r"\d{6,}\.json")


class Records:
    """The records in the store at `path`."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._folder = path / PIECES
        self._layout = layout

    def finished(self) -> set[int]:
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise DataError(f"{self._folder} cannot be read ({error.strerror}): the store is damaged") from error
        return {int(name.removesuffix(".json")) for name in names if NAME.fullmatch(name)}

    def has(self, piece: int) -> bool:
        return self._file(piece).is_file()

    def checksums(self, piece: int) -> dict[str, str] | None:
        """By field, or None if the record cannot be read."""
        try:
            sums: dict[str, str] = json.loads(self._file(piece).read_bytes())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return sums if isinstance(sums, dict) and sums.keys() == self._layout.fields.keys() else None

    def write(self, piece: Piece, checksums: dict[str, str]) -> None:
        content = {
            "piece": piece.index,
            "cell": self._layout.cell_values(piece),
            "runs": [piece.start, piece.stop],
            "sha256": checksums,
        }
        write_durably(self._file(piece.index), json.dumps(content, indent=1, sort_keys=True) + "\n")

    def remove(self, piece: int) -> None:
        self._file(piece).unlink(missing_ok=True)
        sync(self._folder)

    def digest(self, manifest: Manifest) -> str:
        """SHA-256 over the configuration, the layout and all records."""
        digest = hashlib.sha256(manifest.identity().encode())
        for piece in sorted(self.finished()):
            digest.update(self._file(piece).read_bytes())
        return digest.hexdigest()

    def _file(self, piece: int) -> Path:
        return self._folder / f"{piece:06d}.json"
