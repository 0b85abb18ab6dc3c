"""What a pipeline schedule is made of: which rank computes what, in which order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from ....core.errors import BestiaryError

ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
PAIR = re.compile(r"\(([^;()]+);([^;()]+)\)")


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


def parse(text: str) -> Action | Pair:
    """An entry of a row from its text: stage, kind, micro-batch.

    Raises:
        BestiaryError: another text.

    >>> str(parse("3F5")), str(parse("(0F3;7B1)"))
    ('3F5', '(0F3;7B1)')
    """
    if pair := PAIR.fullmatch(text):
        forward, backward = parse(pair[1]), parse(pair[2])
        if (
            isinstance(forward, Action)
            and isinstance(backward, Action)
            and forward.kind == Kind.FORWARD
            and backward.kind in (Kind.BACKWARD, Kind.INPUT)
        ):
            return Pair(forward, backward)
    elif action := ACTION.fullmatch(text):
        return Action(int(action[1]), Kind(action[2]), int(action[3]))
    raise BestiaryError(f"'{text}' is no pass of a schedule. Write stage, F, B, I or W, and micro-batch, as in 3F5; a pair as (0F3;7B1).")


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

    def first(self, stage: int) -> bool:
        """Whether data enters here."""
        return any(chain[0] == stage for chain in self.chains)

    def last(self, stage: int) -> bool:
        """Whether the loss is computed here."""
        return any(chain[-1] == stage for chain in self.chains)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, row)) for row in self.rows)
