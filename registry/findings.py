"""What does not fit between a checkpoint and a model, and how to say it briefly: one line for all layers that lack the same."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BestiaryError, Problem
from ..core.weights import Entry
from .fresh import objective_of, slot_of
from .header import Stored

SHOWN = 3
"""Names listed in full before the rest of a group is only counted."""


@dataclass(frozen=True)
class Kind:
    """Problems that differ only in numbers inside of names."""

    pattern: str
    fact: str
    remedy: str


class Findings:
    """Collects problems of a plan, then raises them together."""

    def __init__(self, own: list[Entry]) -> None:
        self._totals = Counter(objective_of(entry) for entry in own)
        self._lacking: dict[str, Entry] = {}
        self._absent: list[tuple[Entry, str]] = []
        self._groups: dict[Kind, list[str]] = {}
        self._places: dict[Kind, str] = {}

    def missing(self, entry: Entry, name: str) -> None:
        self._lacking[entry.name] = entry
        self._absent.append((entry, name))

    def misshapen(self, stored: Stored, expected: tuple[int, ...], entry: Entry | None = None) -> None:
        if entry is not None:
            self._lacking[entry.name] = entry
        fact = f"shape {list(stored.shape)} was found, {list(expected)} is expected"
        self.add(stored, fact, "Its config or manifest belongs to another checkpoint, or a dimension was changed by `set`.")

    def unexpected(self, stored: Stored) -> None:
        self.add(stored, "unexpected", "Nothing in the model takes it. Load with the config or manifest that the checkpoint was made with.")

    def add(self, stored: Stored, fact: str, remedy: str) -> None:
        self._note(str(stored.file), stored.name, fact, remedy)

    def stop(self, folder: Path) -> None:
        """Raises a `BestiaryError` with all that was noted, if anything."""
        whole = self._whole_objectives()
        for entry, name in self._absent:
            if objective_of(entry) not in whole:
                self._note(str(folder), name, "missing", "")
        problems = [Problem(self._nothing_of(key), str(folder)) for key in sorted(whole)]
        problems += [Problem(f"{_names(names)}: {kind.fact}.", self._places[kind], kind.remedy) for kind, names in self._groups.items()]
        if self._lacking:
            problems.append(Problem(self._remedy(whole)))
        if problems:
            raise BestiaryError(*problems)

    def _whole_objectives(self) -> set[str]:
        """Keys of the objectives of which the checkpoint has nothing at all."""
        absent = {entry.name: entry for entry, _ in self._absent}
        lacking = Counter(objective_of(entry) for entry in absent.values())
        return {key for key, count in lacking.items() if key and count == self._totals[key]}

    def _nothing_of(self, key: str) -> str:
        names = [name for entry, name in self._absent if objective_of(entry) == key]
        return f"none of the {len(names):,} tensors of objective.{key} is there, from {names[0]} to {names[-1]}."

    def _note(self, place: str, name: str, fact: str, remedy: str) -> None:
        kind = Kind(re.sub(r"\d+", "*", name), fact, remedy)
        self._places.setdefault(kind, place)
        self._groups.setdefault(kind, []).append(name)

    def _remedy(self, whole: set[str]) -> str:
        selectors = {f"objective.{key}" for key in whole}
        for entry in self._lacking.values():
            if objective_of(entry) not in whole:
                selectors.add(slot_of(entry) or entry.name)
        shown = f"init={tuple(sorted(selectors))!r}" if len(selectors) <= 8 else "their names or patterns in init=(...)"
        text = f"If the checkpoint should hold what is missing, fetch it again. To start it from fresh weights, pass {shown}."
        return text + "".join(f' To do without, pass set={{"objective.{key}": False}}.' for key in sorted(whole))


def _names(names: list[str]) -> str:
    if len(names) <= SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN:,} more up to {names[-1]}"
