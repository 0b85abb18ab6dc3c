"""What a Hub holds: repositories, their commits and branches, and files by the checksum of their content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LFS = (".safetensors", ".bin", ".gguf", ".pt")
"""Endings of the files that are stored by their sha256; others are stored in git, by its sha1."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Blob:
    """The content of one file."""

    sha256: str
    sha1: str
    """As git counts it, with its header."""
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.sha1


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    id: str
    parent: str
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """One repository."""

    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    """Pull requests: ref to commit."""

    def commit(self, revision: str) -> Commit | None:
        named = self.branches | self.tags | self.requests
        return self.commits.get(named.get(revision, revision))

    def add(self, branch: str, files: Mapping[str, Blob], title: str) -> Commit:
        refs = self.requests if branch.startswith("refs/pr/") else self.branches
        parent = refs.get(branch, "")
        text = f"{self.id}\n{branch}\n{parent}\n{len(self.commits)}\n{sorted(files.items())!r}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, dict(sorted(files.items())))
        self.commits[commit.id] = commit
        refs[branch] = commit.id
        return commit


class Store:
    """All repositories, with their files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()
        (folder / "blobs").mkdir(parents=True, exist_ok=True)

    def create(self, repo: str, *, private: bool = False) -> Repo:
        made = self.repos[repo] = Repo(repo, private)
        made.add("main", {}, "initial commit")
        return made

    def path(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def keep(self, stream: Readable, size: int, *, lfs: bool) -> Blob:
        """Stores `size` bytes of a stream; fewer raise a `ConnectionError` and leave nothing."""
        whole, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
        part = self.folder / f"{threading.get_ident()}.part"
        with part.open("wb") as file:
            left = size
            while left:
                if not (data := stream.read(min(left, 1 << 20))):
                    raise ConnectionError(f"{left} bytes of {size} never came")
                left -= len(data)
                for sink in (whole.update, git.update, file.write):
                    sink(data)
        part.rename(self.path(whole.hexdigest()))
        return Blob(whole.hexdigest(), git.hexdigest(), size, lfs)

    def keep_path(self, name: str, path: Path) -> Blob:
        with path.open("rb") as stream:
            return self.keep(stream, path.stat().st_size, lfs=name.endswith(LFS))

    def walk(self) -> Iterator[Repo]:
        yield from self.repos.values()
