"""A `file:` registry: a folder with the commits of one model, for those who have no account or no network.

It is laid out as the client's cache lays out a repository:

    refs/main                       the id of a commit, as text
    snapshots/<commit>/...          its files, as links to
    blobs/<sha256>                  their content
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..core.errors import BestiaryError, suggest
from .repository import RemoteFile, copied, pread

COMMIT = re.compile(r"[0-9a-f]{40}")


class FileRegistry:
    """One commit of a `file:` registry.

    Raises:
        BestiaryError: the folder is none, or has no such revision.
    """

    def __init__(self, reference: str, folder: Path, revision: str = "main") -> None:
        self.reference, self.folder, self.name = reference, folder, folder.resolve().name
        if not (folder / "refs").is_dir():
            remedy = f"Write one with `bestiary push SOURCE file:{folder}`, or give a plain folder without `file:`."
            raise BestiaryError(f"{reference}: {folder} is no registry. {remedy}")
        self.commit = resolved(folder, revision)
        if not self.commit or not self.snapshot.is_dir():
            known = suggest(
                revision, sorted(p.relative_to(folder / "refs").as_posix() for p in (folder / "refs").rglob("*") if p.is_file())
            )
            raise BestiaryError(f"{reference}: there is no revision '{revision}'. {known}")

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def files(self) -> list[RemoteFile]:
        found = [path for path in sorted(self.snapshot.rglob("*")) if path.is_file()]
        return [RemoteFile(p.relative_to(self.snapshot).as_posix(), p.stat().st_size, sha256=p.resolve().name) for p in found]

    def fetch(self, paths: Iterable[str], *, to: Path | None = None, progress: bool = False) -> Path:
        return self.snapshot if to is None else copied(self.snapshot, paths, to)

    def read(self, path: str, start: int, stop: int) -> bytes:
        return pread(self.snapshot / path, start, stop)


def resolved(folder: Path, revision: str) -> str:
    """The commit that a revision of a registry names; empty where there is none."""
    if COMMIT.fullmatch(revision):
        return revision
    ref = folder / "refs" / revision
    if ".." in Path(revision).parts or not ref.is_file():
        return ""
    text = ref.read_text(encoding="utf-8").strip()
    return text if COMMIT.fullmatch(text) else ""
