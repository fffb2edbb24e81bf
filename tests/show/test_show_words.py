"""Rounding never says more than is known, nor that all is nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shotnoise.show.words import about, listing, number, percent, with_stderr


def read(text):
    return float(text.replace(",", ""))


@given(st.floats(1e-300, 1e300), st.integers(1, 6))
def test_numbers_are_right_to_their_digits(value, digits):
    for signed in (value, -value):
        assert read(number(signed, digits)) == pytest.approx(signed, rel=0.51 * 10.0 ** (1 - digits))


@given(st.floats(1e-300, 1e300))
def test_about_is_right_to_two_digits(value):
    assert read(about(value)) == pytest.approx(value, rel=0.051)


@given(st.floats(1e-12, 1e12), st.floats(1e-6, 1.0))
def test_value_and_error_are_cut_alike(value, relative):
    text = with_stderr(value, value * relative)
    scale = 10.0 ** int(text.partition(")e")[2] or 0)
    left, right = text.replace("(", "").partition(")")[0].split(" ± ")
    assert read(right) * scale == pytest.approx(value * relative, rel=0.051)
    assert abs(read(left) * scale - value) <= 0.051 * value * relative + 1e-9 * value
    assert len(left.partition(".")[2]) == len(right.partition(".")[2])


def test_an_error_larger_than_its_value():
    assert with_stderr(0.0, 0.25) == "0.00 ± 0.25"
    assert with_stderr(-3.0, 100.0) == "0 ± 100"


def test_the_ends_of_per_cent():
    assert percent(1.0) == "100 %" and percent(0.0) == "0 %" and percent(math.nan) == "n/a"
    for share in (0.9995, 1 - 1e-12):
        assert percent(share) == "more than 99.9 %"
    assert percent(1e-12) == "less than 0.1 %"


@given(st.floats(0.001, 0.999))
def test_per_cent_is_right(share):
    assert read(percent(share).removesuffix(" %")) == pytest.approx(100 * share, abs=0.51, rel=0.06)


def test_odd_numbers_have_a_word():
    assert [number(v) for v in (math.inf, -math.inf, math.nan)] == ["inf", "-inf", "n/a"]
    assert with_stderr(1.0, math.inf) == with_stderr(1.0, math.nan) == "1.000"
    assert listing(["a", "b"]) == "a and b"
