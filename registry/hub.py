"""Repositories of the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError
from .hub_errors import explained, persistent
from .repository import RemoteFile


class HubRepository:
    """`organisation/name[@revision]` at one commit.

    Raises:
        BestiaryError: there is no such repository or revision, or neither Hub nor cache knows the revision.
    """

    def __init__(self, reference: str, *, offline: bool = False, token: str | None = None) -> None:
        from huggingface_hub import HfApi, constants

        self.reference, self.offline = reference, offline or constants.HF_HUB_OFFLINE
        self.id, _, revision = reference.partition("@")
        self.name = self.id.rpartition("/")[2]
        self.api, self.token = HfApi(token=token), token
        with explained(f"'{reference}'"):
            found = persistent(lambda: self.api.resolve_revision(self.id, revision=revision or None, local_files_only=self.offline))
            self.commit = found.resolved

    def files(self) -> list[RemoteFile]:
        return list(self._files.values())

    @cached_property
    def _files(self) -> dict[str, RemoteFile]:
        if self.offline:
            folder = self._cached()
            return {f.path: f for f in _listed(folder)} if folder else {}
        from huggingface_hub.hf_api import RepoFile

        with explained(f"'{self.reference}'"):
            tree = list(self.api.list_repo_tree(self.id, recursive=True, revision=self.commit))
        found = {}
        for file in tree:
            if isinstance(file, RepoFile):
                sums = {"sha256": file.lfs.sha256} if file.lfs else {"sha1": file.blob_id}
                found[file.path] = RemoteFile(file.path, file.size, **sums)
        return found

    def fetch(self, paths: Iterable[str], *, to: Path | None = None, progress: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        wanted = [glob.escape(path) for path in paths]
        if self.offline:
            self._check_cached(paths)
        options: dict[str, Any] = {"revision": self.commit, "allow_patterns": wanted, "local_files_only": self.offline}
        with explained(f"'{self.reference}'"), shown_bars(progress):
            return Path(snapshot_download(self.id, local_dir=to, token=self.token, **options))

    def read(self, path: str, start: int, stop: int) -> bytes:
        if self.offline and (folder := self._cached()) and (folder / path).is_file():
            from .repository import pread

            return pread(folder / path, start, stop)
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        url = hf_hub_url(self.id, path, revision=self.commit)
        with explained(f"'{self.reference}': {path}"):
            reply = http_backoff(
                "GET", url, headers={**build_hf_headers(token=self.token), "Range": f"bytes={start}-{stop - 1}"}, timeout=60
            )
            hf_raise_for_status(reply)
        if reply.status_code != 206 or len(reply.content) != stop - start:
            fact = f"asked for bytes {start:,} to {stop:,}, and {len(reply.content):,} came with HTTP {reply.status_code}"
            raise BestiaryError(
                f"'{self.reference}': {path}: {fact}. The file is damaged, or the server knows no ranges: pull whole files."
            )
        return reply.content

    def _cached(self) -> Path | None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.id, repo_type="model") / "snapshots" / self.commit
        return folder if folder.is_dir() else None

    def _check_cached(self, paths: Iterable[str]) -> None:
        folder = self._cached()
        missing = [path for path in paths if folder is None or not (folder / path).is_file()]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise BestiaryError(f"'{self.reference}': not in the cache: {shown}. Pull it while online: bestiary pull {self.reference}")


def fetch(reference: str, filename: str) -> Path | None:
    """The local copy of one file of `organisation/name[@revision]`; None when the repository does not hold it.

    Raises:
        BestiaryError: the repository or revision is unknown, or the Hub cannot be reached and the file is not cached.
    """
    repository = HubRepository(reference)
    if not any(file.path == filename for file in repository.files()):
        return None
    return repository.fetch([filename]) / filename


@dataclass(frozen=True)
class Found:
    """A repository that a search found."""

    id: str
    downloads: int
    """In the last month."""
    likes: int
    library: str
    private: bool


def search(query: str, *, limit: int = 20) -> list[Found]:
    """Repositories of the Hub with models, most downloaded first.

    Raises:
        BestiaryError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with explained(f"'{query}' on the Hub"):
        models = list(HfApi().list_models(search=query, limit=limit, sort="downloads"))
    return [Found(m.id, m.downloads or 0, m.likes or 0, m.library_name or "", bool(m.private)) for m in models]


def _listed(folder: Path) -> Iterator[RemoteFile]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size)


def license_of(repo: str, token: str | None = None) -> str:
    """The licence that a repository's card states; empty when it states none.

    Raises:
        BestiaryError: there is no such repository.
    """
    from huggingface_hub import HfApi

    with explained(f"'{repo}'"):
        card = persistent(lambda: HfApi(token=token).model_info(repo)).card_data
    return str((card.license if card else "") or "")


@contextmanager
def shown_bars(shown: bool) -> Iterator[None]:
    """The client's progress bars, or none."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
