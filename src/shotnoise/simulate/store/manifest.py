"""What a store was made for, kept beside its arrays: the configuration, the layout, the library versions, the time."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shotnoise.errors import DataError, InputError
from shotnoise.simulate.layout import Layout
from shotnoise.simulate.store.files import write_durably

FORMAT = 1
FOLDER = "manifest"  # inside the store: the manifest, the records of finished pieces, claims and locks
LONG = 60  # characters of a value in a message


@dataclass(frozen=True)
class Manifest:
    """`configuration` is plain JSON; `versions` lists every set of library versions that has worked on the store."""

    configuration: Any
    layout: Layout
    versions: list[dict[str, str]]
    created: str

    def write(self, path: Path) -> None:
        """Put the manifest into the store at `path`."""
        content = {"format": FORMAT, **asdict(self), "layout": self.layout.to_json()}
        write_durably(manifest_file(path), json.dumps(content, indent=1) + "\n")

    def identity(self) -> str:
        """What makes this experiment another one than those with another identity, as canonical JSON."""
        return json.dumps({"configuration": self.configuration, "layout": self.layout.to_json()}, sort_keys=True)


def manifest_file(path: Path) -> Path:
    return path / FOLDER / "manifest.json"


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`. Raises DataError where there is no store, or one that cannot be read."""
    file = manifest_file(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        found = "holds no such thing" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}; expected a store written by an ensemble of trainings") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(file, error) from error
    try:
        content = json.loads(text)
        version = content["format"]
        if version == FORMAT:
            layout = Layout.from_json(content["layout"])
            return Manifest(content["configuration"], layout, content["versions"], content["created"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from error
    raise DataError(f"{path} has the store format {version!r}; this version of shotnoise reads {FORMAT}. Update it")


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} cannot be read ({error!r}): the store is damaged, or not yours to read. Put this file back from a "
        "copy, or start anew in another folder"
    )


def refuse_differences(path: Path, stored: Manifest, asked: Manifest) -> None:
    """Raise InputError, with a line per differing key, if the store was made for another experiment."""
    lines = differences(stored.configuration, asked.configuration)
    lines += differences(stored.layout.to_json(), asked.layout.to_json(), "layout")
    if lines:
        raise InputError(
            f"{path} holds the results of another experiment and was left as it is:\n  "
            + "\n  ".join(lines)
            + "\nChoose another path, or ask for what the store was made for."
        )


def differences(stored: Any, asked: Any, key: str = "") -> list[str]:
    """One line for each key, dotted where nested, whose value is not the same in two plain JSON values.

    >>> differences({"rule": {"momentum": 0.9}, "seed": 1}, {"rule": {"momentum": 0}, "seed": 1})
    ['rule.momentum: 0.9 in the store, 0 asked for']
    """
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        lines = []
        for name in [*stored, *(name for name in asked if name not in stored)]:
            inner = f"{key}.{name}" if key else str(name)
            if name not in asked:
                lines.append(f"{inner}: {_brief(stored[name])} in the store, not asked for")
            elif name not in stored:
                lines.append(f"{inner}: not in the store, {_brief(asked[name])} asked for")
            else:
                lines += differences(stored[name], asked[name], inner)
        return lines
    if stored == asked:
        return []
    lists = isinstance(stored, list) and isinstance(asked, list)
    if lists and max(len(json.dumps(stored)), len(json.dumps(asked))) > LONG:
        return [_difference_of_lists(stored, asked, key)]
    return [f"{key or 'all'}: {_brief(stored)} in the store, {_brief(asked)} asked for"]


def _difference_of_lists(stored: list[Any], asked: list[Any], key: str) -> str:
    line = f"{key}: {len(stored)} values in the store, {len(asked)} asked for"
    pairs = enumerate(zip(stored, asked, strict=False))
    first = next((f"; [{i}] is {_brief(a)} and {_brief(b)}" for i, (a, b) in pairs if a != b), "")
    return line + first


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else text[: LONG - 3] + "..."
