"""Publishing to the Hugging Face Hub: large files one by one, then one commit on top of the one that was there at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError, Problem
from .hub import HubRepository, shown_bars
from .hub_errors import explained, persistent
from .outgoing import Shard
from .push import PushReport, stale


class HubTarget:
    """A branch of a repository, which is created if there is none.

    Raises:
        BestiaryError: you may not write there; it is public and was asked to be private; or there is nothing to open a pull
            request against.
    """

    def __init__(self, repo: str, branch: str, *, private: bool | None, pull_request: bool, token: str | None, progress: bool) -> None:
        from huggingface_hub import HfApi

        self.repo, self.branch, self.pull_request, self.progress = repo, branch, pull_request, progress
        self.name, self.token = repo.rpartition("/")[2], token
        self.api = HfApi(token=token)
        with explained(f"'{repo}'"):
            self.head, self.new_branch = self._head(private)

    def read(self, path: str) -> bytes | None:
        repository = self._repository()
        if path not in {file.path for file in repository.files()}:
            return None
        return (repository.fetch([path]) / path).read_bytes()

    def commit(self, small: dict[str, bytes], shards: tuple[Shard, ...], message: str) -> PushReport:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        names = {*small, *(shard.name for shard in shards)}
        gone = stale({file.path for file in self._repository().files()}, names)
        with explained(f"'{self.repo}'"), shown_bars(self.progress):
            operations: list[Any] = [self._sent(shard) for shard in shards]
            operations += [CommitOperationAdd(name, content) for name, content in sorted(small.items())]
            operations += [CommitOperationDelete(name) for name in gone]
            if self.new_branch:
                self.api.create_branch(self.repo, branch=self.branch, revision=self.head, exist_ok=True)
            made = self.api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.branch,
                parent_commit=self.head,
                create_pr=self.pull_request,
            )
        unchanged = made.oid == self.head
        url = f"{self.api.endpoint}/{self.repo}/tree/{made.oid}"
        return PushReport(self.repo, made.oid, unchanged, tuple(sorted(names)), gone, url, made.pr_url or "")

    def _repository(self) -> HubRepository:
        return HubRepository(f"{self.repo}@{self.head}", token=self.token)

    def _head(self, private: bool | None) -> tuple[str, bool]:
        """The commit to build on, and whether the branch is yet to be made."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            found = persistent(lambda: self.api.model_info(self.repo))
        except RepositoryNotFoundError:
            if self.pull_request:
                fact = "there is no such repository to open a pull request against."
                raise BestiaryError(Problem(fact, f"'{self.repo}'", "Check the name, or leave out --pr to create it.")) from None
            self.api.create_repo(self.repo, private=private, exist_ok=True)
            found = persistent(lambda: self.api.model_info(self.repo))
        if private and not found.private:
            remedy = "Make it private on its settings page first, or push to another name."
            raise BestiaryError(Problem("this repository is public, and --private was given.", f"'{self.repo}'", remedy))
        try:
            on_branch = persistent(lambda: self.api.model_info(self.repo, revision=self.branch))
            return str(on_branch.sha), False
        except RevisionNotFoundError:
            if self.pull_request:
                raise
            return str(found.sha), True

    def _sent(self, shard: Shard) -> Any:
        """A large file whose bytes are on the Hub, seen by nobody until the commit; one that is there already is not sent."""
        from huggingface_hub import CommitOperationAdd

        start = self.head if self.new_branch else self.branch
        with shard.local() as path:
            operation = CommitOperationAdd(shard.name, str(path))
            self.api.preupload_lfs_files(self.repo, [operation], revision=start, create_pr=self.pull_request)
            if operation._upload_mode != "lfs":  # the Hub keeps it in git: its bytes go with the commit
                operation.path_or_fileobj = Path(path).read_bytes()
        return operation
