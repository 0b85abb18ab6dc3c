"""What a table takes: start and end of every pass, idle time, memory. No processes, no tensors.

A rank runs its row in order; a pass begins when the rank is free and what it needs has arrived. Two figures are called *bubble* in the
field, and both are given: *wall* idle is the makespan less the time that a rank computes, *span* idle counts from a rank's own first to its
own last pass, as zero-bubble papers do, which holds where ranks may begin their optimizer step at different times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ....core.errors import BestiaryError
from .actions import Action, Kind, Pair, Schedule
from .check import needs, parts


@dataclass(frozen=True)
class Times:
    """How long passes of one stage take, in any unit; each is one number, or one for every stage."""

    forward: float | Sequence[float] = 1.0
    input: float | Sequence[float] = 1.0
    """Gradients of the input."""
    weight: float | Sequence[float] = 1.0
    """Gradients of the weights."""
    overlap: float = 1.0
    """An overlapped pair, as a part of its two passes one after the other; 1 overlaps nothing, `(F&B) / (F + B)` in papers."""
    latency: float = 0.0
    """From the end of a pass on one rank to its result on another."""
    early: bool = False
    """Whether a pair sends the forward pass's result when that pass alone would have ended, instead of at the pair's end."""

    def of(self, item: Action | Pair) -> float:
        """The time of an entry."""
        if isinstance(item, Pair):
            return self.overlap * (self.of(item.forward) + self.of(item.backward))
        at = {Kind.FORWARD: (self.forward,), Kind.INPUT: (self.input,), Kind.WEIGHT: (self.weight,)}
        return sum(_at(time, item.stage) for time in at.get(item.kind, (self.input, self.weight)))

    def checked(self, schedule: Schedule) -> Times:
        """Itself.

        Raises:
            BestiaryError: a time is negative, or there is not one for every stage.
        """
        for name in ("forward", "input", "weight"):
            given = getattr(self, name)
            each = [given] if isinstance(given, (int, float)) else list(given)
            if any(time < 0 for time in each):
                raise BestiaryError(f"the time of {name} passes is {min(each)}; expected 0 or more.")
            if len(each) not in (1, len(schedule.rank_of)):
                raise BestiaryError(f"{len(each)} times of {name} passes for {len(schedule.rank_of)} stages; give one, or one for each.")
        if self.latency < 0 or self.overlap <= 0:
            raise BestiaryError(f"latency {self.latency} and overlap {self.overlap}: expected 0 or more, and more than 0.")
        return self


@dataclass(frozen=True)
class Span:
    """An entry of a row in time."""

    item: Action | Pair
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """A schedule in time."""

    schedule: Schedule
    times: Times
    rows: tuple[tuple[Span, ...], ...] = field(repr=False)

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max(row[-1].end for row in self.rows)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Computing time of each rank."""
        return tuple(sum(span.end - span.start for span in row) for row in self.rows)

    @property
    def wall_idle(self) -> tuple[float, ...]:
        """Of each rank, of the whole makespan."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def span_idle(self) -> tuple[float, ...]:
        """Of each rank, between its own first start and last end."""
        return tuple(row[-1].end - row[0].start - busy for row, busy in zip(self.rows, self.busy, strict=True))

    @property
    def bubble(self) -> float:
        """Mean wall idle as a part of the makespan."""
        return sum(self.wall_idle) / len(self.rows) / self.makespan

    @cached_property
    def peaks(self) -> tuple[int, ...]:
        """Most micro-batches of a stage that each rank keeps activations of at once, a stage's weight gradients included."""
        return tuple(_peak(row, {Kind.FORWARD: 1, Kind.BACKWARD: -1, Kind.WEIGHT: -1}) for row in self.rows)

    @cached_property
    def waiting_weights(self) -> tuple[int, ...]:
        """Most sets of weight gradients that wait at once, by rank."""
        return tuple(_peak(row, {Kind.INPUT: 1, Kind.WEIGHT: -1}) for row in self.rows)

    @property
    def overlapped(self) -> float:
        """Share of forward passes that run in a pair."""
        pairs = sum(isinstance(span.item, Pair) for row in self.rows for span in row)
        stages = sum(len(chain) for chain in self.schedule.chains)
        return pairs * len(self.schedule.chains) / (stages * self.schedule.microbatches)


def simulate(schedule: Schedule, times: Times | None = None) -> Simulation:
    """Carries a table out.

    Raises:
        BestiaryError: times that do not fit the stages, or a table that comes to a halt.
    """
    times = (Times() if times is None else times).checked(schedule)
    waits, ended = needs(schedule), dict[Action, float]()
    rows: list[list[Span]] = [[] for _ in schedule.rows]
    ready = list(range(len(schedule.rows)))
    blocked: dict[Action, list[int]] = {}
    while ready:
        rank = ready.pop()
        row, done = schedule.rows[rank], rows[rank]
        while len(done) < len(row):
            item = row[len(done)]
            lacking = next((need for part in parts(item) for need in waits[part] if need not in ended), None)
            if lacking is not None:
                blocked.setdefault(lacking, []).append(rank)
                break
            span = _place(item, done[-1].end if done else 0.0, schedule, times, waits, ended)
            done.append(span)
            for part in parts(item):
                ended[part] = _sent(span, part, times)
                ready += blocked.pop(part, [])
    if any(len(done) < len(row) for done, row in zip(rows, schedule.rows, strict=True)):
        raise BestiaryError(f"{schedule.name}: no rank can go on after {len(ended)} passes. `check` says why.")
    return Simulation(schedule, times, tuple(tuple(row) for row in rows))


def break_even(ranks: int, microbatches: int, times: Times | None = None) -> float:
    """The `overlap` below which DualPipeV is faster than ZB-V on the same ranks, for the same micro-batches."""
    from dataclasses import replace

    from .catalog import make

    times = Times() if times is None else times
    line, folded = (make(name, ranks=ranks, microbatches=microbatches) for name in ("zb-v", "dualpipe-v"))
    wanted, low, high = simulate(line, times).makespan, 0.01, 1.5
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if simulate(folded, replace(times, overlap=middle)).makespan < wanted else (low, middle)
    return low


def _place(item: Action | Pair, free: float, schedule: Schedule, times: Times, waits: dict, ended: dict[Action, float]) -> Span:
    start = free
    for part in parts(item):
        for need in waits[part]:
            travels = schedule.rank_of[need.stage] != schedule.rank_of[part.stage]
            start = max(start, ended[need] + (times.latency if travels else 0.0))
    return Span(item, start, start + times.of(item))


def _sent(span: Span, part: Action, times: Times) -> float:
    if times.early and isinstance(span.item, Pair) and part.kind == Kind.FORWARD:
        return min(span.end, span.start + times.of(part))
    return span.end


def _peak(row: Sequence[Span], change: dict[Kind, int]) -> int:
    held = most = 0
    for span in row:
        for part in parts(span.item):
            held += max(0, change.get(part.kind, 0))
        most = max(most, held)
        for part in parts(span.item):
            held += min(0, change.get(part.kind, 0))
    return most


def _at(time: float | Sequence[float], stage: int) -> float:
    return float(time) if isinstance(time, (int, float)) else float(time[stage])
