"""Layouts as text, schedules, and the cut into stages."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.layout import Layout, nearest, parse_layout
from bestiary.core.stages import SLACK, split
from bestiary.lab.cost.schedules import SCHEDULES


def test_dp_is_what_remains():
    assert parse_layout("pp=16, ep=64,zero=1", 2048) == Layout(pp=16, dp=128, ep=64)
    assert parse_layout("", 8) == Layout(dp=8)
    assert str(parse_layout("tp=2", 8)) == "pp=1,tp=2,dp=4,ep=1,zero=1"


@given(st.integers(1, 500), st.integers(1, 5000))
def test_the_nearest_divisor_divides_and_none_is_nearer(wanted, number):
    found = nearest(wanted, number)
    assert number % found == 0
    assert all(abs(math.log(found / wanted)) <= abs(math.log(n / wanted)) for n in range(1, number + 1) if number % n == 0)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9), st.data())
def test_the_split_is_the_best_of_all(weights, data):
    stages = data.draw(st.integers(1, len(weights)))
    found = split(weights, stages)
    assert [i for part in found for i in part] == list(range(len(weights)))
    assert len(found) == stages and all(found)
    assert _squares(weights, found) == pytest.approx(min(_squares(weights, cut) for cut in _cuts(len(weights), stages)))


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=8), st.data())
def test_of_splits_that_are_about_as_even_the_smallest_is_taken(items, data):
    work, sizes = ([item[place] for item in items] for place in (0, 1))
    stages = data.draw(st.integers(1, len(items)))
    even, found = split(work, stages), split(work, stages, sizes)
    limit = (1 + SLACK) * _most(work, even)
    assert _most(work, found) <= limit + 1e-9
    allowed = [cut for cut in _cuts(len(work), stages) if _most(work, cut) <= limit]
    assert _most(sizes, found) == pytest.approx(min(_most(sizes, cut) for cut in allowed))


def test_memory_decides_where_flops_do_not():
    """Dense layers take the FLOPs of layers with experts, and a twentieth of their memory."""
    assert split([1, 1, 1], 2, [1, 1, 20]) == [range(0, 2), range(2, 3)]
    assert split([1, 1, 1], 2, [20, 1, 1]) == [range(0, 1), range(1, 3)]
    assert split([1, 1, 2], 2, [1, 20, 1]) == [range(0, 2), range(2, 3)]


def _most(weights, parts):
    return max(sum(weights[i] for i in part) for part in parts)


def _squares(weights, parts):
    return sum(sum(weights[i] for i in part) ** 2 for part in parts)


def _cuts(count, stages, start=0):
    if stages == 1:
        yield [range(start, count)]
        return
    for stop in range(start + 1, count - stages + 2):
        yield from ([range(start, stop), *rest] for rest in _cuts(count, stages - 1, stop))


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_activations_in_flight_are_those_of_the_papers_table(ranks):
    """DeepSeek-V3's report, table 2: PP for 1F1B and ZB1P, PP + 1 for DualPipe, in units of a stage."""
    most = {
        name: max(sum(schedule.in_flight(stage, ranks, None) for stage in schedule.held(rank, ranks)) for rank in range(ranks))
        for name, schedule in SCHEDULES.items()
    }
    assert most == {"1f1b": ranks, "zb1p": ranks, "dualpipe": ranks + 1, "dualpipe-v": 2 * ranks + 1}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_stage_is_held_as_often_as_the_schedule_says(schedule):
    held = [stage for rank in range(8) for stage in schedule.held(rank, 8)]
    assert sorted(held) == sorted([*range(schedule.stages(8))] * schedule.copies)


def test_few_micro_batches_do_not_fill_a_pipeline():
    assert SCHEDULES["1f1b"].in_flight(0, 16, 4) == 4
    assert SCHEDULES["dualpipe"].in_flight(0, 16, 20) == 10  # half of them enter at each end
