"""Which parameters a load is asked to initialise: `init=("block.attention", "objective.mtp", "*.q_norm.weight")`.

A selector is a part of the manifest, or an fnmatch pattern on parameter names. `block.attention` and `block.ffn` are those of
every block, also of the blocks that objectives add; `block.at."0:3".ffn` is that of some layers, `block.at."0:3"` all of them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from ..core.errors import BestiaryError, suggest
from ..core.manifest import Manifest
from ..core.slices import select
from ..core.table import ATTENTION, FFN
from ..core.tree import split_path
from ..core.weights import Entry

SLOTS = {"attention": f".{ATTENTION}.", "ffn": f".{FFN}."}


def selected(entries: Sequence[Entry], init: Iterable[str], manifest: Manifest, *, option: str = "init") -> set[str]:
    """Names of the parameters that `init`, or another option with selectors, speaks of.

    Raises:
        BestiaryError: a selector matches nothing.
    """
    chosen: set[str] = set()
    for selector in [init] if isinstance(init, str) else init:
        names = _matching(entries, selector, manifest, option)
        if not names:
            parts = {slot_of(entry) for entry in entries} | {f"objective.{key}" for key in map(objective_of, entries) if key}
            known = suggest(selector, parts - {""})
            raise BestiaryError(f"{option}: no parameter belongs to '{selector}'. {known} Patterns like '*.q_norm.weight' work too.")
        chosen |= names
    return chosen


def slot_of(entry: Entry) -> str:
    """`block.attention` or `block.ffn` for the parameters of a block's slot, also of a block that an objective adds; else empty."""
    return next((f"block.{slot}" for slot, infix in SLOTS.items() if infix in entry.name), "")


def objective_of(entry: Entry) -> str:
    """The key of the objective that adds a parameter; empty for the model's own."""
    return entry.part if entry.name.startswith("objectives.") else ""


def _matching(entries: Sequence[Entry], selector: str, manifest: Manifest, option: str) -> set[str]:
    match split_path(selector) if selector.startswith(("block.", "objective.")) else []:
        case ["block", slot] if slot in SLOTS:
            return {entry.name for entry in entries if SLOTS[slot] in entry.name}
        case ["block", "at", rows, *slot] if not slot or slot[0] in SLOTS:
            layers, wrong = select(rows, manifest.model.num_hidden_layers)
            if wrong:
                raise BestiaryError(f"{option}: {selector}: {wrong}")
            return {e.name for e in entries if e.layer in layers and not objective_of(e) and (not slot or e.part == slot[0])}
        case ["objective", key]:
            return {entry.name for entry in entries if entry.name.startswith(f"objectives.{key}.")}
    return {entry.name for entry in entries if fnmatch.fnmatchcase(entry.name, selector)}
