"""Publishing weights: a folder, a run or a model becomes one commit of a Hub repository or of a `file:` registry."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..core.errors import BestiaryError, Problem
from .card import CARD, is_generated, make_card
from .outgoing import Outgoing, Shard, from_folder, from_model
from .repository import FILE, looks_like_hub
from .staging import OURS

if TYPE_CHECKING:
    import torch

    from ..core.backbone import CausalLM


@dataclass(frozen=True)
class PushReport:
    """What was published."""

    target: str
    commit: str
    """The commit that now holds it; that of before when nothing had changed."""
    unchanged: bool
    """Whether everything was there already, so that no commit was made."""
    files: tuple[str, ...]
    """All files that the source has."""
    removed: tuple[str, ...]
    """Files of earlier weights that the commit took away."""
    url: str = ""
    """Its page, on the Hub."""
    pull_request: str = ""
    """Page of the pull request, if one was opened."""

    def __str__(self) -> str:
        if self.unchanged:
            return f"{self.target}: nothing to push, commit {self.commit[:12]} holds all {len(self.files)} files"
        where = self.pull_request or self.url or self.target
        gone = f", {len(self.removed)} of before removed" if self.removed else ""
        return f"{where}: {len(self.files)} files at commit {self.commit[:12]}{gone}"


class Target(Protocol):
    """Where one commit goes; nothing of it is seen before it is complete."""

    name: str
    """What the model is called there."""

    def read(self, path: str) -> bytes | None:
        """A small file as it is there now; None when there is none."""
        ...

    def commit(self, small: dict[str, bytes], shards: tuple[Shard, ...], message: str) -> PushReport:
        """Publishes these files and removes those of earlier weights; other files stay.

        Raises:
            BestiaryError: someone else committed in between, or it cannot be done; what is there is as it was.
        """
        ...


def push(
    source: CausalLM | str | Path,
    target: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    pull_request: bool = False,
    message: str | None = None,
    license: str = "",
    base_model: str = "",
    max_shard_size: int | str = "4GB",
    dtype: torch.dtype | None = None,
    token: str | None = None,
    locked: bool = False,
    progress: bool = False,
) -> PushReport:
    """Publishes weights with their configs, tokenizer, `bestiary.json` and a model card, as one commit at the end.

    Everything is checked before anything is sent. A push that was cut off leaves the repository as it was; repeated, it goes
    on after the files that had arrived. A repository that holds all of it already gets no commit.

    Args:
        source: a folder of weights, the folder of a training run, or a model, which is written and sent one shard at a time.
        target: `organisation/name` on the Hub, which is created if need be, or `file:path`, a registry on disk.
        private: whether a repository that is created is private; None for what its organisation has as default.
        revision: a branch, which is created if need be; `main` by default.
        pull_request: open a pull request instead of changing the branch.
        message: of the commit.
        license: identifier for the card, such as `mit`; by default that of `base_model`.
        base_model: the repository on the Hub that the weights were made from.
        max_shard_size: of a model's files, as for `save`; those of a folder are sent as they are.
        dtype: of a model's files, as for `save`.
        token: for the Hub; by default the one that you are logged in with. It is never written anywhere.
        locked: refuse other versions of the plugins than those that `bestiary.json` names, instead of warning.
        progress: show bars.

    Raises:
        BestiaryError: the source is damaged or incomplete, you may not write there, or someone else committed meanwhile.
    """
    if isinstance(source, str | Path):
        outgoing = from_folder(Path(source).expanduser(), locked=locked)
    else:
        outgoing = from_model(source, max_shard_size=max_shard_size, dtype=dtype)
    if base_model and not license:
        from .hub import license_of

        license = license_of(base_model, token)
    goal = _target(target, private, revision, pull_request, token, progress)
    card = _card(outgoing, target, goal, license, base_model)
    return goal.commit(outgoing.small | card, outgoing.shards, message or f"Push {outgoing.manifest.name}")


def stale(held: set[str], sent: set[str]) -> tuple[str, ...]:
    """Files of earlier weights, which would contradict those that are sent."""
    return tuple(sorted(name for name in held - sent if any(fnmatch(name, pattern) for pattern in OURS)))


def _target(target: str, private: bool | None, revision: str | None, pull_request: bool, token: str | None, progress: bool) -> Target:
    name, _, branch = target.partition("@")
    if branch and revision and branch != revision:
        raise BestiaryError(f"'{target}' and --revision {revision} name two branches. Give one of them.")
    branch = revision or branch or "main"
    if target.startswith(FILE):
        from .file_commit import FileTarget

        if pull_request or private:
            option = "--pr" if pull_request else "--private"
            raise BestiaryError(f"{option}: a registry on disk knows no such thing. Leave it out; the folder's permissions protect it.")
        return FileTarget(target, Path(name.removeprefix(FILE)).expanduser(), branch)
    if not looks_like_hub(name):
        fact = f"'{target}' is neither a repository of the Hub nor a registry."
        raise BestiaryError(Problem(fact, remedy=f"Give organisation/name, or file:{target} for a registry on disk."))
    from .hub_commit import HubTarget

    return HubTarget(name, branch, private=private, pull_request=pull_request, token=token, progress=progress)


def _card(outgoing: Outgoing, target: str, goal: Target, license: str, base_model: str) -> dict[str, bytes]:
    """A new card, unless the source has one or somebody wrote the one that is there."""
    there = None if CARD in outgoing.small else goal.read(CARD)
    if CARD in outgoing.small or (there is not None and not is_generated(there)):
        return {}
    text = make_card(
        outgoing.manifest,
        name=goal.name,
        reference=target.partition("@")[0],
        files=set(outgoing.small),
        figures=outgoing.figures,
        license=license,
        base_model=base_model,
    )
    return {CARD: text.encode()}
