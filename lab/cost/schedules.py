"""What a pipeline schedule keeps in memory: which stages a rank holds, and how many micro-batches are in flight in each.

With P stages in line, stage s has sent `P - s` micro-batches ahead when the first gradient arrives (1F1B, and ZB1P, which
delays weight gradients within the same memory). DualPipe's rank r holds the stages r and P - 1 - r, fed from both ends: the sum is
P + 1, as in DeepSeek-V3's report, table 2. DualPipeV folds a line of 2 R stages over R ranks and holds 2 R + 1 halves.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import BestiaryError, suggest


@dataclass(frozen=True)
class Schedule:
    """A schedule, as far as memory knows it."""

    name: str
    folds: int = 1
    """Stages in line per pipeline rank."""
    copies: int = 1
    """Ranks that hold the same stage."""
    even: bool = False
    """Whether the number of ranks must be even."""

    def stages(self, ranks: int) -> int:
        """Stages in line."""
        return ranks * self.folds

    def held(self, rank: int, ranks: int) -> tuple[int, ...]:
        """The stages of a rank."""
        last = self.stages(ranks) - 1
        return (rank,) if self.folds == self.copies == 1 else (rank, last - rank)

    def in_flight(self, stage: int, ranks: int, micro_batches: int | None) -> int:
        """Micro-batches whose activations a stage keeps at most; of so many in a step (a full pipeline when None)."""
        full = self.stages(ranks) - stage
        return full if micro_batches is None else min(full, -(-micro_batches // self.copies))


SCHEDULES = {
    schedule.name: schedule
    for schedule in (Schedule("1f1b"), Schedule("zb1p"), Schedule("dualpipe", copies=2, even=True), Schedule("dualpipe-v", folds=2))
}


def find_schedule(name: str) -> Schedule:
    """The schedule called `name`.

    Raises:
        BestiaryError: it is unknown; names the nearest.
    """
    if name not in SCHEDULES:
        raise BestiaryError(f"There is no schedule '{name}'. {suggest(name, SCHEDULES)}")
    return SCHEDULES[name]
