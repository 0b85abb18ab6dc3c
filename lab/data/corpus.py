"""Text in: files, folders, or the sources of the Python standard library on this machine."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...core.errors import BestiaryError, Problem
from ..progress import tracked
from .options import STDLIB, DataOptions

SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", ".git", "node_modules"})


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    """Its path below the source, the same on every machine."""
    text: bytes
    """UTF-8."""

    @cached_property
    def place(self) -> float:
        """A number in [0, 1) that follows from the name alone: decides the split and the order."""
        return int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=8).digest(), "big") / 2**64


@dataclass(frozen=True)
class Corpus:
    """All texts of a run, in the order of their `place`."""

    documents: list[Document]
    left_out: list[str]
    """Files in folders that are not UTF-8 text."""

    @cached_property
    def digest(self) -> str:
        """sha256 over names and texts."""
        total = hashlib.sha256()
        for document in self.documents:
            total.update(f"{document.name}\0{len(document.text)}\0".encode())
            total.update(document.text)
        return total.hexdigest()

    @property
    def bytes(self) -> int:
        return sum(len(document.text) for document in self.documents)


def read_corpus(options: DataOptions) -> Corpus:
    """Every document of the recipe's sources; empty files are none.

    Raises:
        BestiaryError: a source is missing or unreadable, a named file is not UTF-8, or nothing is found.
    """
    found: list[tuple[str, Path, bool]] = []
    problems: list[Problem] = []
    for source in options.source:
        try:
            found += _files(source, options.suffixes)
        except BestiaryError as error:
            problems += error.problems
    if problems:
        raise BestiaryError(*problems)
    documents, left_out = _read(found)
    if not documents:
        raise BestiaryError(
            f"There is no text in {', '.join(options.source)}. Name files that are not empty, or folders with files ending in "
            f"{', '.join(options.suffixes)}; set data.suffixes for other files."
        )
    return Corpus(sorted(documents, key=lambda document: (document.place, document.name)), left_out)


def _files(source: str, suffixes: tuple[str, ...]) -> list[tuple[str, Path, bool]]:
    """Name, path, and whether the user named this very file."""
    if source == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return [(f"{STDLIB}/{name}", path, False) for name, path in _below(root, (".py",))]
    path = Path(source)
    if path.is_dir():
        return [(f"{path.name}/{name}", inner, False) for name, inner in _below(path, suffixes)]
    if not path.is_file():
        raise BestiaryError(Problem(f"there is no file or folder {source}.", "data.source", f"Name text that exists, or '{STDLIB}'."))
    return [(path.name, path, True)]


def _below(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if path.suffix in suffixes and not SKIPPED_FOLDERS.intersection(inner.parts) and path.is_file():
            yield inner.as_posix(), path


def _read(found: list[tuple[str, Path, bool]]) -> tuple[list[Document], list[str]]:
    documents, left_out = [], []
    for name, path, named in tracked(found, "reading text", total=len(found)):
        try:
            text = path.read_bytes()
            text.decode()
        except OSError as error:
            raise BestiaryError(f"{path}: this file cannot be read: {error.strerror}. Make it readable, or take it out.") from error
        except UnicodeDecodeError as error:
            if named:
                raise BestiaryError(f"{path}: this file is not UTF-8 text (byte {error.start}). Convert it, or take it out.") from error
            left_out.append(str(path))
            continue
        if text:
            documents.append(Document(name, text))
    return documents, left_out
