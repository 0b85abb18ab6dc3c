"""Publishing to a `file:` registry: content by its checksum, then a snapshot of links, and the revision last."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..core.errors import BestiaryError, Problem
from .file_registry import FileRegistry, resolved
from .hub_errors import explained
from .outgoing import Shard
from .push import PushReport, stale

LOCK = ".lock"


class FileTarget:
    """A revision of a registry, which is created if there is none.

    Raises:
        BestiaryError: the folder holds something else, or the revision is no name of a branch.
    """

    def __init__(self, reference: str, folder: Path, revision: str) -> None:
        self.reference, self.folder, self.revision, self.name = reference, folder, revision, folder.resolve().name
        if folder.exists() and not (folder / "refs").is_dir() and not (folder.is_dir() and not any(folder.iterdir())):
            raise BestiaryError(f"{reference}: {folder} holds files that are no registry. Give another folder, or an empty one.")
        path = PurePosixPath(revision)
        if path.is_absolute() or ".." in path.parts or not path.parts or any(part.startswith(".") for part in path.parts):
            raise BestiaryError(f"{reference}: '{revision}' is no name for a revision. Give one like main or v1.")
        self.head = resolved(folder, revision)

    def read(self, path: str) -> bytes | None:
        found = self.folder / "snapshots" / self.head / path
        return found.read_bytes() if self.head and found.is_file() else None

    def commit(self, small: dict[str, bytes], shards: tuple[Shard, ...], message: str) -> PushReport:
        with explained(self.reference), self._alone():
            sent = {}
            for shard in shards:
                with shard.local() as path:
                    sent[shard.name] = self._keep(path)
            sent |= {name: self._keep(content) for name, content in small.items()}
            held = self._held()
            gone = stale(set(held), set(sent))
            files = {name: blob for name, blob in sorted((held | sent).items()) if name not in gone}
            names = tuple(sorted(sent))
            if files == held:
                return PushReport(self.reference, self.head, True, names, ())
            commit = hashlib.sha1(f"{self.head}\n{message}\n{sorted(files.items())}".encode()).hexdigest()
            self._snapshot(commit, files)
            self._check_head()
            _write(self.folder / "refs" / self.revision, commit.encode())
            return PushReport(self.reference, commit, False, names, gone)

    def _held(self) -> dict[str, str]:
        """Name to checksum of what the revision holds."""
        if not self.head:
            return {}
        return {file.path: file.sha256 for file in FileRegistry(self.reference, self.folder, self.head).files()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the registry against other pushes; a process that dies lets go of it."""
        for name in ("refs", "snapshots", "blobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fact, remedy = "another push to this registry is at work.", "Run the command again when it has ended."
                raise BestiaryError(Problem(fact, self.reference, remedy)) from None
            self._check_head()
            for part in (self.folder / "blobs").glob(".*.part"):
                part.unlink()
            yield

    def _check_head(self) -> None:
        if resolved(self.folder, self.revision) != self.head:
            fact = f"someone else pushed to '{self.revision}' since this began, and nothing was changed."
            raise BestiaryError(Problem(fact, self.reference, "Look at that commit, then run the command again."))

    def _keep(self, content: Path | bytes) -> str:
        """Stores a content; its checksum."""
        if isinstance(content, bytes):
            checksum = hashlib.sha256(content).hexdigest()
        else:
            with content.open("rb") as stream:
                checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        if not (blob := self.folder / "blobs" / checksum).exists():
            _write(blob, content)
        return checksum

    def _snapshot(self, commit: str, files: dict[str, str]) -> None:
        folder = self.folder / "snapshots" / commit
        draft = folder.with_name(f".{commit}.part")
        shutil.rmtree(draft, ignore_errors=True)
        for name, checksum in files.items():
            link = draft / name
            link.parent.mkdir(parents=True, exist_ok=True)
            up = "../" * (len(PurePosixPath(name).parts) + 1)
            link.symlink_to(f"{up}blobs/{checksum}")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)


def _write(path: Path, content: Path | bytes) -> None:
    """Writes a file beside its place, makes sure that the disk has it, and moves it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 22)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
