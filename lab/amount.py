"""Lengths in a recipe: an integer counts steps or tokens, a fraction is that part of the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import PlainValidator


def _amount(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    part = isinstance(value, float) and 0 <= value <= 1
    if whole or part:
        return value
    raise ValueError("expected a whole number (an integer), or a part of the run (between 0.0 and 1.0)")


Amount = Annotated[int | float, PlainValidator(_amount)]
"""An integer counts steps; a fraction such as 0.05 is that part of the run."""
Stair = tuple[Amount, float]
"""From this many tokens on, or from this part of the run's tokens on, this value."""


def steps_of(amount: int | float, steps: int) -> int:
    """An `Amount` of a run of `steps`, in steps."""
    return amount if isinstance(amount, int) else round(amount * steps)


def due(amount: int | float, step: int, steps: int) -> bool:
    """Whether something that happens every `amount` happens after step `step` of `steps`; never when 0.

    Fractions divide the run evenly, so that the last time is its end.
    """
    if not amount:
        return False
    period = amount if isinstance(amount, int) else max(1.0, amount * steps)
    return int(step / period + 1e-9) > int((step - 1) / period + 1e-9)


def value_at(stairs: Sequence[Stair], tokens: int, budget: int) -> float:
    """The value that holds after `tokens` of `budget`; the first stair starts at 0."""
    return [value for start, value in stairs if _tokens(start, budget) <= tokens][-1]


def rising(stairs: Sequence[Stair], name: str) -> None:
    """Checks that stairs start at 0 and rise.

    Raises:
        ValueError: they do not.
    """
    starts = [start for start, _ in stairs]
    if not starts:
        return
    if starts[0] != 0:
        raise ValueError(f"{name} starts at {starts[0]}, and the run at 0. Begin it with [0, value]")
    if len({type(start) for start in starts[1:]}) > 1:
        raise ValueError(f"{name} mixes tokens (integers) and parts of the run (fractions). Use one of them")
    if any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"{name} must rise: {', '.join(map(str, starts))}")


def _tokens(start: int | float, budget: int) -> float:
    return start if isinstance(start, int) else start * budget
