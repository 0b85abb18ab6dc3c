"""What ranks keep while a table is carried out; the order of a rank's row says it, times do not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .actions import Action, Kind, Row, Schedule
from .check import parts

Each = float | Sequence[float]
"""One number, or one for every stage."""


@dataclass(frozen=True)
class Bytes:
    """Memory of a stage, in bytes."""

    activations: Each = 0.0
    """Of one micro-batch, from its forward pass on."""
    for_weights: Each | None = None
    """What of these is still there after a pass for input gradients alone, until the weight gradients are computed; None for all."""
    states: Each = 0.0
    """Parameters, gradients and optimizer states."""


def in_flight(row: Row) -> int:
    """Most micro-batches, summed over the stages of a rank, of which activations are kept at once; weight gradients need them too."""
    change = {Kind.FORWARD: 1, Kind.INPUT: 0, Kind.BACKWARD: -1, Kind.WEIGHT: -1}
    return round(_peak(row, lambda action: change[action.kind]))


def waiting_weights(row: Row) -> int:
    """Most sets of weight gradients that wait at once."""
    change = {Kind.FORWARD: 0, Kind.INPUT: 1, Kind.BACKWARD: 0, Kind.WEIGHT: -1}
    return round(_peak(row, lambda action: change[action.kind]))


def peak_bytes(schedule: Schedule, memory: Bytes) -> tuple[float, ...]:
    """Most bytes that each rank holds at once."""
    whole = memory.activations
    rest = whole if memory.for_weights is None else memory.for_weights

    def change(action: Action) -> float:
        kept, later = at(whole, action.stage), at(rest, action.stage)
        return {Kind.FORWARD: kept, Kind.BACKWARD: -kept, Kind.INPUT: later - kept, Kind.WEIGHT: -later}[action.kind]

    states = [sum(at(memory.states, stage) for stage in schedule.stages_of(rank)) for rank in range(schedule.ranks)]
    return tuple(state + _peak(row, change) for state, row in zip(states, schedule.rows, strict=True))


def at(each: Each, stage: int) -> float:
    """The number of a stage."""
    return float(each) if isinstance(each, (int, float)) else float(each[stage])


def _peak(row: Row, change: Callable[[Action], float]) -> float:
    """The highest sum; what an entry frees is free at its end."""
    held = most = 0.0
    for item in row:
        changes = [change(part) for part in parts(item)]
        held += sum(each for each in changes if each > 0)
        most = max(most, held)
        held += sum(each for each in changes if each < 0)
    return most
