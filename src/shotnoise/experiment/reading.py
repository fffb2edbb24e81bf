"""A simulation described in a TOML file: read, checked, and made into a plan."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shotnoise.errors import InputError
from shotnoise.experiment import sources
from shotnoise.experiment.initial import Normal
from shotnoise.experiment.lines import Place, lines_of
from shotnoise.experiment.mistakes import Mistake, MistakesError, blamed_on
from shotnoise.experiment.tables import (
    Configuration,
    DataProblem,
    ImportedProblem,
    ProblemTable,
    TeacherProblem,
    problem_table,
)
from shotnoise.population import Population
from shotnoise.problem import Problem
from shotnoise.sampling import SCHEMES
from shotnoise.simulate.plan import Plan
from shotnoise.simulate.plan import plan as make_plan

# What messages of `simulate` call a key, where the file has another name for it.
ALIASES = {
    "batch_sizes": "batch_size",
    "record": "what",
    "rule": "optimizer",
    **{kind.__name__: "sampling" for kind in SCHEMES.values()},
}


@dataclass(frozen=True)
class Experiment:
    """A configuration file whose every key and value is right, as far as each can be judged alone."""

    path: Path
    configuration: Configuration
    lines: dict[Place, int]

    @property
    def store(self) -> Path:
        """Where the results go: relative paths start at the folder of the file."""
        named = self.configuration.store.path
        return self.path.with_suffix(".zarr") if named is None else self.path.parent / Path(named).expanduser()

    def plan(self) -> Plan:
        """The plan for `shotnoise.simulate`. Raises InputError for what cannot be simulated."""
        given = self.configuration
        training, record, compute = given.training, given.record, given.compute
        try:
            problem = _problem(given.problem, self.path.parent)
        except MistakesError as error:
            raise _report(self.path, error.found, self.lines) from error
        inner = problem.problem if isinstance(problem, Population) else problem
        initial = training.initial
        try:
            return make_plan(
                problem,
                given.optimizer,
                training.batch_size,
                training.steps,
                training.runs,
                initial=Normal(initial, inner.parameter_count) if isinstance(initial, float) else initial,
                sampling=None if training.sampling is None else SCHEMES[training.sampling](),
                seed=training.seed,
                record=record.what,
                every=record.every,
                common_random_numbers=training.common_random_numbers,
                raw=record.raw,
                engine=compute.engine,
                block=compute.block,
                memory=compute.memory,
                stored=True,
            )
        except InputError as error:
            raise _report(self.path, [(self._place(str(error)), str(error))], self.lines) from error

    def _place(self, message: str) -> Place:
        """Of the key that a message of `simulate` is about, () if there is none."""
        keys: dict[str | int, Place] = {"optimizer": ("optimizer",)}
        keys |= {place[-1]: place for place in self.lines if len(place) == 2 and place[0] != "problem"}
        words = re.findall(r"^\w+|\w+(?==)|sampling|rule", message)
        return next((keys[key] for key in (ALIASES.get(word, word) for word in words) if key in keys), ())


def read(path: str | os.PathLike[str]) -> Experiment:
    """The simulation that a TOML file describes; docs/simulate-config.md explains the keys.

    Raises InputError with every mistake in the file and its line.
    """
    path = Path(path).absolute()
    text = _text(path)
    content, lines = _parsed(path, text), lines_of(text)
    try:
        return Experiment(path, Configuration.model_validate(content), lines)
    except ValidationError as error:
        found: list[Mistake] = [(e["loc"], str(e["ctx"]["text"])) for e in error.errors()]
    if not any(place[0] == "problem" for place, _ in found):
        found += _mistakes_in_problem(content["problem"], path.parent)
    raise _report(path, found, lines)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected the TOML file of a simulation") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name}, line {line}: not UTF-8 text; save the file with this encoding") from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = int(where[1]) if where else text.count("\n", 0, len(text.rstrip())) + 1
        raise InputError(f"{path.name} is not valid TOML: line {line}: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path.name}: lists or tables are nested too deeply") from error


def _mistakes_in_problem(given: Any, folder: Path) -> list[Mistake]:
    """What is seen only when the problem is made, such as a model that cannot be built for the data."""
    try:
        _problem(problem_table(given), folder)
    except MistakesError as error:
        return error.found
    except Exception:  # missing data, a failing function: told when the file itself is right
        return []
    return []


def _problem(table: ProblemTable, folder: Path) -> Problem | Population:
    """Paths in the table start at the folder. Raises MistakesError."""
    with blamed_on("problem"):
        match table:
            case DataProblem():
                return _with_data(table, folder)
            case TeacherProblem():
                settings = table.model_dump(exclude={"teacher", "model"})
                return sources.teacher_student(table.teacher, table.model, **settings)
            case ImportedProblem():
                with blamed_on("from"):
                    return sources.imported(table.function, (Problem, Population), [folder])


def _with_data(table: DataProblem, folder: Path) -> Problem:
    options, data_dir = dict(table.data), table.data_dir
    name = options.pop("name")
    if name.endswith(".csv") and (folder / name).is_file():
        name = str(folder / name)
    with blamed_on("data"):
        try:
            data = sources.load(name, None if data_dir is None else folder / Path(data_dir).expanduser(), **options)
        except InputError:
            raise
        except (TypeError, ValueError) as error:  # an option of another type than the data set wants
            raise InputError(f"{name} does not take these options: {error}") from error
    with blamed_on("model"):
        return sources.problem(data, table.model, l2=table.l2, seed=table.seed, dtype=table.dtype)


def _report(path: Path, found: list[Mistake], lines: dict[Place, int]) -> InputError:
    """One error that names all mistakes, in the order of their lines."""
    told = sorted((_line(place, lines), _sentence(place, text, lines)) for place, text in found)
    title = f"{path.name} has {len(told)} mistake{'s' * (len(told) > 1)}:"
    return InputError("\n  ".join([title, *(f"line {line}, {text}" if line else text for line, text in told)]))


def _line(place: Place, lines: dict[Place, int]) -> int:
    """Of the innermost table, key or list entry around the place; 0 if there is none."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 0)


def _sentence(place: Place, text: str, lines: dict[Place, int]) -> str:
    """The place as people write it, and what is wrong there."""
    while place and place not in lines and isinstance(place[-1], int):  # a single value that was taken for a list
        place = place[:-1]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    value = re.fullmatch(r"\w+=(.*?): (expected .*)", text, re.DOTALL)
    what = f"{value[2]}; got {value[1]}" if value else text
    return f"{where}: {what}" if where else what
