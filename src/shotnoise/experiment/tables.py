"""The tables of a configuration file: their keys, what each may hold, and what it is when left out."""

import re
import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from shotnoise import datasets
from shotnoise.errors import InputError
from shotnoise.experiment import options
from shotnoise.experiment.mistakes import MISSING, Mistake, MistakesError, chosen, listed, unknown_key
from shotnoise.experiment.sources import DTYPES
from shotnoise.rules import Rule
from shotnoise.sampling import SCHEMES
from shotnoise.schedules import number
from shotnoise.simulate.engines import CHOICES, ENGINES
from shotnoise.simulate.recorders import NAMED

DATA_SETS = [name for name in datasets.names() if name != "csv"]  # of a CSV file the path is the name
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


# What a value should have been, by the kind of pydantic's error.
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotation marks",
    "list_type": "a list",
    "model_type": "a table",
    "greater_than_equal": "at least {ge}",
    "too_short": "at least {min_length}",
}


class Table(BaseModel):
    """Takes the keys that it has and no others, and values of exactly their types; errors are in our words."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def names(cls) -> list[str]:
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(given)
        except ValidationError as error:
            raise _as_pydantic([(e["loc"], cls._words(e)) for e in error.errors()]) from None

    @classmethod
    def _words(cls, error: ErrorDetails) -> str:
        kind, about = error["type"], error.get("ctx", {})
        match kind:
            case "mistake":
                return str(about["text"])
            case "missing":
                return MISSING
            case "extra_forbidden":
                return unknown_key(str(error["loc"][-1]), cls.names(), HOMES)
            case "value_error":
                return str(about["error"])
        expected = EXPECTED[kind].format(**about) if kind in EXPECTED else error["msg"]
        return f"expected {expected}; got {reprlib.repr(error['input'])}"


def _as_pydantic(found: list[Mistake]) -> ValidationError:
    details = [
        InitErrorDetails(type=PydanticCustomError("mistake", "{text}", {"text": text}), loc=place, input=None)
        for place, text in found
    ]
    return ValidationError.from_exception_data("configuration", details)


def _one_of(known: Iterable[str]) -> AfterValidator:
    return AfterValidator(lambda word: chosen(word, known))


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


def _data(given: Any) -> dict[str, Any]:
    """The name of a data set, or a table with `name` and options; as a table."""
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise InputError(f'expected the name of a data set, or {{name = "gauss-10", n = 100}}; got {given!r}')
    if not table["name"].endswith(".csv"):
        chosen(table["name"], DATA_SETS)
    return table


def _initial(given: Any) -> str | float:
    """The word "fixed" or "resampled", or the standard deviation of normal weights."""
    if given in ("fixed", "resampled"):
        return str(given)
    if isinstance(given, dict) and list(given) == ["normal"]:
        return number("normal", given["normal"], low=0, such_as=0.1)
    raise InputError(f'expected "fixed", "resampled" or {{normal = 0.1}}; got {given!r}')


def _bytes(given: Any) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", given.lower()) if isinstance(given, str) else None
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if match is None or match[2] not in units:
        raise InputError(f'expected a size such as "2GB", in {listed(UNITS)}; got {given!r}')
    return int(float(match[1]) * units[match[2]])


def _rules(given: Any) -> list[Rule]:
    try:
        return options.rules(given)
    except MistakesError as error:
        raise _as_pydantic(error.found) from error


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


class NewModel(Table):
    """A model by name, which both a data set and a teacher need."""

    model: str
    l2: float = 0.0
    dtype: Annotated[str, _one_of(DTYPES)] = "float32"
    seed: Seed = 0


class DataProblem(NewModel):
    """[problem] with `data`: a data set by name."""

    data: Annotated[dict[str, Any], PlainValidator(_data)]
    data_dir: str | None = None


class TeacherProblem(NewModel):
    """[problem] with `teacher`: fresh samples, labelled by another network."""

    teacher: str
    dimension: Count
    outputs: Count = 1
    label_noise: NotNegative = 0.0
    evaluation_samples: Count = 4096
    teacher_seed: Seed = 1


class ImportedProblem(Table):
    """[problem] with `from`: a function of the user's."""

    function: str = Field(alias="from")


ProblemTable = DataProblem | TeacherProblem | ImportedProblem
PROBLEMS: dict[str, type[ProblemTable]] = {"data": DataProblem, "teacher": TeacherProblem, "from": ImportedProblem}


def problem_table(given: Any) -> ProblemTable:
    """The table [problem] as one of the three kinds that it can be."""
    kinds = [key for key in PROBLEMS if isinstance(given, dict) and key in given]
    if len(kinds) != 1:
        raise InputError(f"expected one of the keys {listed(PROBLEMS)}; got {' and '.join(kinds) or 'none'}")
    return PROBLEMS[kinds[0]].model_validate(given)


class TrainingTable(Table):
    """How often, how long, from where and with which batches."""

    batch_size: Annotated[list[Count], BeforeValidator(_listed), Field(min_length=1)]
    steps: Seed
    runs: Count
    initial: Annotated[str | float, PlainValidator(_initial)] = "fixed"
    sampling: Annotated[str | None, _one_of(SCHEMES)] = None
    seed: Seed = 0
    common_random_numbers: bool = False


class RecordTable(Table):
    """What is recorded, and when."""

    what: Annotated[list[Annotated[str, _one_of(NAMED)]], BeforeValidator(_listed)] = ["loss"]
    every: Count = 1
    raw: bool | None = None


class StoreTable(Table):
    """Where the results go; without a path beside the configuration file, under its name with .zarr."""

    path: str | None = None


class ComputeTable(Table):
    """On what it is computed, and in what portions."""

    workers: Count | None = None
    scheduler: str | None = None
    engine: Annotated[str, _one_of([*CHOICES, *ENGINES])] = "auto"
    block: Count | None = None
    memory: Annotated[int | None, PlainValidator(_bytes)] = None


class Configuration(Table):
    """The whole file."""

    problem: Annotated[ProblemTable, PlainValidator(problem_table)]
    optimizer: Annotated[list[Rule], PlainValidator(_rules)]
    training: TrainingTable
    record: RecordTable = RecordTable()
    store: StoreTable = StoreTable()
    compute: ComputeTable = ComputeTable()


def _homes() -> dict[str, list[str]]:
    """By key, the tables that have it."""
    tables: dict[str, type[Table]] = {f"[problem] with {key!r}": kind for key, kind in PROBLEMS.items()}
    tables |= {"[training]": TrainingTable, "[record]": RecordTable, "[store]": StoreTable, "[compute]": ComputeTable}
    found: dict[str, list[str]] = {}
    for name, kind in tables.items():
        for key in kind.names():
            found.setdefault(key, []).append(name)
    return found


HOMES = _homes()
