"""A table of numbers in a CSV file, one column of which is to be predicted from the others."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shotnoise.datasets.data import Data
from shotnoise.datasets.folders import ENVIRONMENT_VARIABLE
from shotnoise.datasets.standardise import column_tensor, standardised
from shotnoise.errors import DataError, InputError

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_LARGEST = float(np.finfo(np.float32).max)

_Row = tuple[int, list[str]]  # line number in the file, cells without blanks around them


def load_csv(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    path: str | os.PathLike[str],
    target: str,
    drop: Sequence[str] = (),
    standardise: bool = True,
) -> Data:
    r"""Regression data from a comma-separated table with a header line: inputs (n, d), targets (n, 1).

    path         the file; where it does not exist, a relative path is also tried inside data_dir, or inside
                 the folder in SHOTNOISE_DATA
    target       name of the column to predict; blanks around the names in the header do not count
    drop         names of columns to leave out, such as a running number; they need not hold numbers
    standardise  features and target to mean 0 and standard deviation 1 (divisor n); False leaves them raw
    Raises DataError for a missing file, ragged rows, missing or non-numeric values (with line and column),
    InputError for column names that are not there.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pathlib.Path(folder, "table.csv")
    ...     _ = table.write_text("no, size ,price\n1,10,3\n2,30,7\n")
    ...     load_csv(path=table, target="price", drop=["no"]).inputs.tolist()
    [[-1.0], [1.0]]
    """
    file, target = _find(Path(path).expanduser(), data_dir), target.strip()
    header, rows = _read_rows(file)
    features = _choose_features(header, target, [drop] if isinstance(drop, str) else drop, file)
    inputs, targets = _column_table(rows, header, features, file), _column_table(rows, header, [target], file)
    if standardise:
        inputs = standardised(inputs, features, where=str(file))
        targets = standardised(targets, [target], where=str(file))
    return Data(
        name=file.stem,
        inputs=column_tensor(inputs),
        targets=column_tensor(targets),
        task="regression",
        feature_names=tuple(features),
        source=f"CSV file {file.name}, column {target!r} from the others",
        licence="unknown",
    )


def _find(path: Path, data_dir: str | os.PathLike[str] | None) -> Path:
    folder = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    candidates = [path] if folder is None else [path, Path(folder).expanduser() / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(
        f"csv: no file {' nor '.join(repr(str(candidate)) for candidate in candidates)}. Give path= as seen "
        f"from the working directory {str(Path.cwd())!r}, or relative to data_dir (--data-dir on the command "
        f"line) or {ENVIRONMENT_VARIABLE}."
    )


def _read_rows(file: Path) -> tuple[list[str], list[_Row]]:
    """The header and the rows below it, all of the header's length, blank lines left out."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as a CSV file in UTF-8: {error}.") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    header = rows[0][1] if rows else []
    _check_header(header, file)
    if len(rows) == 1:
        raise DataError(f"{file} has a header but no rows of numbers below it.")
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(f"{file}, line {line}: {len(cells)} cells, but the header has {len(header)} columns.")
    return header, rows[1:]


def _check_header(header: list[str], file: Path) -> None:
    if not header:
        raise DataError(f"{file} is empty; expected a header line with column names and rows of numbers.")
    if all(_as_number(name) is not None for name in header):
        raise DataError(f"{file}: the first line holds only numbers ({', '.join(header)}); expected column names.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{file}: the header has the column {', '.join(map(repr, repeated))} more than once.")


def _choose_features(header: list[str], target: str, drop: Sequence[str], file: Path) -> list[str]:
    dropped, columns = {name.strip() for name in drop}, ", ".join(map(repr, header))
    unknown = sorted(({target} | dropped) - set(header))
    if unknown:
        raise InputError(f"{file} has no column {', '.join(map(repr, unknown))}; its columns are {columns}.")
    features = [name for name in header if name != target and name not in dropped]
    if target in dropped or not features:
        raise InputError(
            f"{file}: with target {target!r} and drop {sorted(dropped)} there is nothing to learn; keep the "
            f"target and at least one other of {columns}."
        )
    return features


def _column_table(rows: list[_Row], header: list[str], columns: list[str], file: Path) -> NDArray[np.float64]:
    """The named columns as an array (rows, columns)."""
    where = [(header.index(name), name) for name in columns]
    return np.array([[_number(cells[i], name, line, file) for i, name in where] for line, cells in rows])


def _number(cell: str, column: str, line: int, file: Path) -> float:
    where = f"{file}, line {line}, column {column!r}"
    if cell.lower() in _MISSING:
        raise DataError(f"{where}: the value is missing ({cell!r}); fill it in or remove the row.")
    number = _as_number(cell)
    if number is None:
        raise DataError(f"{where}: {cell!r} is not a number; write it as one, or leave the column out (drop).")
    if not abs(number) <= _LARGEST:
        raise DataError(f"{where}: {cell!r} is infinite or beyond single precision; scale or repair the column.")
    return number


def _as_number(cell: str) -> float | None:
    if "_" in cell:  # float() would take 1_000, which no spreadsheet writes
        return None
    try:
        return float(cell)
    except ValueError:
        return None
