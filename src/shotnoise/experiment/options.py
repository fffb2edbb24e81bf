"""Update rules and learning rates from tables of a file, every wrong option found at once."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from shotnoise import schedules
from shotnoise.errors import InputError
from shotnoise.experiment.mistakes import MISSING, Collector, MistakesError, chosen, unknown_key
from shotnoise.rules import RULES, Rule
from shotnoise.schedules import LearningRate

T = TypeVar("T")
SCHEDULES: dict[str, type[schedules.Schedule]] = {
    "inverse-time": schedules.InverseTime,
    "exponential": schedules.Exponential,
    "cosine": schedules.Cosine,
    "steps": schedules.Steps,
    "warm-up": schedules.WarmUp,
}
# Right values for all options that have no default: they stand for wrong ones while the others are looked at.
RIGHT: dict[str, Any] = {
    "learning_rate": 0.1, "momentum": 0.9, "matrix": [1.0], "initial": 0.1, "decay": 0.1, "factor": 0.1, "steps": 1,
    "every": 1, "then": 0.1,
}  # fmt: skip


def rules(given: Any) -> list[Rule]:
    """The rules of the table [optimizer], or of every [[optimizer]]. Raises MistakesError."""
    if isinstance(given, dict):
        return _rules(given)
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise MistakesError([((), f"expected the table [optimizer], or several [[optimizer]]; got {given!r}")])
    found, mistakes = [], Collector()
    for position, table in enumerate(given):
        with mistakes.at(position):
            found += _rules(table)
    mistakes.check()
    return found


def learning_rate(given: Any) -> LearningRate:
    """A number, one number per update, or the table of a schedule. Raises MistakesError or InputError."""
    if not isinstance(given, dict):
        return schedules.checked(given)
    mistakes = Collector()
    options = {key: value for key, value in given.items() if key != "schedule"}
    with mistakes.at("schedule"):
        chosen(given.get("schedule"), SCHEDULES)
    if "then" in options:
        with mistakes.at("then"):
            options["then"], then = RIGHT["then"], options["then"]
            options["then"] = learning_rate(then)
    made = _built(SCHEDULES.get(str(given.get("schedule"))), options, mistakes)
    mistakes.check()
    assert made is not None
    return made


def _rules(table: Mapping[str, Any]) -> list[Rule]:
    """One rule, or one for each of `learning_rates`."""
    mistakes, rates = Collector(), list[LearningRate]()
    options = {key: value for key, value in table.items() if key not in ("rule", *RATES)}
    with mistakes.at("rule"):
        chosen(table.get("rule"), RULES)
    for key, read in RATES.items():
        if key in table:
            options["learning_rate"] = RIGHT["learning_rate"]
            with mistakes.at(key):
                rates += read(table[key])
    if RATES.keys() <= table.keys():
        mistakes.found.append((("learning_rates",), "there is a learning_rate, too; give one of the two"))
    rule = _built(RULES.get(str(table.get("rule"))), options, mistakes)
    mistakes.check()
    assert rule is not None
    return [replace(rule, learning_rate=rate) for rate in rates] or [rule]


def _constant_rates(given: Any) -> list[LearningRate]:
    if not isinstance(given, list) or not given:
        raise InputError(f"expected a list of numbers, one for each rule of a sweep; got {given!r}")
    mistakes, rates = Collector(), list[LearningRate]()
    for position, rate in enumerate(given):
        with mistakes.at(position):
            rates.append(schedules.number("learning_rate", rate, low=0, such_as=0.1))
    mistakes.check()
    return rates


RATES: dict[str, Callable[[Any], list[LearningRate]]] = {
    "learning_rate": lambda given: [learning_rate(given)],
    "learning_rates": _constant_rates,
}


def _built(kind: type[T] | None, given: Mapping[str, Any], mistakes: Collector) -> T | None:
    """kind(**given), or None and everything that is wrong added to the mistakes."""
    if kind is None:
        return None
    known = inspect.signature(kind).parameters
    needed = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    found = {key: unknown_key(key, known) for key in given if key not in known}
    found |= dict.fromkeys((name for name in needed if name not in given), MISSING)
    options = {name: RIGHT[name] for name in needed} | {key: given[key] for key in given if key in known}
    made = None
    while made is None:
        try:
            made = kind(**options)
        except InputError as error:
            key = re.split(r"\W", str(error), maxsplit=1)[0]  # such messages begin with the option
            if key not in options or key in found:
                mistakes.found.append(((), str(error)))
                break
            found[key] = str(error)
            options = {**options, key: RIGHT[key]} if key in RIGHT else {k: options[k] for k in options if k != key}
    mistakes.found += [((key,), text) for key, text in found.items()]
    return None if found else made
