"""What a pipeline schedule is made of: which rank computes what, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A pass of one micro-batch through one stage."""

    FORWARD = "F"
    BACKWARD = "B"
    """Input and weight gradients together."""
    INPUT = "I"
    """Input gradients only."""
    WEIGHT = "W"
    """The weight gradients that an input pass left."""


@dataclass(frozen=True, slots=True)
class Action:
    """One pass."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward and a backward pass that are computed in turns, each during the exchanges of the other."""

    forward: Action
    backward: Action
    """Of kind `BACKWARD` or `INPUT`."""

    def __str__(self) -> str:
        return f"({self.forward};{self.backward})"


Row = tuple[Action | Pair, ...]
"""What one rank does, in order."""


@dataclass(frozen=True)
class Schedule:
    """The table of one optimizer step."""

    name: str
    ranks: int
    microbatches: int
    """Of a step, in all chains together."""
    chains: tuple[tuple[int, ...], ...]
    """Stages in the order in which data flows. DualPipe has two chains with half of the micro-batches each, numbered from 0; in it stage
    `P + j` is the second copy of stage `j`."""
    rank_of: tuple[int, ...]
    """The rank of each stage."""
    rows: tuple[Row, ...]
    """By rank."""

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that lie on a rank."""
        return tuple(stage for stage, where in enumerate(self.rank_of) if where == rank)
