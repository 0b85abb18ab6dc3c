"""Lengths in a recipe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.lab.amount import due, value_at


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, []),
        (0.0, []),
        (3, [3, 6, 9]),
        (0.125, [2, 3, 4, 5, 7, 8, 9, 10]),
        (0.25, [3, 5, 8, 10]),
        (0.01, list(range(1, 11))),
        (1.0, [10]),
    ],
)
def test_what_happens_every_so_often_in_ten_steps(amount, expected):
    assert [step for step in range(1, 11) if due(amount, step, 10)] == expected


@given(st.integers(1, 20), st.integers(1, 500))
def test_a_fraction_divides_the_run_evenly_and_ends_with_it(parts, steps):
    found = [step for step in range(1, steps + 1) if due(1 / parts, step, steps)]
    assert found[-1] == steps and len(found) == min(parts, steps)
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_stair_holds_from_its_start_on():
    stairs = ((0, 0.3), (0.5, 0.1), (0.75, 0.0))
    assert [value_at(stairs, tokens, 100) for tokens in (0, 49, 50, 74, 75, 100)] == [0.3, 0.3, 0.1, 0.1, 0.0, 0.0]
    assert [value_at(((0, 1.0), (10, 2.0)), tokens, 1000) for tokens in (9, 10)] == [1.0, 2.0]
