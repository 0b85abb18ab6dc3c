"""The simulator against one that only follows the rules, against closed forms, and against published and known times."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.plugins.dualpipe.schedules.actions import Kind, Pair, Schedule
from bestiary.plugins.dualpipe.schedules.catalog import make
from bestiary.plugins.dualpipe.schedules.check import needs, parts
from bestiary.plugins.dualpipe.schedules.course import course
from bestiary.plugins.dualpipe.schedules.memory import Bytes
from bestiary.plugins.dualpipe.schedules.simulate import Times, break_even, simulate

NAMES = ["1f1b", "interleaved", "interleaved-overlap", "zb1p", "zb-v", "dualpipe", "dualpipe-v"]


def some(most: int) -> st.SearchStrategy[Schedule]:
    """Tables for up to twice `most` ranks."""
    numbers = st.sampled_from(NAMES), st.integers(1, most), st.integers(2, most + 1)
    return st.builds(lambda name, half, more: make(name, ranks=2 * half, microbatches=2 * half * more), *numbers)


tables, small = some(3), some(2)
lengths = st.floats(0.1, 4.0)


def relaxed(schedule: Schedule, times: Times) -> dict:
    """Start of every entry by repeating the rules until nothing moves: slow, and nothing is clever."""
    waits = needs(schedule)
    home = {part: item for row in schedule.rows for item in row for part in parts(item)}
    start = {item: 0.0 for row in schedule.rows for item in row}

    def arrives(need, part):
        item = home[need]
        length = times.of(item)
        if times.early and isinstance(item, Pair) and need.kind == Kind.FORWARD:
            length = min(length, times.of(need))
        return start[item] + length + times.latency * (schedule.rank_of[need.stage] != schedule.rank_of[part.stage])

    moved = True
    while moved:
        moved = False
        for row in schedule.rows:
            for place, item in enumerate(row):
                bounds = [arrives(need, part) for part in parts(item) for need in waits[part]]
                bounds += [start[row[place - 1]] + times.of(row[place - 1])] if place else []
                least = max(bounds, default=0.0)
                if least > start[item]:
                    start[item], moved = least, True
    return start


@settings(max_examples=30, deadline=None)
@given(small, lengths, lengths, lengths, st.floats(0.3, 1.0), st.floats(0, 2), st.booleans())
def test_it_finds_the_least_times_that_follow_the_rules(schedule, forward, input, weight, overlap, latency, early):
    times = Times(forward, input, weight, overlap, latency, early)
    run, expected = simulate(schedule, times), relaxed(schedule, times)
    assert {span.item: span.start for row in run.rows for span in row} == pytest.approx(expected)
    assert all(span.end == span.start + times.of(span.item) for row in run.rows for span in row)


@settings(deadline=None)
@given(tables, lengths, lengths, lengths, st.floats(0, 2))
def test_no_step_is_shorter_than_one_micro_batch_through_all_stages(schedule, forward, input, weight, latency):
    """There and back, pairs counted as their passes: an overlap of 1."""
    run = simulate(schedule, Times(forward, input, weight, latency=latency))
    line = schedule.chains[0]
    hops = sum(schedule.rank_of[a] != schedule.rank_of[b] for a, b in pairwise(line))
    assert run.makespan >= len(line) * (forward + input) + 2 * hops * latency - 1e-9
    assert run.makespan >= max(run.busy) - 1e-9
    assert sum(run.busy) == pytest.approx(len(line) * schedule.microbatches * (forward + input + weight))


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("1f1b", 2, (30.6, 19.7, 34.2, 22.5, 35.9, 23.7)),
        ("interleaved", 1, (19.7, 10.9, 22.0, 12.3, 23.0, 13.0)),
        ("zb-v", 1, (10.4, 5.5, 12.4, 6.6, 13.4, 7.2)),
        ("dualpipe-v", 1, (16.4, 10.9, 19.9, 13.3, 21.5, 14.4)),
        ("dualpipe", 2, (10.8, 6.8, 14.7, 9.2, 16.6, 10.3)),
    ],
)
def test_bubbles_with_latency(name, unit, expected):
    """Per cent, with results 0.2 of a half-size forward pass on the way."""
    sizes = ((4, 8), (4, 16), (8, 16), (8, 32), (16, 32), (16, 64))
    found = [simulate(make(name, ranks=p, microbatches=m), Times(unit, unit, unit, latency=0.2)).bubble * 100 for p, m in sizes]
    assert [round(each, 1) for each in found] == list(expected)


@pytest.mark.parametrize(
    ("ranks", "microbatches", "spans", "idle"),
    [(8, 20, (66, 57.6, 52), (6, 4.2, 3)), (4, 8, (26, 23.6, 22), (2, 1.4, 1)), (16, 32, (110, 96.8, 88), (14, 9.8, 7))],
)
def test_dualpipe_at_the_three_pairs_that_are_known(ranks, microbatches, spans, idle):
    """F&B of 3, 2.4 and 2 where F is 1 and B 2, W being half of B."""
    runs = [simulate(make("dualpipe", ranks=ranks, microbatches=microbatches), Times(pair=pair)) for pair in (3, 2.4, 2)]
    assert [run.makespan for run in runs] == pytest.approx(spans)
    assert [max(run.wall_idle) for run in runs] == pytest.approx(idle)
    near = [min(rank, ranks - 1 - rank) for rank in range(ranks)]
    assert runs[0].waiting_weights == tuple(k + 1 for k in near)


def test_two_ranks_of_dualpipe_never_wait():
    assert max(simulate(make("dualpipe", ranks=2, microbatches=8)).wall_idle) == 0


@pytest.mark.parametrize(("input", "expected"), [(1.0, 2.0), (1.3, 1.7), (2.5, 1.0)])
def test_dualpipe_waits_less_than_published_where_gradients_take_longer(input, expected):
    """(PP/2 - 1)(F&B + B - 3W) is an upper bound: with I > F it lacks min((PP/2 - 1)(I - F), F)."""
    run = simulate(make("dualpipe", ranks=4, microbatches=8), Times(1, input, 1))
    formula = (1 + input + 1) + (input + 1) - 3
    assert max(run.wall_idle) == pytest.approx(formula - min(input - 1, 1))


def test_heavy_weight_gradients_make_the_published_formula_too_small():
    run = simulate(make("dualpipe", ranks=4, microbatches=8), Times(1, 0.8, 1.2))
    formula = (1 + 2) + 2 - 3 * 1.2
    assert max(run.wall_idle) == pytest.approx(2.0)
    assert formula == pytest.approx(1.4)


@given(st.integers(2, 6), st.integers(0, 12), lengths, lengths, st.floats(0.1, 1.0))
def test_zb1p_waits_as_published(ranks, more, forward, input, part):
    """(P - 1)(F + B - 2W) while W is not longer than F and I."""
    weight = part * min(forward, input)
    run = simulate(make("zb1p", ranks=ranks, microbatches=2 * ranks + more), Times(forward, input, weight))
    assert max(run.wall_idle) == pytest.approx((ranks - 1) * (forward + input - weight))


@given(st.integers(1, 6), st.integers(0, 12), lengths, lengths)
def test_1f1b_waits_as_published(ranks, more, forward, backward):
    run = simulate(make("1f1b", ranks=ranks, microbatches=ranks + more), Times(forward, backward, 0.0))
    assert run.wall_idle == pytest.approx([(ranks - 1) * (forward + backward)] * ranks)


def test_a_pairs_forward_result_helps_only_where_another_rank_waits_for_nothing_else():
    """The next rank's pair of DualPipeV takes both results of a pair, so one of them early gains nothing."""
    folded, rounds = make("dualpipe-v", ranks=8, microbatches=24), make("interleaved-overlap", ranks=8, microbatches=24)
    late, early = (simulate(folded, Times(overlap=0.8, latency=0.5, early=each)).makespan for each in (False, True))
    assert early == late
    late, early = (simulate(rounds, Times(overlap=0.8, latency=0.5, early=each)).makespan for each in (False, True))
    assert early < late


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(0, 12), lengths)
def test_the_break_even_is_where_both_take_equally_long(ranks, more, forward):
    microbatches, times = 2 * ranks + more, Times(forward=forward)
    part = break_even(ranks, microbatches, times)
    wanted = simulate(make("zb-v", ranks=ranks, microbatches=microbatches), times).makespan
    folded = make("dualpipe-v", ranks=ranks, microbatches=microbatches)
    assert simulate(folded, replace(times, overlap=part)).makespan == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("1f1b", 8), ("zb1p", 8), ("zb-v", 16), ("dualpipe-v", 17), ("dualpipe", 9)])
def test_memory_follows_what_is_in_flight(name, expected):
    run = simulate(make(name, ranks=8, microbatches=24))
    held = [len(run.schedule.stages_of(rank)) for rank in range(8)]
    assert max(run.peaks) == expected
    assert run.peak_bytes(Bytes(activations=10, states=1000)) == tuple(10 * p + 1000 * h for p, h in zip(run.peaks, held, strict=True))


def test_memory_that_input_gradients_free_is_free():
    """ZB-V's last rank keeps weight gradients back; where they need nothing, only micro-batches between F and I count."""
    run = simulate(make("zb1p", ranks=4, microbatches=8))
    assert run.peak_bytes(Bytes(activations=1)) == (4, 4, 4, 4)
    assert run.peak_bytes(Bytes(activations=1, for_weights=0)) == (4, 3, 2, 1)
    assert run.peak_bytes(Bytes(activations=(4, 3, 2, 1), for_weights=0)) == (16, 9, 4, 1)


@given(tables, st.floats(0, 1))
def test_everything_that_was_kept_is_freed(schedule, part):
    """The same step twice in a row needs no more than once."""
    twice = replace(schedule, rows=tuple(row * 2 for row in schedule.rows))
    memory = Bytes(activations=1.0, for_weights=part)
    assert simulate(schedule).peak_bytes(memory) == pytest.approx(replace(simulate(schedule), schedule=twice).peak_bytes(memory))


def test_a_table_made_ready_once_is_timed_as_often_as_one_likes():
    schedule = make("dualpipe-v", ranks=4, microbatches=10)
    ready = course(schedule)
    for overlap in (1.0, 0.8):
        assert simulate(ready, Times(overlap=overlap)) == simulate(schedule, Times(overlap=overlap))


def test_pairs_may_differ_by_stage():
    schedule = make("dualpipe", ranks=2, microbatches=4)
    lengths = (2.0, 3.0, 5.0, 7.0)
    run = simulate(schedule, Times(pair=lengths))
    found = {span.item: span.end - span.start for row in run.rows for span in row if isinstance(span.item, Pair)}
    assert found
    for pair, length in found.items():
        assert length == pytest.approx((lengths[pair.forward.stage] + lengths[pair.backward.stage]) / 2)


def test_a_table_that_halts_is_not_timed():
    schedule = make("1f1b", ranks=2, microbatches=2)
    with pytest.raises(BestiaryError, match="no rank can go on after 0 of 8 entries"):
        simulate(replace(schedule, rows=tuple(row[::-1] for row in schedule.rows)))
