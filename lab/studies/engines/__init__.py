"""Where the runs of a study are carried out: on this machine, or on a Ray cluster.

An engine is handed runs and yields each with its exit code when it has ended. Results lie in the runs' folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ....core.errors import BestiaryError, suggest
from ...options import Recipe

ENGINES = ("local", "ray")


@dataclass(frozen=True, eq=False)
class Job:
    """One run."""

    variant: str
    seed: int
    recipe: Recipe
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


class Engine(Protocol):
    """Carries out runs, each in a process of its own, so that one that is killed does not take the study along."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """Every run with its exit code (see `training.worker.start`), as it ends.

        When the iterator is closed early, runs that are under way are asked to save themselves, and waited for.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C; runs that were under way have saved themselves.
        """
        ...


def open_engine(name: str, *, jobs: int | None = None, progress: bool = True) -> Engine:
    """The engine called `name`.

    Args:
        name: `local` or `ray`.
        jobs: runs at once; one on this machine, as many as there are processors for on Ray, by default.
        progress: whether a run that is alone shows its progress.

    Raises:
        BestiaryError: there is no such engine, or what it needs is not installed.
    """
    if name == "local":
        from .local import Local

        return Local(jobs or 1, progress=progress)
    if name == "ray":
        from .ray import Ray

        return Ray(jobs)
    raise BestiaryError(f"There is no engine '{name}'. {suggest(name, ENGINES)}")
