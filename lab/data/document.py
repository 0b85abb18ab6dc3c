"""One text with a name that stays, and what follows from the name: its place in the order, and its side of the split."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PLACES = 2**64


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    """Its path below the source, the same on every machine; with `#line` or `#row` in files that hold several."""
    text: bytes
    """UTF-8."""

    @cached_property
    def place(self) -> int:
        """A number in `[0, 2**64)` that follows from the name alone: decides the split and the order."""
        return int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=8).digest(), "big")


class Split:
    """Which documents are held out: those whose place lies below a bound, so that adding others never moves one."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.lowest, self.highest = PLACES, -1
        """Places seen."""
        self.seen = 0
        self.held_out = 0

    @classmethod
    def part(cls, part: float) -> Split:
        """A split that holds out this part of many documents."""
        return cls(round(part * PLACES))

    def holds_out(self, document: Document) -> bool:
        """The side of one document, which is counted."""
        held = document.place < self.bound
        self.lowest, self.highest = min(self.lowest, document.place), max(self.highest, document.place)
        self.seen += 1
        self.held_out += held
        return held

    def mended(self) -> Split | None:
        """A split that leaves no side of what was seen empty; None when this one is good, or nothing can help."""
        if self.seen < 2 or 0 < self.held_out < self.seen:
            return None
        return Split(self.highest if self.held_out else self.lowest + 1)


def cut(document: Document, held_out: float) -> tuple[Document, Document]:
    """Start and end of a corpus that is one document; the end is held out."""
    text = document.text.decode()
    at = round(len(text) * (1 - held_out))
    start, end = text[:at].encode(), text[at:].encode()
    return Document(f"{document.name}[start]", start), Document(f"{document.name}[end]", end)


class Fingerprint:
    """The digest of a corpus, whatever order its documents came in."""

    def __init__(self) -> None:
        self._places, self._digests = array("Q"), bytearray()

    def add(self, document: Document) -> None:
        """One more document."""
        own = hashlib.blake2b(f"{document.name}\0{len(document.text)}\0".encode(), digest_size=16)
        own.update(document.text)
        self._places.append(document.place)
        self._digests += own.digest()

    def digest(self) -> str:
        """sha256 over names and texts, in the order of their places."""
        order = np.argsort(np.frombuffer(self._places, dtype=np.uint64), kind="stable")
        return hashlib.sha256(np.frombuffer(self._digests, dtype="V16")[order].tobytes()).hexdigest()
