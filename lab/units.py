"""Numbers as a report prints them."""

from __future__ import annotations

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float, unit: str = "") -> str:
    """Three significant digits with an SI prefix.

    >>> short(2007984)
    '2.01M'
    >>> short(640, "B")
    '640 B'
    """
    space = " " if unit else ""
    for size, prefix in PREFIXES:
        if abs(value) >= 0.9995 * size:
            return f"{_digits(value / size)}{space}{prefix}{unit}"
    return f"{_digits(value)}{space}{unit}"


def signed(value: float) -> str:
    """A difference with its sign, three decimals, and a true minus."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """A part as a percentage with its sign.

    >>> percent(0.0042)
    '+0.42 %'
    """
    return f"{round(100 * value, 2) + 0.0:+.2f} %".replace("-", "\N{MINUS SIGN}")


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"
