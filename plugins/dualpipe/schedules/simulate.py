"""What a table takes: start and end of every pass, idle time, memory. No processes, no tensors.

A rank runs its row in order; a pass begins when the rank is free and what it needs has arrived. Two figures are called *bubble* in the
field, and both are given: *wall* idle is the makespan less the time that a rank computes, *span* idle counts from a rank's own first to its
own last pass, as zero-bubble papers do, which holds where ranks may begin their optimizer step at different times.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from ....core.errors import BestiaryError
from .actions import Action, Kind, Pair, Schedule
from .course import Course, course
from .memory import Bytes, Each, at, in_flight, peak_bytes, waiting_weights

PRECISION = 1e-6
"""Of the break-even."""


@dataclass(frozen=True)
class Times:
    """How long passes of one stage take, in any unit; each is one number, or one for every stage."""

    forward: Each = 1.0
    input: Each = 1.0
    """Gradients of the input."""
    weight: Each = 1.0
    """Gradients of the weights."""
    overlap: float = 1.0
    """An overlapped pair, as a part of its two passes one after the other; 1 overlaps nothing, `(F&B) / (F + B)` in papers."""
    latency: float = 0.0
    """From the end of a pass on one rank to its result on another."""
    early: bool = False
    """Whether a pair sends the forward pass's result when that pass alone would have ended, instead of at the pair's end."""
    pair: Each | None = None
    """Time of an overlapped pair (F&B), instead of `overlap`; the mean of its two stages where they differ."""

    def of(self, item: Action | Pair) -> float:
        """The time of an entry."""
        if isinstance(item, Pair):
            forward, backward = item.forward, item.backward
            if self.pair is not None:
                return (at(self.pair, forward.stage) + at(self.pair, backward.stage)) / 2
            return self.overlap * (self.of(forward) + self.of(backward))
        each = {Kind.FORWARD: (self.forward,), Kind.INPUT: (self.input,), Kind.WEIGHT: (self.weight,)}
        return sum(at(time, item.stage) for time in each.get(item.kind, (self.input, self.weight)))

    def checked(self, schedule: Schedule) -> Times:
        """Itself.

        Raises:
            BestiaryError: a time is negative, or there is not one for every stage.
        """
        for name in ("forward", "input", "weight", "pair"):
            given = getattr(self, name)
            each = [given] if isinstance(given, (int, float)) else list(given or ())
            if any(not 0 <= time < float("inf") for time in each):
                raise BestiaryError(f"the time of {name} passes is {min(each)}; expected 0 or more.")
            if len(each) not in (0, 1, len(schedule.rank_of)):
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
        return tuple(map(in_flight, self.schedule.rows))

    @cached_property
    def waiting_weights(self) -> tuple[int, ...]:
        """Most sets of weight gradients that wait at once, by rank."""
        return tuple(map(waiting_weights, self.schedule.rows))

    def peak_bytes(self, memory: Bytes) -> tuple[float, ...]:
        """Most bytes that each rank holds at once."""
        return peak_bytes(self.schedule, memory)

    @property
    def overlapped(self) -> float:
        """Share of forward passes that run in a pair."""
        pairs = sum(isinstance(span.item, Pair) for row in self.rows for span in row)
        stages = sum(len(chain) for chain in self.schedule.chains)
        return pairs * len(self.schedule.chains) / (stages * self.schedule.microbatches)


def simulate(schedule: Schedule | Course, times: Times | None = None) -> Simulation:
    """Carries a table out.

    Args:
        schedule: the table, or what `course` made of it, which saves time where it is timed again.
        times: of its passes; 1 for each by default.

    Raises:
        BestiaryError: times that do not fit the stages, or a table that comes to a halt.
    """
    ready = schedule if isinstance(schedule, Course) else course(schedule)
    times = (Times() if times is None else times).checked(ready.schedule)
    begins, ends = _carry_out(ready, times)
    spans = [Span(*row) for row in zip(ready.items, begins, ends, strict=True)]
    return Simulation(ready.schedule, times, tuple(tuple(spans[a:b]) for a, b in pairwise(ready.starts)))


def break_even(ranks: int, microbatches: int, times: Times | None = None) -> float:
    """The `overlap` below which DualPipeV is faster than ZB-V on the same ranks, for the same micro-batches."""
    from .catalog import make

    times = replace(Times() if times is None else times, pair=None)
    line, folded = (course(make(name, ranks=ranks, microbatches=microbatches)) for name in ("zb-v", "dualpipe-v"))
    wanted, low, high = max(_carry_out(line, times.checked(line.schedule))[1]), 0.0, 1.5
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if max(_carry_out(folded, replace(times, overlap=middle))[1]) < wanted else (low, middle)
    return low


def _carry_out(ready: Course, times: Times) -> tuple[list[float], list[float]]:
    """Start and end of every entry."""
    known: dict[tuple[int, Kind, int, Kind], float] = {}
    durations, early = list[float](), list[float | None]()
    for item in ready.items:
        forward, backward = (item.forward, item.backward) if isinstance(item, Pair) else (item, item)
        key = (forward.stage, forward.kind, backward.stage, backward.kind)
        if key not in known:
            known[key] = times.of(item)
        durations.append(known[key])
        early.append(min(known[key], times.of(forward)) if times.early and isinstance(item, Pair) else None)
    return ready.times(durations, early, times.latency)
