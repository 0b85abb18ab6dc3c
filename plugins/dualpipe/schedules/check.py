"""Whether a table can be carried out, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ....core.errors import BestiaryError, Problem
from .actions import Action, Kind, Pair, Schedule

SHOWN = 8
"""Problems that are told at most."""


def parts(item: Action | Pair) -> tuple[Action, ...]:
    """The passes of an entry."""
    return (item.forward, item.backward) if isinstance(item, Pair) else (item,)


def needs(schedule: Schedule) -> dict[Action, tuple[Action, ...]]:
    """What each pass of a schedule waits for. Gradients arrive with an input pass; a full backward pass counts as one."""
    after = {a: b for chain in schedule.chains for a, b in pairwise(chain)}
    before = {b: a for a, b in after.items()}
    there = {action: action for row in schedule.rows for item in row for action in parts(item)}

    def backward(stage: int, microbatch: int) -> Action:
        split = Action(stage, Kind.INPUT, microbatch)
        return split if split in there else Action(stage, Kind.BACKWARD, microbatch)

    found: dict[Action, tuple[Action, ...]] = {}
    for action in there:
        stage, number = action.stage, action.microbatch
        if action.kind == Kind.FORWARD:
            found[action] = (Action(before[stage], Kind.FORWARD, number),) if stage in before else ()
        elif action.kind == Kind.WEIGHT:
            found[action] = (Action(stage, Kind.INPUT, number),)
        else:
            own = (Action(stage, Kind.FORWARD, number),)
            found[action] = (*own, backward(after[stage], number)) if stage in after else own
    return found


def check(schedule: Schedule) -> None:
    """Refuses a table in which a pass is missing, twice, on the wrong rank, or waits for itself.

    Raises:
        BestiaryError: with rank, position and pass.
    """
    problems = [*_shape(schedule)] or [*_misplaced(schedule), *_counts(schedule)] or [*_stuck(schedule)]
    if problems:
        raise BestiaryError(*(Problem(problem, schedule.name) for problem in problems[:SHOWN]))


def _shape(schedule: Schedule) -> Iterator[str]:
    stages = sorted(stage for chain in schedule.chains for stage in chain)
    if stages != [*range(len(schedule.rank_of))]:
        yield f"the chains go through the stages {stages}; expected each of the {len(schedule.rank_of)} stages once."
    if len(schedule.rows) != schedule.ranks or not set(schedule.rank_of) <= {*range(schedule.ranks)}:
        yield f"{len(schedule.rows)} rows for {schedule.ranks} ranks, and stages on the ranks {sorted(set(schedule.rank_of))}."
    if schedule.microbatches < 1 or schedule.microbatches % len(schedule.chains):
        yield f"{schedule.microbatches} micro-batches do not split over {len(schedule.chains)} chains."


def _misplaced(schedule: Schedule) -> Iterator[str]:
    for rank, row in enumerate(schedule.rows):
        for place, item in enumerate(row):
            for action in parts(item):
                if not 0 <= action.stage < len(schedule.rank_of):
                    yield f"rank {rank}, position {place}: {action} is of a stage that there is not."
                elif schedule.rank_of[action.stage] != rank:
                    yield f"rank {rank}, position {place}: {action} belongs on rank {schedule.rank_of[action.stage]}."
            if isinstance(item, Pair) and (
                item.forward.kind != Kind.FORWARD or item.backward.kind not in (Kind.BACKWARD, Kind.INPUT) or not _apart(item)
            ):
                yield f"rank {rank}, position {place}: {item} pairs passes that cannot overlap."


def _apart(pair: Pair) -> bool:
    return (pair.forward.stage, pair.forward.microbatch) != (pair.backward.stage, pair.backward.microbatch)


def _counts(schedule: Schedule) -> Iterator[str]:
    where = _places(schedule)
    each = schedule.microbatches // len(schedule.chains)
    for action, places in where.items():
        if len(places) > 1:
            yield f"{places[1]}: {action} is there already, at {places[0]}."
        if not 0 <= action.microbatch < each:
            yield f"{places[0]}: {action} is of a micro-batch beyond the {each} of each stage."
    for stage, rank in enumerate(schedule.rank_of):
        for number in range(each):
            forward, full, split, weight = (Action(stage, kind, number) for kind in Kind)
            if forward not in where:
                yield f"rank {rank}: {forward} is missing."
            found = tuple(action in where for action in (full, split, weight))
            if found == (False, False, False):
                yield f"rank {rank}: {full}, or {split} and {weight}, is missing."
            elif found[0] and any(found[1:]):
                yield f"{where[full][0]}: {full} computes input and weight gradients, which are there as {split} or {weight} too."
            elif found[1] != found[2]:
                there, lacking = (split, weight) if found[1] else (weight, split)
                yield f"{where[there][0]}: {there} is there without {lacking}."


def _places(schedule: Schedule) -> dict[Action, list[str]]:
    where: dict[Action, list[str]] = {}
    for rank, row in enumerate(schedule.rows):
        for place, item in enumerate(row):
            for action in parts(item):
                where.setdefault(action, []).append(f"rank {rank}, position {place}")
    return where


def _stuck(schedule: Schedule) -> Iterator[str]:
    waits, done = needs(schedule), set[Action]()
    places = [0] * len(schedule.rows)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            while places[rank] < len(row) and all(need in done for part in parts(row[places[rank]]) for need in waits[part]):
                done.update(parts(row[places[rank]]))
                places[rank] += 1
                moved = True
    for rank, row in enumerate(schedule.rows):
        if places[rank] < len(row):
            item = row[places[rank]]
            lacking = next(need for part in parts(item) for need in waits[part] if need not in done)
            yield f"rank {rank}, position {places[rank]}: {item} waits for {lacking}, which never comes."
