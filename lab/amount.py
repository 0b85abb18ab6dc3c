"""Lengths in a recipe: an integer counts steps, a fraction is that part of the run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator


def _amount(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    part = isinstance(value, float) and 0 <= value <= 1
    if whole or part:
        return value
    raise ValueError("expected a number of steps (an integer), or a part of the run (between 0.0 and 1.0)")


Amount = Annotated[int | float, PlainValidator(_amount)]
"""An integer counts steps; a fraction such as 0.05 is that part of the run."""


def steps_of(amount: int | float, steps: int) -> int:
    """An `Amount` of a run of `steps`, in steps."""
    return amount if isinstance(amount, int) else round(amount * steps)
