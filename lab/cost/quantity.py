"""Large numbers as people write them: `14.8T` tokens, `63B`, `500_000`."""

from __future__ import annotations

import math

from ...core.errors import BestiaryError

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def quantity(text: str, *, of: str) -> float:
    """The number that `text` writes.

    >>> quantity("14.8T", of="--tokens")
    14800000000000.0

    Raises:
        BestiaryError: it is no positive number; `of` says where it stood.
    """
    letter = text.strip()[-1:].upper()
    digits, factor = (text.strip()[:-1], SUFFIXES[letter]) if letter in SUFFIXES else (text, 1.0)
    try:
        value = float(digits) * factor
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BestiaryError(f"{of} {text}: expected a positive number, such as 14.8T, 63B or 500000.")
    return float(round(value)) if value >= 1 else value
