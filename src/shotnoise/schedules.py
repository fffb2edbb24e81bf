"""Learning rates as functions of the update number t = 0, 1, ...: a number, one number per update, or a callable.

    InverseTime(a, d)     a / (1 + d t)
    Exponential(a, f)     a f^t
    Cosine(a, T, b)       half a cosine from a at t = 0 to b at t = T, and b from there on
    Steps(a, f, k)        a f^floor(t / k)
    WarmUp(T, then)       then(0) (t + 1) / (T + 1) for t < T, and then(t - T) from there on

These can be pickled, compare by value, and their repr is the expression that builds them.
"""

import hashlib
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shotnoise.errors import InputError

LearningRate = float | Sequence[float] | Callable[[int], float]


def values(learning_rate: LearningRate, steps: int) -> NDArray[np.float64]:
    """The learning rates of updates 0 .. steps - 1, shape (steps,).

    Raises InputError for a value that is not a finite number >= 0, for a sequence that has not exactly `steps`
    values, and for a callable that raises (its exception is the cause).

    >>> values(lambda t: 0.1 / 2**t, 3).tolist()
    [0.1, 0.05, 0.025]
    """
    steps = whole("steps", steps, low=0)
    rate = checked(learning_rate)
    if isinstance(rate, float):
        return np.full(steps, rate)
    if callable(rate):
        return np.array([_called(rate, t) for t in range(steps)], dtype=np.float64)
    if len(rate) != steps:
        raise InputError(
            f"learning_rate has {len(rate)} values for {steps} updates; give one per update, a number or a callable"
        )
    return np.array(rate, dtype=np.float64)


def checked(learning_rate: LearningRate) -> LearningRate:
    """A learning rate in its plain form: a float, a tuple of floats, or the callable that it is.

    Raises InputError for numbers that are not finite or negative; a callable is not called.

    >>> checked(1), checked([1, 0.5])
    (1.0, (1.0, 0.5))
    """
    plain: Any = _plain(learning_rate)
    if callable(plain):
        return plain
    if isinstance(plain, Sequence) and not isinstance(plain, (str, bytes)):
        return tuple(_rate(value, t) for t, value in enumerate(plain))
    return number("learning_rate", plain, low=0, such_as=0.1)


def describe(learning_rate: LearningRate, steps: int) -> float | dict[str, str]:
    """What identifies a learning rate over `steps` updates, ready for JSON.

    The number itself, or the schedule by name with the SHA-256 of its float64 values (little-endian): two
    functions of one name that give other values differ.

    >>> describe(0.1, 10)
    0.1
    >>> describe(Steps(0.1, 0.5, 10), 30)["schedule"]
    'Steps(initial=0.1, factor=0.5, every=10)'
    """
    rate = checked(learning_rate)
    if isinstance(rate, float):
        return rate
    digest = hashlib.sha256(values(rate, steps).astype("<f8").tobytes()).hexdigest()
    return {"schedule": _name(rate), "sha256": digest}


@dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of t with a repr that says all of it; use one of its subclasses."""

    def __call__(self, t: int) -> float:
        raise NotImplementedError

    def _keep(self, name: str, value: float | LearningRate) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class InverseTime(Schedule):
    """initial / (1 + decay t).

    >>> InverseTime(0.1, 0.5)(2)
    0.05
    """

    initial: float
    decay: float

    def __post_init__(self) -> None:
        self._keep("initial", number("initial", self.initial, low=0, such_as=0.1))
        self._keep("decay", number("decay", self.decay, low=0, such_as=0.01))

    def __call__(self, t: int) -> float:
        return self.initial / (1 + self.decay * t)


@dataclass(frozen=True)
class Exponential(Schedule):
    """initial * factor**t; a factor above 1 is a growing learning rate.

    >>> Exponential(0.8, 0.5)(3)
    0.1
    """

    initial: float
    factor: float

    def __post_init__(self) -> None:
        self._keep("initial", number("initial", self.initial, low=0, such_as=0.1))
        self._keep("factor", number("factor", self.factor, low=0, such_as=0.99))

    def __call__(self, t: int) -> float:
        return self.initial * self.factor**t


@dataclass(frozen=True)
class Cosine(Schedule):
    """final + (initial - final) (1 + cos(pi t / steps)) / 2 for t < steps, and `final` from t = steps on.

    >>> schedule = Cosine(0.4, steps=10, final=0.2)
    >>> schedule(0), round(schedule(5), 12), schedule(10), schedule(11)
    (0.4, 0.3, 0.2, 0.2)
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        self._keep("initial", number("initial", self.initial, low=0, such_as=0.1))
        self._keep("steps", whole("steps", self.steps, low=1))
        self._keep("final", number("final", self.final, low=0, such_as=0.0))

    def __call__(self, t: int) -> float:
        share = (1 + math.cos(math.pi * min(t / self.steps, 1))) / 2
        return self.initial * share + self.final * (1 - share)  # never negative, and exact at both ends


@dataclass(frozen=True)
class Steps(Schedule):
    """initial * factor**(t // every): constant for `every` updates, then multiplied by `factor`.

    >>> [Steps(0.8, 0.5, every=2)(t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        self._keep("initial", number("initial", self.initial, low=0, such_as=0.1))
        self._keep("factor", number("factor", self.factor, low=0, such_as=0.1))
        self._keep("every", whole("every", self.every, low=1))

    def __call__(self, t: int) -> float:
        return self.initial * self.factor ** (t // self.every)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Climb to `then` in equal steps: then(0) (t + 1) / (steps + 1) for t < steps, then(t - steps) from there on.

    Zero itself is never used, and then(0) is first reached at t = steps. `then` is a number or a callable whose own
    time starts when the climb is over.

    >>> [WarmUp(3, 0.4)(t) for t in range(5)]
    [0.1, 0.2, 0.30000000000000004, 0.4, 0.4]
    """

    steps: int
    then: float | Callable[[int], float]

    def __post_init__(self) -> None:
        self._keep("steps", whole("steps", self.steps, low=0))
        then = self.then if callable(self.then) else number("then", self.then, low=0, such_as=0.1)
        self._keep("then", then)

    def __call__(self, t: int) -> float:
        if t < self.steps:
            return self._then(0) * (t + 1) / (self.steps + 1)
        return self._then(t - self.steps)

    def _then(self, t: int) -> float:
        return self.then(t) if callable(self.then) else self.then


def number(name: str, value: object, *, such_as: float, low: float = -math.inf, below: float = math.inf) -> float:
    """`value` as a finite float with low <= value < below, else InputError in terms of `name`."""
    plain = _plain(value)
    if not isinstance(plain, bool) and isinstance(plain, Real):
        try:
            found = float(plain)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and low <= found < below:
            return found
    bounds = [f">= {low:g}"] * (low > -math.inf) + [f"< {below:g}"] * (below < math.inf)
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    raise InputError(f"{name}={reprlib.repr(value)}: expected {expected}, such as {such_as:g}")


def whole(name: str, value: object, *, low: int) -> int:
    """`value` as an int >= low, else InputError in terms of `name`."""
    if not isinstance(value, bool) and isinstance(value, (int, np.integer)) and value >= low:
        return int(value)
    raise InputError(f"{name}={reprlib.repr(value)}: expected a whole number >= {low}")


def _rate(value: object, t: int) -> float:
    return number(f"learning_rate(t={t})", value, low=0, such_as=0.1)


def _called(schedule: Callable[[int], float], t: int) -> float:
    try:
        value = schedule(t)
    except Exception as error:
        raise InputError(
            f"learning_rate raised {type(error).__name__} at t={t}: {error}; it is called with one whole number, "
            "the update number t = 0, 1, ..., and returns a number"
        ) from error
    return _rate(value, t)


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers and vectors as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _name(rate: Sequence[float] | Callable[[int], float]) -> str:
    """The schedule in words that do not change from one process to the next, as the repr of a function would."""
    if isinstance(rate, WarmUp) and callable(rate.then):
        return f"WarmUp(steps={rate.steps}, then={_name(rate.then)})"
    if isinstance(rate, Schedule):
        return repr(rate)
    if isinstance(rate, Sequence):
        return "sequence"
    named = rate if hasattr(rate, "__qualname__") else type(rate)
    return f"{named.__module__}.{named.__qualname__}"
