"""Reads data out of a pickle without unpickling it: nothing that the file names is ever imported or called.

A pickle is a program for a small stack machine. `pickletools.genops` lists its instructions without running
them; `_Machine` below carries out those that build dictionaries, lists, tuples, numbers, strings and NumPy
arrays of integers, and refuses every other instruction and every other name. That covers the batches of
CIFAR-10, written by Python 2 (protocol 2) or by Python 3 (protocols 2 to 5).
"""

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import DataError


def read_plain_pickle(content: bytes, *, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of plain data; keys as str, arrays as NumPy arrays.

    where   how to call the file in messages
    Raises DataError when the pickle asks for anything but plain data, is cut short, or holds no dictionary.

    >>> import pickle
    >>> read_plain_pickle(pickle.dumps({b"labels": [3, 1]}), where="example")
    {'labels': [3, 1]}
    """
    machine = _Machine()
    position = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # damaged names may hold odd escapes
            for instruction, argument, start in pickletools.genops(content):
                position = start or 0
                machine.step(instruction.name, argument)
        value = machine.stack.pop()
    except _RefusedError as refused:
        raise DataError(
            f"{where} refused: contains {refused} (at byte {position}). Nothing in it was run. Only numbers, "
            "strings, lists, dictionaries and NumPy arrays of integers are read; get the file from a source "
            "that you trust."
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"{where} ({len(content)} bytes) is truncated or damaged: reading it as a pickle of plain data "
            f"failed near byte {position} ({error}). Get the file again."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{where} holds a {type(value).__name__}; expected a dictionary of arrays and lists.")
    return {key: item.array if isinstance(item, _Array) else item for key, item in value.items()}


class _RefusedError(Exception):
    """The pickle asks for something that is not plain data; the text completes 'contains ...'."""


@dataclass(frozen=True)
class _Name:
    """Something importable that the pickle mentions. Only the mention is kept; nothing is imported."""

    dotted: str


@dataclass
class _Dtype:
    code: str
    byte_order: str = "|"

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.byte_order = _text(state[1])

    def resolve(self) -> np.dtype[Any]:
        if self.code not in {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}:
            raise _RefusedError(f"an array of dtype {self.code[:20]!r}")
        return np.dtype(self.code).newbyteorder(self.byte_order)  # type: ignore[arg-type]


@dataclass
class _Array:
    array: NDArray[Any] | None = None

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _as_array(raw, dtype, shape, "F" if fortran else "C").array


def _as_array(raw: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    flat = np.frombuffer(raw, dtype.resolve())
    return _Array(flat.reshape(shape, order="F" if order == "F" else "C"))


def _text(value: Any) -> str:
    """A str, or the bytes that Python 2 called str; nothing else is turned into text, however it prints."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise _RefusedError(f"a {type(value).__name__} where a string belongs")
    return value


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _RefusedError("a call to _codecs.encode with an encoding other than latin1")
    return text.encode("latin-1")


# What the names in such a file stand for: ours to build, whatever a module of that name may hold today.
_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,  # how Python 3 writes bytes in protocol 2
    "numpy.dtype": lambda code, *_: _Dtype(_text(code)),
}
for _package in ("numpy.core", "numpy._core"):
    _CALLS[f"{_package}.multiarray._reconstruct"] = lambda *_: _Array()
    _CALLS[f"{_package}.numeric._frombuffer"] = _as_array
_NAMES = {*_CALLS, "numpy.ndarray"}

_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


class _Machine:
    """The stack and the memo of a pickle, with the instructions that build plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match instruction:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4":
                push(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # a Python 2 str, which genops hands over as latin-1 text
                push(argument.encode("latin-1"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push(_CONSTANTS[instruction])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                push(_EMPTY[instruction]())
            case "MARK":
                push(_MARK)
            case "TUPLE":
                push(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([pop() for _ in range(int(instruction[-1]))])))
            case "APPEND":
                self.extend([pop()])
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                self.set_items(list(reversed([pop(), pop()])))
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(_name(module, attribute))
            case "REDUCE":
                self.call()
            case "BUILD":
                self.build()
            case _:
                raise _RefusedError(f"the instruction {instruction}")

    def pop_to_mark(self) -> list[Any]:
        start = max(i for i, item in enumerate(self.stack) if item is _MARK)
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _RefusedError(f"an append to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        if not isinstance(target, dict):
            raise _RefusedError(f"an item set in a {type(target).__name__}")
        target.update(zip(map(_text, keys), values, strict=True))

    def call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or name.dotted not in _CALLS:
            raise _RefusedError("a call to something that is not a constructor of arrays or strings")
        self.stack.append(_CALLS[name.dotted](*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Array | _Dtype):
            raise _RefusedError(f"a state for a {type(target).__name__}")
        target.set_state(state)


def _name(module: Any, attribute: Any) -> _Name:
    dotted = f"{_text(module)}.{_text(attribute)}"
    if dotted not in _NAMES:
        raise _RefusedError(f"a call to {dotted[:80]}")
    return _Name(dotted)
