r"""On which line of a TOML text everything stands: tomllib reads the text, but keeps no line numbers.

Written for texts that tomllib has accepted, so nothing is checked here a second time.
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterator
from itertools import count

Place = tuple[str | int, ...]  # where a value is in what tomllib.loads returns: keys, and positions in lists

BLANK = re.compile(r"[ \t]*")
BLANK_LINES = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
PLAIN_VALUE = re.compile(r"[^,\]}#\n]*")  # a number, a date, true or false
STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # a text may end in quotation marks of its own
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)


def lines_of(text: str) -> dict[Place, int]:
    r"""The line, counted from 1, of every table, key and list entry of a valid TOML text.

    >>> lines_of('[record]\nwhat = [\n  "loss",\n]\n')
    {('record',): 1, ('record', 'what'): 2, ('record', 'what', 0): 3}
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


class _Scanner:
    """One pass over the text from left to right; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.ends = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[Place, int] = {}
        self.entries: dict[Place, int] = {}  # of every array of tables, the position of the latest

    def document(self) -> None:
        table: Place = ()
        self._skip(BLANK_LINES)
        while self.at < len(self.text):
            if self._sees("["):
                table = self._header()
            else:
                self._pair(table)
            self._skip(BLANK_LINES)

    @property
    def line(self) -> int:
        return bisect_left(self.ends, self.at) + 1

    def _header(self) -> Place:
        """[table] or [[table]], and the place of what follows."""
        line, brackets = self.line, 2 if self._sees("[[") else 1
        self.at += brackets
        *outer, last = self._dotted_key()
        self.at += brackets
        place = (*self._inner((), outer, line), last)
        if brackets == 2:
            self.lines.setdefault(place, line)
            self.entries[place] = self.entries.get(place, -1) + 1
            place = (*place, self.entries[place])
        self.lines[place] = line
        return place

    def _pair(self, table: Place) -> None:
        """key = value"""
        line = self.line
        *outer, last = self._dotted_key()
        place = (*self._inner(table, outer, line), last)
        self.lines[place] = line
        self.at += len("=")
        self._skip(BLANK)
        self._value(place)

    def _inner(self, place: Place, keys: list[str], line: int) -> Place:
        """The place that the first keys of a dotted key lead to: in an array of tables, the latest of them."""
        for key in keys:
            place = (*place, key)
            self.lines.setdefault(place, line)
            if place in self.entries:
                place = (*place, self.entries[place])
        return place

    def _dotted_key(self) -> list[str]:
        keys = []
        while True:
            self._skip(BLANK)
            if self._sees('"') or self._sees("'"):
                keys.append(tomllib.loads("key = " + self._skip(STRING))["key"])
            else:
                keys.append(self._skip(BARE_KEY))
            self._skip(BLANK)
            if not self._sees("."):
                return keys
            self.at += len(".")

    def _value(self, place: Place) -> None:
        if self._sees('"') or self._sees("'"):
            self._skip(STRING)
        elif self._sees("["):
            self._list(place)
        elif self._sees("{"):
            self._inline_table(place)
        else:
            self._skip(PLAIN_VALUE)

    def _list(self, place: Place) -> None:
        for position in self._until("]"):
            self.lines[(*place, position)] = self.line
            self._value((*place, position))

    def _inline_table(self, place: Place) -> None:
        for _ in self._until("}"):
            self._pair(place)

    def _until(self, closing: str) -> Iterator[int]:
        """Stops before every entry of a list or an inline table, with its position."""
        self.at += 1
        self._skip(BLANK_LINES)
        for position in count():
            if self._sees(closing):
                break
            yield position
            self._skip(BLANK_LINES)
            if self._sees(","):
                self.at += 1
                self._skip(BLANK_LINES)
        self.at += 1

    def _sees(self, what: str) -> bool:
        return self.text.startswith(what, self.at)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return match.group()
