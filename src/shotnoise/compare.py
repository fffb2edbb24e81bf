"""Do two results agree? Same variables, same dimensions, judged in standard errors.

    z = (a - b) / sqrt(se_a^2 + se_b^2)       at every point where at least one of the two has a standard error

The verdict is joint over all N points: they agree unless the largest |z| would be exceeded by chance with
probability below `alarm`. It uses the smallest of the N p-values times N (Bonferroni), which holds whatever
the dependence between the points. A z counts as normal, so the estimates should rest on many independent
draws; where an estimate says how many (`draws`, in its attributes), Student's t with that many takes its place.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table
from scipy import special

from shotnoise.errors import InputError


@dataclass(frozen=True)
class Row:
    """One point of the comparison."""

    variable: str
    where: dict[str, Any]
    a: float
    a_stderr: float
    b: float
    b_stderr: float
    z: float


@dataclass(frozen=True)
class Agreement:
    """The verdict of `compare`: do the results agree at this false-alarm rate, and how far are they apart."""

    rows: tuple[Row, ...]
    alarm: float
    p_value: float
    threshold: float
    left_out: int = 0  # points that are not finite in at least one result, or exact and equal in both

    @property
    def agrees(self) -> bool:
        return self.p_value >= self.alarm

    @property
    def max_abs_z(self) -> float:
        return max(abs(row.z) for row in self.rows)

    @property
    def detail(self) -> str:
        """The numbers behind the verdict."""
        return (
            f"the largest of {len(self.rows)} deviations is {self.max_abs_z:.2f} standard errors, the limit "
            f"{self.threshold:.2f} at a false-alarm rate of {self.alarm:g}; p = {self.p_value:.2g}"
            + (f"; {self.left_out} points could not be judged" if self.left_out else "")
        )

    @property
    def sentence(self) -> str:
        return f"The results {'agree' if self.agrees else 'disagree'}: {self.detail}."

    def table(self) -> Table:
        """All points, for the terminal."""
        table = Table(title=self.sentence, title_justify="left")
        dimensions = list(dict.fromkeys(d for row in self.rows for d in row.where))
        for column in ("variable", *dimensions, "a", "b", "z"):
            table.add_column(column, justify="left" if column == "variable" else "right")
        for row in self.rows:
            cells = [str(row.where.get(d, "")) for d in dimensions]
            table.add_row(
                row.variable,
                *cells,
                _with_error(row.a, row.a_stderr),
                _with_error(row.b, row.b_stderr),
                f"{row.z:+.2f}",
            )
        return table


def compare(a: xr.Dataset, b: xr.Dataset, *, variables: list[str] | None = None, alarm: float = 1e-3) -> Agreement:
    """Lay two results over each other and judge whether they agree.

    variables: which to compare; default all that both have and at least one has a `_stderr` for. Coordinates
    must be equal along shared dimensions; compare parts of results by selecting them first.
    alarm: the probability of calling results different that are not.
    Raises InputError where nothing can be compared. Two exact results (no standard errors) are a matter for
    `xarray.testing.assert_allclose`.

    >>> a = xr.Dataset({"loss": ("step", [1.0, 2.0]), "loss_stderr": ("step", [0.1, 0.1])})
    >>> b = xr.Dataset({"loss": ("step", [1.1, 2.1])})
    >>> compare(a, b).agrees, compare(a, b + 1).agrees
    (True, False)
    """
    if not 0 < alarm < 1:
        raise InputError(f"alarm={alarm}: a probability between 0 and 1, such as 0.001")
    chosen = _comparable(a, b) if variables is None else variables
    if not chosen:
        raise InputError(
            f"nothing to compare: the first result has {sorted(map(str, a.data_vars))}, the second "
            f"{sorted(map(str, b.data_vars))}; they need a variable in common, with a _stderr in at least one"
        )
    points = [row for name in chosen for row in _rows(name, a, b)]
    rows = tuple(row for row in points if row is not None)
    if not rows:
        raise InputError(f"no point of {chosen} can be compared: all are NaN, or have a standard error of 0 in both")
    freedom = min(_freedom(a), _freedom(b))
    largest = max(abs(row.z) for row in rows)
    p_value = min(1.0, 2 * len(rows) * float(special.stdtr(freedom, -largest)))
    threshold = -float(special.stdtrit(freedom, alarm / 2 / len(rows)))
    return Agreement(rows, alarm, p_value, threshold, left_out=len(points) - len(rows))


def _comparable(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    return [
        str(name)
        for name in a.data_vars
        if name in b and (f"{name}_stderr" in a or f"{name}_stderr" in b) and a[name].dtype.kind in "fiu"
    ]


def _rows(name: str, a: xr.Dataset, b: xr.Dataset) -> list[Row | None]:
    for which, result in (("first", a), ("second", b)):
        if name not in result:
            raise InputError(
                f"the {which} result has no variable {name!r}; it has {sorted(map(str, result.data_vars))}"
            )
        if result[name].dtype.kind not in "fiu":
            raise InputError(f"{name!r} of the {which} result is not a number, but {result[name].dtype}")
    if f"{name}_stderr" not in a and f"{name}_stderr" not in b:
        raise InputError(
            f"{name!r} has a standard error in neither result; compare exact ones with xarray.testing.assert_allclose"
        )
    if set(a[name].dims) != set(b[name].dims):
        raise InputError(
            f"{name!r} has dimensions {a[name].dims} in the first result and {b[name].dims} in the second; "
            "select or average until they are the same"
        )
    try:
        x, y, x_error, y_error = xr.align(a[name], b[name], _error(a, name), _error(b, name), join="exact")
    except ValueError as error:
        raise InputError(
            f"the coordinates of {name!r} differ between the results ({error}); select equal ones"
        ) from error
    y, x_error, y_error = (v.transpose(*x.dims) for v in (y, x_error, y_error))
    rows = []
    for index in np.ndindex(x.shape):
        where = {str(d): x[d][i].item() for d, i in zip(x.dims, index, strict=True)}
        rows.append(_row(name, where, *(float(v.values[index]) for v in (x, x_error, y, y_error))))
    return rows


def _row(name: str, where: dict[str, Any], a: float, a_stderr: float, b: float, b_stderr: float) -> Row | None:
    """One point; None where there is nothing to judge: a NaN, or equal values known exactly."""
    error = np.hypot(a_stderr, b_stderr)
    if not np.isfinite([a, b, error]).all() or (error == 0 and a == b):
        return None
    z = (a - b) / error if error > 0 else np.copysign(np.inf, a - b)
    return Row(name, where, a, a_stderr, b, b_stderr, float(z))


def _error(result: xr.Dataset, name: str) -> xr.DataArray:
    return result[f"{name}_stderr"] if f"{name}_stderr" in result else xr.zeros_like(result[name])


def _freedom(result: xr.Dataset) -> float:
    return float(result.attrs["draws"]) - 1 if "draws" in result.attrs else np.inf


def _with_error(value: float, stderr: float) -> str:
    return f"{value:.4g} ± {stderr:.2g}" if stderr else f"{value:.4g}"
