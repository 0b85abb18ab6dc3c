"""A fair size: turns one option of a variant until it has as much of something as the baseline.

The figure is asked of `core.accounting.account`, which takes a millisecond, and rises with the option; so the nearest value is
found by doubling until the target is passed, and bisection from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...core.accounting import account
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ..units import percent, short
from .options import MatchOptions, Same

WORDS = {"flops": "FLOPs", "parameters": "parameters", "active_parameters": "active parameters"}
MOST = 2**31
"""No option of a model is larger."""


@dataclass(frozen=True)
class Matched:
    """What was chosen for a variant."""

    same: Same
    by: str
    value: int
    target: float
    """The baseline's figure."""
    reached: float
    """The variant's."""

    @property
    def words(self) -> str:
        """What is equal, in words."""
        return WORDS[self.same]

    @property
    def deviation(self) -> float:
        """As a part of the target."""
        return self.reached / self.target - 1

    def __str__(self) -> str:
        figures = f"{short(self.reached)} {self.words} beside the baseline's {short(self.target)}"
        return f"{self.by} = {self.value} gives {figures} ({percent(self.deviation)})"


def figure(manifest: Manifest, same: Same, *, sequence_length: int, tokens: float) -> float:
    """What is to be equal.

    Args:
        manifest: the model.
        same: which figure.
        sequence_length: of its training.
        tokens: of its training.
    """
    figures = account(manifest, sequence_length=sequence_length)
    match same:
        case "parameters":
            return figures.parameters
        case "active_parameters":
            return figures.active_parameters
        case "flops":
            return figures.flops_training * tokens
        case _:
            return tokens


def solve(rule: MatchOptions, measure: Callable[[int], float], target: float) -> Matched:
    """The multiple of `rule.multiple_of` whose figure is nearest to `target`.

    Args:
        rule: what is turned, in which steps.
        measure: the figure of the variant with the option at a value; it rises with the value.
        target: the baseline's figure.

    Raises:
        BestiaryError: the smallest value is impossible, the option does not move the figure, or nothing comes near enough.
    """
    step = rule.multiple_of

    def ask(count: int) -> float | None:
        """None where the value is impossible, which counts as too large."""
        try:
            return measure(count * step)
        except BestiaryError:
            return None

    first, low, high = measure(step), 1, 2
    while (found := ask(high)) is not None and found < target and high * step < MOST:
        low, high = high, 2 * high
    if found == first:
        raise BestiaryError(_problem(rule, f"{rule.by} does not change the {WORDS[rule.same]}.", "Name another option in match.by."))
    while high - low > 1:
        middle = (low + high) // 2
        value = ask(middle)
        low, high = (middle, high) if value is not None and value < target else (low, middle)
    reached = {count: value for count in (low, high) if (value := ask(count)) is not None}
    best = min(reached, key=lambda count: abs(reached[count] - target))
    matched = Matched(rule.same, rule.by, best * step, target, reached[best])
    if abs(matched.deviation) > rule.tolerance:
        fact = f"nothing comes within {rule.tolerance:.1%} of the baseline: {matched}."
        raise BestiaryError(_problem(rule, fact, "Lower match.multiple_of, turn another option, or raise match.tolerance."))
    return matched


def _problem(rule: MatchOptions, fact: str, remedy: str) -> Problem:
    return Problem(fact, "match", remedy)
