import hashlib
import json
import math
import operator
import pickle
import re
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shotnoise.errors import InputError
from shotnoise.schedules import (
    Cosine,
    Exponential,
    InverseTime,
    Schedule,
    Steps,
    WarmUp,
    checked,
    describe,
    number,
    values,
    whole,
)

ALL = [
    InverseTime(0.1, 0.01),
    Exponential(0.1, 0.99),
    Cosine(0.1, 50, 0.01),
    Steps(0.1, 0.5, 10),
    WarmUp(5, 0.1),
    WarmUp(5, WarmUp(3, Cosine(0.1, 20))),
]


def named(value):
    """An id without the address of a function, which differs between processes."""
    return getattr(value, "__name__", None) or re.sub(" at 0x[0-9a-f]+", "", repr(value))


def halving(t):
    return 0.5**t


class Halving:
    def __call__(self, t):
        return 0.5**t

    def method(self, t):
        return 0.5**t


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.1, [0.1, 0.1, 0.1]),
        (0, [0, 0, 0]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
        (Fraction(1, 4), [0.25, 0.25, 0.25]),
        (torch.tensor(0.25), [0.25, 0.25, 0.25]),
        ([1, 0.5, 0], [1, 0.5, 0]),
        (range(3), [0, 1, 2]),
        (np.array([1.0, 0.5, 0.25]), [1, 0.5, 0.25]),
        (torch.tensor([1.0, 0.5, 0.25]), [1, 0.5, 0.25]),
        (halving, [1, 0.5, 0.25]),
        (lambda t: np.array(0.5**t), [1, 0.5, 0.25]),
        (lambda t: torch.tensor(0.5) ** t, [1, 0.5, 0.25]),
    ],
    ids=named,
)
def test_one_value_per_update(rate, expected):
    found = values(rate, 3)
    assert found.dtype == np.float64 and found.shape == (3,) and found.tolist() == expected


@pytest.mark.parametrize("rate", [0.1, [], halving], ids=named)
def test_no_updates_no_values(rate):
    assert values(rate, 0).shape == (0,)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (InverseTime(0.3, 0.7), lambda t: 0.3 / (1 + 0.7 * t)),
        (Exponential(0.3, 0.9), lambda t: 0.3 * 0.9**t),
        (Steps(0.3, 0.1, 4), lambda t: 0.3 * 0.1 ** math.floor(t / 4)),
        (Cosine(0.3, 20, 0.1), lambda t: 0.1 + 0.2 * (1 + math.cos(math.pi * t / 20)) / 2 if t < 20 else 0.1),
        (Cosine(0, 20, 0.1), lambda t: 0.1 - 0.1 * (1 + math.cos(math.pi * t / 20)) / 2 if t < 20 else 0.1),
        (WarmUp(4, 0.3), lambda t: 0.3 * min(1, (t + 1) / 5)),
        (WarmUp(4, lambda t: 1 / (1 + t)), lambda t: (t + 1) / 5 if t < 4 else 1 / (t - 3)),
        (WarmUp(0, 0.3), lambda t: 0.3),
    ],
    ids=named,
)
def test_schedules_are_their_formulas(schedule, formula):
    assert values(schedule, 30) == pytest.approx([formula(t) for t in range(30)], rel=1e-13, abs=0)


def torch_values(build, steps: int, initial: float) -> list[float]:
    """The learning rates of a scheduler of torch over so many updates."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=initial)
    scheduler, found = build(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Exponential(0.3, 0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (Steps(0.3, 0.5, 7), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5)),
        (Cosine(0.3, 30, 0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30, 0.1)),
        (WarmUp(4, 0.3), lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.2, 1.0, 4)),
    ],
    ids=named,
)
def test_schedules_that_torch_has_too(ours, theirs):
    assert values(ours, 30) == pytest.approx(torch_values(theirs, 30, 0.3), rel=1e-12)


rates = st.floats(0, 10)


@given(rates, rates, st.integers(1, 50), st.integers(0, 100))
def test_a_cosine_stays_between_its_ends(initial, final, steps, t):
    schedule = Cosine(initial, steps, final)
    low, high = sorted((initial, final))
    assert schedule(0) == initial and schedule(steps) == schedule(steps + t) == final
    assert low <= schedule(t) <= high or schedule(t) == pytest.approx(low) or schedule(t) == pytest.approx(high)


@given(st.integers(0, 20), st.floats(1e-3, 10), st.integers(0, 40))
def test_a_warm_up_climbs_from_above_zero_to_what_follows(steps, rate, t):
    schedule = WarmUp(steps, InverseTime(rate, 0.5))
    assert schedule(steps) == rate and schedule(steps + t) == InverseTime(rate, 0.5)(t)
    climb = values(schedule, steps + 1)
    assert climb[0] > 0 and np.diff(climb) == pytest.approx(np.full(steps, rate / (steps + 1)))


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_schedules_are_values(schedule):
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule == eval(repr(schedule)) and hash(copy) == hash(schedule)
    assert (values(copy, 60) == values(schedule, 60)).all()


def test_numbers_become_pythons_own():
    assert repr(InverseTime(np.float64(1), 0)) == "InverseTime(initial=1.0, decay=0.0)"
    assert repr(Steps(1, torch.tensor(0.5), np.int64(3))) == "Steps(initial=1.0, factor=0.5, every=3)"
    assert checked(np.float32(0.5)) == 0.5 and isinstance(checked(np.float32(0.5)), float)
    assert checked(np.array([1, 2])) == (1.0, 2.0)
    assert checked(halving) is halving


def test_a_schedule_is_described_by_its_values():
    digest = hashlib.sha256(np.array([1, 0.5, 0.25], "<f8").tobytes()).hexdigest()
    here = halving.__module__
    for rate, name in [
        ([1, 0.5, 0.25], "sequence"),
        (halving, f"{here}.halving"),
        (Halving(), f"{here}.Halving"),
        (Halving().method, f"{here}.Halving.method"),
        (partial(operator.pow, 0.5), "functools.partial"),
        (Exponential(1, 0.5), "Exponential(initial=1.0, factor=0.5)"),
        (WarmUp(0, halving), f"WarmUp(steps=0, then={here}.halving)"),
        (WarmUp(0, WarmUp(0, halving)), f"WarmUp(steps=0, then=WarmUp(steps=0, then={here}.halving))"),
    ]:
        assert describe(rate, 3) == {"schedule": name, "sha256": digest}
        json.dumps(describe(rate, 3), allow_nan=False)
    assert describe(1, 3) == 1.0 and isinstance(describe(1, 3), float)
    assert describe([1, 0.5, 0.125], 3)["sha256"] != digest
    assert describe(halving, 4)["sha256"] != digest


def test_the_schedule_itself_is_abstract():
    with pytest.raises(NotImplementedError):
        Schedule()(0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, "0.1", None, True, 1j, 10**400, [0.1]], ids=named)
def test_what_is_no_learning_rate(bad):
    expected = ": expected a finite number >= 0, such as 0.1"
    if not isinstance(bad, list):
        with pytest.raises(InputError, match=rf"^learning_rate=.*{expected}"):
            values(bad, 3)
    with pytest.raises(InputError, match=rf"^learning_rate\(t=1\)=.*{expected}"):
        values([0.1, bad, 0.1], 3)
    with pytest.raises(InputError, match=rf"^learning_rate\(t=2\)=.*{expected}"):
        values(lambda t: bad if t == 2 else 0.1, 3)


def test_messages_say_what_arrived():
    with pytest.raises(InputError, match=r"learning_rate=-0.5: expected"):
        values(-0.5, 1)
    with pytest.raises(InputError, match=r"learning_rate\(t=0\)='fast': expected"):
        values(["fast"], 1)
    with pytest.raises(InputError, match=r"learning_rate\(t=0\)=tensor\(\[1., 1.\]\): expected"):
        values(lambda t: torch.ones(2), 1)
    with pytest.raises(InputError, match=r"learning_rate\(t=0\)=\[1.0, 1.0\]: expected"):
        values(np.ones((2, 2)), 2)
    with pytest.raises(InputError, match=r"^learning_rate=\{0: 0.1\}: expected"):
        values({0: 0.1}, 1)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_sequence_is_as_long_as_the_run(count):
    with pytest.raises(InputError, match=rf"learning_rate has {count} values for 3 updates; give one per update"):
        values([0.1] * count, 3)


def test_a_callable_that_raises_is_named_with_its_cause():
    with pytest.raises(
        InputError, match=r"learning_rate raised ZeroDivisionError at t=0: .*the update number t"
    ) as caught:
        values(lambda t: 1 / t, 3)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(InputError, match=r"raised TypeError at t=0: .*decay"):
        values(InverseTime, 3)
    with pytest.raises(InputError, match=r"raised OverflowError at t=2"):
        values(Exponential(1, 1e200), 3)


@pytest.mark.parametrize("steps", [-1, 2.0, "3", None, True])
def test_steps_are_counted(steps):
    with pytest.raises(InputError, match=r"steps=.*: expected a whole number >= 0"):
        values(0.1, steps)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InverseTime(-1, 0), r"initial=-1: expected a finite number >= 0, such as 0.1"),
        (lambda: InverseTime(1, math.inf), r"decay=inf: expected a finite number >= 0"),
        (lambda: Exponential(math.nan, 1), r"initial=nan: "),
        (lambda: Exponential(1, -0.5), r"factor=-0.5: "),
        (lambda: Cosine("1", 10), r"initial='1': "),
        (lambda: Cosine(1, 0), r"steps=0: expected a whole number >= 1"),
        (lambda: Cosine(1, 10, -1), r"final=-1: "),
        (lambda: Steps(-1, 1, 1), r"initial=-1: "),
        (lambda: Steps(1, None, 1), r"factor=None: "),
        (lambda: Steps(1, 1, 2.5), r"every=2.5: expected a whole number >= 1"),
        (lambda: WarmUp(-1, 0.1), r"steps=-1: expected a whole number >= 0"),
        (lambda: WarmUp(1, [0.1, 0.2]), r"then=\[0.1, 0.2\]: expected a finite number >= 0"),
        (lambda: WarmUp(1, -0.1), r"then=-0.1: "),
    ],
)
def test_parameters_are_checked_on_construction(build, message):
    with pytest.raises(InputError, match=message):
        build()


@given(st.floats(-100, 100), st.integers(-100, 100))
def test_the_bounds_are_what_the_message_says(x, k):
    for low, below in [(-math.inf, math.inf), (0, math.inf), (0, 1)]:
        if low <= x < below:
            assert number("x", x, low=low, below=below, such_as=0.5) == x
        else:
            with pytest.raises(InputError, match=r"x=.*a finite number >= 0.*such as 0.5$"):
                number("x", x, low=low, below=below, such_as=0.5)
    if k >= 3:
        assert whole("k", k, low=3) == k
    else:
        with pytest.raises(InputError, match=r"k=.*a whole number >= 3$"):
            whole("k", k, low=3)
    with pytest.raises(InputError, match=r"x=2: expected a finite number >= 0 and < 1, such as 0.9"):
        number("x", 2, low=0, below=1, such_as=0.9)
    with pytest.raises(InputError, match=r"x=nan: expected a finite number, such as 1$"):
        number("x", math.nan, such_as=1)
