"""The learning rate at the corners of its phases."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.lab.training.options import ScheduleOptions
from bestiary.lab.training.schedule import Schedule


def test_the_corners_of_all_four_phases():
    """100 steps: 10 up, 40 constant, 40 of cosine, 10 at the end."""
    schedule = Schedule(100, ScheduleOptions(warmup=10, decay=0.4, tail=0.1, final_ratio=0.1))
    assert schedule.part(0) == pytest.approx(0.1)
    assert schedule.part(9) == schedule.part(10) == schedule.part(49) == 1.0
    assert 0.99 < schedule.part(50) < 1
    assert schedule.part(69) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 20 / 41)) / 2)
    assert schedule.part(90) == schedule.part(99) == pytest.approx(0.1)


def test_nothing_but_the_peak_without_phases():
    schedule = Schedule(5, ScheduleOptions(warmup=0, decay=0, tail=0))
    assert [schedule.part(step) for step in range(5)] == [1.0] * 5


@given(st.integers(1, 300), st.floats(0, 0.3), st.floats(0, 0.4), st.floats(0, 0.3), st.floats(0, 1))
def test_it_rises_once_and_falls_once_within_its_bounds(steps, warmup, decay, tail, final):
    schedule = Schedule(steps, ScheduleOptions(warmup=warmup, decay=decay, tail=tail, final_ratio=final))
    rates = [schedule.part(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 or final == 0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_last_phase_of_deepseek_v3_is_a_lower_constant():
    schedule = Schedule(100, ScheduleOptions(warmup=0, decay=40, tail=20, cooldown=10, final_ratio=0.1, cooldown_ratio=0.033))
    assert [schedule.part(step) for step in (29, 70, 89, 90, 99)] == pytest.approx([1.0, 0.1, 0.1, 0.033, 0.033])
