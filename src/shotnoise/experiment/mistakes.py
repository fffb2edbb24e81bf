"""Mistakes in a configuration file: each with its place in the file, so that all can be told at once."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from shotnoise.errors import InputError
from shotnoise.experiment.lines import Place

Mistake = tuple[Place, str]
MISSING = "missing"


class MistakesError(Exception):
    """What is wrong with a part of a file; places are relative to that part."""

    def __init__(self, found: Iterable[Mistake]) -> None:
        self.found = list(found)
        super().__init__("; ".join(text for _, text in self.found))


@contextmanager
def blamed_on(*place: str | int) -> Iterator[None]:
    """What goes wrong in the block is a mistake at this place: MistakesError."""
    try:
        yield
    except MistakesError as error:
        raise MistakesError(((*place, *inner), text) for inner, text in error.found) from error
    except InputError as error:
        raise MistakesError([(place, str(error))]) from error


class Collector:
    """Mistakes of several parts, put together.

    >>> mistakes = Collector()
    >>> with mistakes.at("training"):
    ...     raise MistakesError([(("steps",), "missing")])
    >>> mistakes.found
    [(('training', 'steps'), 'missing')]
    """

    def __init__(self) -> None:
        self.found: list[Mistake] = []

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """What goes wrong in the block is a mistake at this place; what follows the block is done all the same."""
        try:
            with blamed_on(*place):
                yield
        except MistakesError as error:
            self.found += error.found

    def check(self) -> None:
        """Raise MistakesError if there are any."""
        if self.found:
            raise MistakesError(self.found)


def unknown_key(key: str, known: Iterable[str], elsewhere: Mapping[str, list[str]] | None = None) -> str:
    """What to say of a key that is not one of the known ones; `elsewhere` has the tables where others belong.

    >>> unknown_key("evrey", ["every", "what"])
    "unknown key; did you mean 'every'?"
    >>> unknown_key("runs", ["every", "what"], {"runs": ["[training]"]})
    'unknown key here; it belongs in [training]'
    """
    names, homes = list(known), (elsewhere or {}).get(key)
    if homes:
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    return f"unknown key{_did_you_mean(key, names) or '; there are ' + listed(names)}"


def chosen(word: object, known: Iterable[str]) -> str:
    """`word` if it is one of the known ones, else InputError."""
    names = list(known)
    if isinstance(word, str) and word in names:
        return word
    found = MISSING if word is None else f"{word!r} is not known"
    raise InputError(f"{found}; use one of {listed(names)}{_did_you_mean(word, names)}")


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
