"""The one error that a user sees: what was found, where, and what to do about it.

A `BestiaryError` carries any number of problems, because a manifest with three typos should be
mended in one go. The command line prints them and exits with 1; no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    fact: str
    """What was found and what was expected, as a sentence."""
    where: str = ""
    """File, dotted path, tensor or option: the place to look."""
    remedy: str = ""
    """What to type or change."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.fact}{remedy}"


class BestiaryError(Exception):
    """Input that cannot be used, with everything that is wrong about it in `problems`."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest valid one, then all of them.

    >>> suggest("gqq", ["gqa", "mla"])
    "Did you mean 'gqa'? Known: gqa, mla."
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    nearest = f"Did you mean '{close[0]}'? " if close else ""
    return f"{nearest}Known: {', '.join(names) or 'none'}."
