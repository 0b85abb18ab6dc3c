"""Where weights lie: a repository of the Hub, of a `file:` registry, or a plain folder, all asked the same questions.

    organisation/name[@revision]        the Hub
    file:path[@revision]                a folder that `bestiary push` wrote
    path                                a folder with a checkpoint

A revision is resolved once, when the repository is opened; everything after that speaks of one commit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.errors import BestiaryError

FILE = "file:"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size: int
    sha256: str = ""
    """Checksum that the repository states, where it is a large file; else empty."""
    sha1: str = ""
    """Checksum as git counts it, that the Hub states for small files; else empty."""


class Repository(Protocol):
    """Files under one name, at one commit."""

    reference: str
    """As it was given."""
    name: str
    """What the model is called where its files do not say."""
    commit: str
    """Empty for a plain folder."""

    def files(self) -> list[RemoteFile]:
        """What it holds; offline, what of it is here."""
        ...

    def fetch(self, paths: Iterable[str], *, to: Path | None = None, progress: bool = False) -> Path:
        """The folder in which these files lie after they were fetched: the cache's, or `to`."""
        ...

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file, without the rest of it."""
        ...


def open_repository(reference: str | Path, *, offline: bool = False, token: str | None = None) -> Repository:
    """The repository that a reference names, at the commit that its revision names now.

    Args:
        reference: see above.
        offline: ask nothing of the network, and take what is in the cache.
        token: for the Hub; by default the one that you are logged in with.

    Raises:
        BestiaryError: it does not exist, has no such revision, or cannot be reached.
    """
    text = str(reference)
    if text.startswith(FILE):
        from .file_registry import FileRegistry

        path, _, revision = text.removeprefix(FILE).partition("@")
        return FileRegistry(text, Path(path).expanduser(), revision or "main")
    path = Path(text).expanduser()
    if path.is_dir():
        return Folder(text, path)
    if path.exists():
        raise BestiaryError(f"{text}: this is a file. Give the folder that holds the weights.")
    if not looks_like_hub(text):
        raise BestiaryError(f"There is no folder {text}. Give a folder of weights, or a Hub id like organisation/name.")
    from .hub import HubRepository

    return HubRepository(text, offline=offline, token=token)


def looks_like_hub(reference: str) -> bool:
    """Whether a reference has the form `organisation/name[@revision]`."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", reference)) and not reference.startswith((".", "~"))


class Folder:
    """A plain folder; its files are where they are."""

    commit = ""

    def __init__(self, reference: str, path: Path) -> None:
        self.reference, self.path, self.name = reference, path, path.resolve().name

    def files(self) -> list[RemoteFile]:
        found = [path for path in self.path.rglob("*") if path.is_file()]
        return [RemoteFile(path.relative_to(self.path).as_posix(), path.stat().st_size) for path in sorted(found)]

    def fetch(self, paths: Iterable[str], *, to: Path | None = None, progress: bool = False) -> Path:
        return self.path if to is None else copied(self.path, paths, to)

    def read(self, path: str, start: int, stop: int) -> bytes:
        return pread(self.path / path, start, stop)


def pread(file: Path, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a local file.

    Raises:
        BestiaryError: it has fewer, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            data = os.pread(stream.fileno(), stop - start, start)
    except OSError as error:
        raise BestiaryError(f"{file}: this file cannot be read: {error.strerror}.") from error
    if len(data) != stop - start:
        raise BestiaryError(f"{file}: it ends before byte {stop:,}. Fetch it again.")
    return data


def copied(source: Path, paths: Iterable[str], to: Path) -> Path:
    """`to`, after copies of these files of `source` were put there, each whole or not at all; equal sizes are left as they are."""
    import shutil

    from .hub_errors import explained

    with explained(str(to)):
        for name in paths:
            target = to / name
            if target.is_file() and target.stat().st_size == (source / name).stat().st_size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source / name, part)
            part.replace(target)
    return to
