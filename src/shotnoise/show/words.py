"""Numbers as people read them: rounded to what is meant, with thousands separators, never falsely exact."""

import math


def number(value: float, digits: int = 4) -> str:
    """`value` to `digits` significant digits, as tables want it.

    >>> [number(v) for v in (1873.4, 0.0123456, 3.0e-7, 0.0, float("inf"), float("nan"))]
    ['1,873', '0.01235', '3.000e-7', '0', 'inf', 'n/a']
    >>> number(123456.0, 2)
    '120,000'
    """
    if math.isnan(value):
        return "n/a"
    if value == 0 or math.isinf(value):
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -4 <= power < 8:
        return f"{mantissa}e{power}"
    return f"{float(f'{mantissa}e{exponent}'):,.{max(0, digits - 1 - power)}f}"


def about(value: float) -> str:
    """`value` as one says it aloud, to two digits and with no zeros for show.

    >>> [about(v) for v in (1873.4, 12.3, 4.0, 0.0312, 0.1)]
    ['1,900', '12', '4', '0.031', '0.1']
    """
    text = number(value, 2)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def with_stderr(value: float, stderr: float | None) -> str:
    """`value` and one standard error, both cut at the error's second digit.

    >>> with_stderr(0.123456, 0.00321), with_stderr(3.21e-7, 4.4e-9), with_stderr(152345.0, 2100.0)
    ('0.1235 ± 0.0032', '(3.210 ± 0.044)e-7', '152,300 ± 2,100')
    >>> with_stderr(2.5, None), with_stderr(2.5, 0.0)
    ('2.500', '2.500')
    """
    if stderr is None or stderr == 0 or not math.isfinite(stderr) or not math.isfinite(value):
        return number(value)
    power = math.floor(math.log10(abs(value))) if value else 0
    if not -4 <= power < 8:
        return f"({_cut(value / 10.0**power, stderr / 10.0**power)})e{power}"
    return _cut(value, stderr)


def _cut(value: float, stderr: float) -> str:
    places = 1 - math.floor(math.log10(float(f"{stderr:.1e}")))
    rounded = round(value, places) + 0.0  # no negative zero
    return f"{rounded:,.{max(0, places)}f} ± {round(stderr, places):,.{max(0, places)}f}"


def percent(share: float) -> str:
    """A share between 0 and 1 in per cent; the ends are reached only by shares that are exactly there.

    >>> [percent(s) for s in (0.0, 0.0004, 0.0341, 0.5, 0.9686, 0.9961, 0.99996, 1.0)]
    ['0 %', 'less than 0.1 %', '3.4 %', '50 %', '97 %', '99.6 %', 'more than 99.9 %', '100 %']
    """
    if math.isnan(share):
        return "n/a"
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if 0.999 < share < 1:
        return "more than 99.9 %"
    decimals = 0 if share in (0, 1) or 0.0995 <= share <= 0.99 else 1
    return f"{100 * share:.{decimals}f} %"


def roughly(share: float) -> str:
    """`percent` for the middle of a sentence: "about" wherever something was rounded.

    >>> roughly(0.97), roughly(0.99996), roughly(1.0)
    ('about 97 %', 'more than 99.9 %', '100 %')
    """
    text = percent(share)
    return text if share in (0, 1) or text.startswith(("more", "less")) else f"about {text}"


def listing(items: list[str]) -> str:
    """Items joined for a sentence.

    >>> listing(["1", "2", "3"]), listing(["1"])
    ('1, 2 and 3', '1')
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
