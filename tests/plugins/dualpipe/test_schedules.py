"""Tables against published ones and torch's, the checker against broken tables, the simulator against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from bestiary.core.errors import BestiaryError
from bestiary.plugins.dualpipe.schedules.actions import Action, Kind, Pair
from bestiary.plugins.dualpipe.schedules.catalog import SCHEDULES, make
from bestiary.plugins.dualpipe.schedules.check import check, needs, parts
from bestiary.plugins.dualpipe.schedules.simulate import Times, break_even, simulate

ROW_0 = "F0*7 F1 | (Bz1 W F1)*3 | (FB01 FB10)*3 | (B1 FB10)*3 | B1 Bz0 | (W Bz0)*3 | W"
ROW_3 = "F0 F1 F0 F1 F0 F1 F0 F1 | F0 B1 FB10 (FB01 FB10)*5 | B1 B0 B1 B0 Bz1 Bz0 Bz1 Bz0 | W W W W"


@st.composite
def schedules(draw):
    """Any table that the catalog makes."""
    name, chunks = draw(st.sampled_from(sorted(SCHEDULES))), draw(st.integers(2, 4))
    kind, ranks = SCHEDULES[name], draw(st.integers(1, 9))
    if kind.even_ranks:
        ranks += ranks % 2
    least, multiple = kind.least(ranks), kind.multiple(ranks)
    microbatches = -(-(least + draw(st.integers(0, 12))) // multiple) * multiple
    return make(name, ranks=ranks, microbatches=microbatches, chunks=chunks)


times = st.floats(0.1, 5.0)


def spelled(text: str) -> list[str]:
    """`(A B)*2 C` as `[A, B, A, B, C]`."""
    found: list[str] = []
    for piece in text.replace("|", " ").replace(" ", "\0").replace("(", "\n(").split("\n"):
        if piece.startswith("("):
            inner, _, rest = piece[1:].partition(")")
            count, _, rest = rest.removeprefix("*").partition("\0")
            found += inner.split("\0") * int(count)
        else:
            rest = piece
        for word in filter(None, rest.split("\0")):
            name, _, count = word.partition("*")
            found += [name] * int(count or 1)
    return found


def phases(schedule, rank: int) -> list[str]:
    """A row in the words of DualPipe's authors: phase 0 is the direction whose data enters at this rank's half."""
    near = rank if rank < schedule.ranks // 2 else 2 * schedule.ranks - 1 - rank
    found = []
    for item in schedule.rows[rank]:
        of = [int(part.stage != near) for part in parts(item)]
        if isinstance(item, Pair):
            found.append(f"FB{of[0]}{of[1]}")
        else:
            found.append({"F": f"F{of[0]}", "B": f"B{of[0]}", "I": f"Bz{of[0]}", "W": "W"}[item.kind])
    return found


def test_dualpipe_is_the_published_step():
    schedule = make("dualpipe", ranks=8, microbatches=20)
    assert phases(schedule, 0) == spelled(ROW_0)
    assert phases(schedule, 3) == spelled(ROW_3)
    for rank in range(4):
        assert phases(schedule, 7 - rank) == phases(schedule, rank)


@pytest.mark.parametrize(
    ("name", "theirs", "chunks"),
    [
        ("dualpipe-v", "DualPipeV", 2),
        ("zb-v", "ZBVZeroBubble", 2),
        ("interleaved", "Interleaved1F1B", 2),
        ("interleaved", "Interleaved1F1B", 3),
    ],
)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 12), (8, 24)])
def test_tables_are_those_of_torch(name, theirs, chunks, ranks, microbatches):
    schedule = make(name, ranks=ranks, microbatches=microbatches, chunks=chunks)
    expected = get_schedule_ops(theirs, ranks, microbatches, chunks)
    for row, wanted in zip(schedule.rows, expected, strict=True):
        mine = [f"{item}OVERLAP_F_B" if isinstance(item, Pair) else str(item) for item in row]
        assert mine == [str(action) for action in wanted if action is not None]


@given(schedules())
def test_every_table_can_be_carried_out(schedule):
    check(schedule)


@given(schedules(), st.data())
def test_broken_tables_are_refused(schedule, data):
    rank = data.draw(st.integers(0, schedule.ranks - 1))
    row = list(schedule.rows[rank])
    place = data.draw(st.integers(0, len(row) - 1))
    match data.draw(st.sampled_from(["lost", "twice", "early", "elsewhere"])):
        case "lost":
            del row[place]
        case "twice":
            row.insert(place, row[place])
        case "early":
            weight = next(
                (i for i, item in enumerate(row) if not isinstance(item, Pair) and item.kind in (Kind.BACKWARD, Kind.INPUT)), None
            )
            if weight is None:
                return
            row.insert(0, row.pop(weight))
        case "elsewhere":
            row[place] = Action((schedule.rank_of.index(rank) + 1) % len(schedule.rank_of), Kind.FORWARD, schedule.microbatches)
    broken = replace(schedule, rows=(*schedule.rows[:rank], tuple(row), *schedule.rows[rank + 1 :]))
    with pytest.raises(BestiaryError, match=schedule.name):
        check(broken)


@given(schedules(), times, times, times, st.floats(0.3, 1.0), st.floats(0, 2), st.booleans())
def test_time_is_kept(schedule, forward, input, weight, overlap, latency, early):
    """Nothing begins before what it needs, ranks do one thing at a time, and no step is shorter than its busiest rank."""
    run = simulate(schedule, Times(forward, input, weight, overlap, latency, early))
    ends = {part: span.end for row in run.rows for span in row for part in parts(span.item)}
    begins = {part: span.start for row in run.rows for span in row for part in parts(span.item)}
    for row in run.rows:
        assert all(a.end <= b.start for a, b in pairwise(row))
    for action, waits in needs(schedule).items():
        for need in waits:
            if not early:
                assert begins[action] >= ends[need]
    assert run.makespan >= max(run.busy)
    assert all(-1e-9 <= span <= wall + 1e-9 for span, wall in zip(run.span_idle, run.wall_idle, strict=True))


@pytest.mark.parametrize(("ranks", "microbatches"), [(4, 8), (4, 16), (8, 16), (8, 32), (16, 32)])
@pytest.mark.parametrize(
    ("name", "unit", "chunks", "idle", "peak"),
    [
        ("1f1b", 2, 1, lambda p: 6 * (p - 1), lambda p: p),
        ("interleaved", 1, 2, lambda p: 3 * (p - 1), lambda p: p + (p - 1) / 2),
        ("interleaved", 0.5, 4, lambda p: 1.5 * (p - 1), lambda p: p + (p - 1) / 4),
        ("zb1p", 2, 1, lambda p: 2 * (p - 1), lambda p: p),
        ("zb-v", 1, 2, lambda p: p - 1, lambda p: p),
        ("dualpipe-v", 1, 2, lambda p: 2 * (p - 1), lambda p: p + 0.5),
        ("dualpipe", 2, 1, lambda p: 2 * (p - 2), lambda p: p + 1),
    ],
)
def test_idle_time_and_memory_in_closed_form(name, unit, chunks, idle, peak, ranks, microbatches):
    """Equal model and devices; the unit is the forward pass of 1 / 2P of the model, all three kinds of pass equally long."""
    run = simulate(make(name, ranks=ranks, microbatches=microbatches, chunks=chunks), Times(unit, unit, unit))
    expected = idle(ranks) if name != "dualpipe" else 2 * (ranks - 2)
    assert max(run.wall_idle) == pytest.approx(expected)
    assert max(run.peaks) * unit / 2 == peak(ranks)
    if name == "zb-v":
        assert max(run.span_idle) == 0


@pytest.mark.parametrize("overlap", [1.0, 0.8, 2 / 3])
@pytest.mark.parametrize("ranks", [4, 8, 16])
def test_dualpipe_has_the_published_bubble_and_memory(ranks, overlap):
    """(PP/2 - 1)(F&B + B - 3W) on the worst rank and PP + 1 activations on every rank, for I = F = W = 1."""
    run = simulate(make("dualpipe", ranks=ranks, microbatches=2 * ranks + 4), Times(overlap=overlap))
    assert max(run.wall_idle) == pytest.approx((ranks / 2 - 1) * (3 * overlap + 2 - 3))
    assert set(run.peaks) == {ranks + 1}
    half = simulate(make("dualpipe-v", ranks=ranks // 2, microbatches=ranks + 2), Times(overlap=overlap))
    assert max(half.wall_idle) == pytest.approx((ranks / 2 - 1) * (3 * overlap + 2 - 3))
    assert set(half.peaks) == {ranks + 1}


@pytest.mark.parametrize(("ranks", "microbatches", "expected"), [(4, 8, 50.4), (4, 16, 88.8), (16, 32, 208.8), (16, 64, 362.4)])
def test_interleaved_pairs_take_the_known_time(ranks, microbatches, expected):
    """A pair at 0.8 of its passes; half a step more in flight than DualPipeV, and a little slower."""
    run = simulate(make("interleaved-overlap", ranks=ranks, microbatches=microbatches), Times(overlap=0.8))
    assert run.makespan == pytest.approx(expected)
    folded = simulate(make("dualpipe-v", ranks=ranks, microbatches=microbatches), Times(overlap=0.8))
    assert folded.makespan < run.makespan
    assert max(run.peaks) / 2 == pytest.approx(1.5 * ranks)


def test_the_overlap_from_which_dualpipe_v_is_worth_it():
    assert break_even(4, 8) == pytest.approx(0.9, abs=0.01)
    assert break_even(4, 16) == pytest.approx(0.96, abs=0.01)


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches", "message"),
    [
        ("dualpipe", 5, 20, "needs an even number of pipeline ranks, not 5. The nearest: 4 or 6"),
        ("dualpipe", 4, 6, "needs 8 micro-batches at least, not 6"),
        ("dualpipe", 4, 9, "needs a multiple of 2 micro-batches, not 9. The nearest: 8 or 10"),
        ("dualpipe-v", 4, 7, "needs 8 micro-batches at least, not 7"),
        ("interleaved", 4, 6, "needs a multiple of 4 micro-batches, not 6. The nearest: 4 or 8"),
        ("dualpip", 4, 8, "Did you mean 'dualpipe'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_the_nearest(name, ranks, microbatches, message):
    with pytest.raises(BestiaryError, match=message):
        make(name, ranks=ranks, microbatches=microbatches)


def test_times_that_do_not_fit_are_refused():
    schedule = make("1f1b", ranks=2, microbatches=2)
    with pytest.raises(BestiaryError, match="3 times of forward passes for 2 stages"):
        simulate(schedule, Times(forward=(1, 2, 3)))
    with pytest.raises(BestiaryError, match="expected 0 or more"):
        simulate(schedule, Times(weight=-1))


def test_uneven_stages_wait_for_the_slowest():
    run = simulate(make("1f1b", ranks=4, microbatches=32), Times(forward=(1, 1, 3, 1)))
    assert run.makespan >= 32 * (3 + 2)
    assert math.isclose(run.wall_idle[2], run.makespan - 32 * 5)
