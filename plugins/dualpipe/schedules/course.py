"""A table made ready to be carried out: every entry with the entries whose results it takes in, in an order in which all of them can run.

One table is often timed again and again (a search, a break-even), so that the walk through its dependencies is made once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ....core.errors import BestiaryError
from .actions import Action, Kind, Pair, Schedule

Need = tuple[int, bool, bool]
"""Number of an entry, whether its forward pass is what is needed, and whether the result travels to another rank."""


@dataclass(frozen=True)
class Course:
    """Entries are numbered rank by rank, in the order of the rows."""

    schedule: Schedule
    items: tuple[Action | Pair, ...]
    starts: tuple[int, ...]
    """Number of the first entry of each rank, and of the end."""
    needs: tuple[tuple[Need, ...], ...]
    order: tuple[int, ...]
    """In which every entry stands behind those that it needs, and behind its rank's earlier ones."""

    def times(self, durations: Sequence[float], early: Sequence[float | None], latency: float) -> tuple[list[float], list[float]]:
        """Start and end of every entry.

        Args:
            durations: of every entry.
            early: how long after its start a pair sends its forward pass's result; None sends it at the end.
            latency: of a result that travels.
        """
        begins, ends = [0.0] * len(self.items), [0.0] * len(self.items)
        heads = set(self.starts)
        for index in self.order:
            start = 0.0 if index in heads else ends[index - 1]
            for need, forward, travels in self.needs[index]:
                lead = early[need] if forward else None
                arrives = (ends[need] if lead is None else begins[need] + lead) + (latency if travels else 0.0)
                if arrives > start:
                    start = arrives
            begins[index], ends[index] = start, start + durations[index]
        return begins, ends


def course(schedule: Schedule) -> Course:
    """A table made ready.

    Raises:
        BestiaryError: it comes to a halt, or lacks a pass; `check` says why.
    """
    items = tuple(item for row in schedule.rows for item in row)
    starts = (0, *accumulate(len(row) for row in schedule.rows))
    needs = _needs(schedule, items)
    order = _order(starts, needs)
    if len(order) < len(items):
        raise BestiaryError(f"{schedule.name}: no rank can go on after {len(order)} of {len(items)} entries. `check` says why.")
    return Course(schedule, items, starts, needs, order)


def _needs(schedule: Schedule, items: Sequence[Action | Pair]) -> tuple[tuple[Need, ...], ...]:
    """By entry. The result of a backward pass is its input gradients, whether or not weight gradients come with it."""
    after = {a: b for chain in schedule.chains for a, b in pairwise(chain)}
    before = {b: a for a, b in after.items()}
    forward: dict[tuple[int, int], int] = {}
    gradient: dict[tuple[int, int], int] = {}
    for index, item in enumerate(items):
        for part in (item.forward, item.backward) if isinstance(item, Pair) else (item,):
            if part.kind != Kind.WEIGHT:
                (forward if part.kind == Kind.FORWARD else gradient)[part.stage, part.microbatch] = index

    def found(of: dict[tuple[int, int], int], stage: int, action: Action) -> Need:
        return of.get((stage, action.microbatch), -1), of is forward, schedule.rank_of[stage] != schedule.rank_of[action.stage]

    def needed(action: Action) -> list[Need]:
        stage = action.stage
        if action.kind == Kind.FORWARD:
            return [found(forward, before[stage], action)] if stage in before else []
        if action.kind == Kind.WEIGHT:
            return [found(gradient, stage, action)]
        return [found(forward, stage, action), *([found(gradient, after[stage], action)] if stage in after else [])]

    return tuple(tuple((*needed(i.forward), *needed(i.backward)) if isinstance(i, Pair) else tuple(needed(i))) for i in items)


def _order(starts: Sequence[int], needs: Sequence[Sequence[Need]]) -> tuple[int, ...]:
    """One pass over a queue of ranks that may go on; what waits is woken by what it lacked. Short where the table halts."""
    places, order, done = list(starts[:-1]), list[int](), [False] * starts[-1]
    blocked: dict[int, list[int]] = {}
    ready = deque(range(len(places)))
    while ready:
        rank = ready.popleft()
        while places[rank] < starts[rank + 1]:
            index = places[rank]
            lacking = next((need for need, _, _ in needs[index] if need < 0 or not done[need]), None)
            if lacking is not None:
                blocked.setdefault(lacking, []).append(rank)
                break
            places[rank], done[index] = index + 1, True
            order.append(index)
            ready += blocked.pop(index, ())
    return tuple(order)
