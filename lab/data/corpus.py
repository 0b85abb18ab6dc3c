"""All texts of a run, streamed: files, folders, datasets, or the sources of the Python standard library on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import BestiaryError, Problem
from .document import Document
from .files import PARQUET, File, read_file
from .hub import HubSource
from .options import HF, STDLIB, DataOptions

SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", ".git", "node_modules"})
SETTLED = 2.0
"""Seconds after which a file's times tell whether it was changed again."""


class Source(Protocol):
    """Where documents come from."""

    @property
    def local(self) -> bool:
        """Whether it can be read twice without a network."""
        ...

    @property
    def count(self) -> int | None:
        """Documents in it, where that is known without reading it."""
        ...

    @property
    def files(self) -> list[File]:
        """Local files that decide what it holds."""
        ...

    @property
    def identity(self) -> list[Any]:
        """Equal for equal content, without reading it."""
        ...

    def documents(self, left_out: list[str]) -> Iterator[Document]:
        """Its texts, always in the same order; files that are no text are added to `left_out`."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A file, or the files of a folder."""

    files: list[File]
    field: str
    local: bool = True

    @property
    def count(self) -> int | None:
        counts = [file.count for file in self.files]
        return None if None in counts else sum(number or 0 for number in counts)

    @property
    def identity(self) -> list[Any]:
        return [file.identity for file in self.files]

    def documents(self, left_out: list[str]) -> Iterator[Document]:
        for file in self.files:
            yield from read_file(file, self.field, left_out)


@dataclass(frozen=True)
class Corpus:
    """The sources of a recipe, each read up to the recipe's limits."""

    sources: list[Source]
    options: DataOptions
    left_out: list[str] = field(default_factory=list)
    """Files in folders that are not UTF-8 text, after reading."""

    @property
    def local(self) -> bool:
        return all(source.local for source in self.sources)

    @property
    def count(self) -> int | None:
        """Documents at most, where that is known without reading them."""
        counts = [source.count for source in self.sources]
        limit = self.options.limit_documents
        if limit is not None:
            return sum(limit if number is None else min(limit, number) for number in counts)
        return None if None in counts else sum(number or 0 for number in counts)

    @property
    def settled(self) -> bool:
        """Whether no file was changed so recently that another change could leave its times as they are."""
        latest = [max(file.identity[3:]) for source in self.sources for file in source.files]
        return max(latest, default=0) < (time.time() - SETTLED) * 1e9

    @property
    def identity(self) -> str:
        """sha256 of what tells the content without reading it: names, sizes and times of files, commits of datasets."""
        options = self.options
        parts = [options.text_field, options.limit_documents, options.limit_bytes, [source.identity for source in self.sources]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        """Every document, one at a time; empty ones are none."""
        self.left_out.clear()
        for source in self.sources:
            yield from _limited(source.documents(self.left_out), self.options)


def open_corpus(options: DataOptions) -> Corpus:
    """The sources of a recipe; nothing is read yet.

    Raises:
        BestiaryError: with everything that is missing.
    """
    problems = source_problems(options)
    if problems:
        raise BestiaryError(*problems)
    labels: Counter[str] = Counter()
    return Corpus([_source(source, options, labels) for source in options.source], options)


def source_problems(options: DataOptions) -> list[Problem]:
    """What is wrong with the sources before any is read."""
    problems = []
    for source in options.source:
        path = Path(source.removeprefix(HF))
        is_path = source != STDLIB and (not source.startswith(HF) or path.is_absolute())
        needs = "datasets" if source.startswith(HF) else "pyarrow" if source.endswith(PARQUET) else ""
        if is_path and not path.exists():
            problems.append(Problem(f"there is no file or folder {path}.", "data.source", f"Name text that exists, or '{STDLIB}'."))
        if needs and find_spec(needs) is None:
            problems.append(
                Problem(f"'{source}' is read by {needs}, which is not installed.", "data.source", "Run: pip install bestiary[data]")
            )
    return problems


def _source(source: str, options: DataOptions, labels: Counter[str]) -> Source:
    """One source; where several would give their documents equal names, all but the first are numbered."""
    if source.startswith(HF):
        reference, part = source.removeprefix(HF), options.hf
        name = Path(reference).name if reference.startswith("/") else reference.partition("@")[0]
        label = _unique(f"{HF}{name}/{part.config or 'default'}/{part.split}", labels)
        return HubSource(reference, label, part, options.text_field)
    if source == STDLIB:
        root, suffixes, label = Path(sysconfig.get_paths()["stdlib"]), (".py",), _unique(STDLIB, labels)
    else:
        root, suffixes, label = Path(source), options.suffixes, _unique(Path(source).name, labels)
    if root.is_file():
        return FileSource([File(label, root, named=True)], options.text_field)
    return FileSource([File(f"{label}/{name}", path, named=False) for name, path in _below(root, suffixes)], options.text_field)


def _unique(label: str, labels: Counter[str]) -> str:
    labels[label] += 1
    return label if labels[label] == 1 else f"{label}({labels[label]})"


def _below(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files in a folder, always in the same order; links to folders are not followed."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(set(inner) - SKIPPED_FOLDERS)
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(suffixes)):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path


def _limited(documents: Iterator[Document], options: DataOptions) -> Iterator[Document]:
    size = 0
    for number, document in enumerate(documents, 1):
        yield document
        size += len(document.text)
        if number == options.limit_documents or (options.limit_bytes is not None and size >= options.limit_bytes):
            return
