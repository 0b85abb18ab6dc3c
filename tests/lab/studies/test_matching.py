"""Matched sizes: the nearest multiple, or an error that says how near anything came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.lab.studies.matching import solve
from bestiary.lab.studies.options import MatchOptions


def rule(**changes) -> MatchOptions:
    return MatchOptions.model_validate({"same": "parameters", "by": "block.ffn.intermediate_size", "tolerance": 0.9} | changes)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 100), st.integers(0, 1000))
def test_it_finds_the_nearest_multiple(wanted, multiple, slope, offset):
    """As trying every multiple would; of two equally near ones the smaller."""
    target = slope * wanted + offset
    nearest = min(range(multiple, 2 * wanted + 2 * multiple, multiple), key=lambda value: abs(slope * value + offset - target))
    reached = slope * nearest + offset
    if abs(reached / target - 1) > 0.9:
        return
    found = solve(rule(multiple_of=multiple), lambda value: slope * value + offset, target)
    assert (found.value, found.reached) == (nearest, reached)


def test_it_says_what_it_chose_and_how_near_that_came():
    found = solve(rule(multiple_of=8, by="objective.next-token.width"), lambda value: 1000.0 * value, 100_400)
    assert found.value == 104 and found.deviation == pytest.approx(104 / 100.4 - 1)
    assert "objective.next-token.width = 104 gives 104k parameters beside the baseline's 100k (+3.59 %)" in str(found)


def test_nothing_near_enough_is_an_error():
    with pytest.raises(BestiaryError, match=r"nothing comes within 1.0%.*= 64 gives.*multiple_of"):
        solve(rule(multiple_of=64, tolerance=0.01), lambda value: 10.0 * value, 790.0)
    with pytest.raises(BestiaryError, match="nothing comes within"):
        solve(rule(tolerance=0.01), lambda value: 500.0 + value, 100.0)


def test_an_option_that_moves_nothing_is_named():
    with pytest.raises(BestiaryError, match=r"block.ffn.intermediate_size does not change the parameters"):
        solve(rule(), lambda value: 7.0, 100.0)


def test_impossible_values_bound_the_search():
    def measure(value):
        if value > 16:
            raise BestiaryError("num_experts_per_tok exceeds n_routed_experts.")
        return 10.0 * value

    assert solve(rule(), measure, 150.0).value == 15
    assert solve(rule(), measure, 165.0).value == 16
    with pytest.raises(BestiaryError, match="exceeds n_routed"):
        solve(rule(multiple_of=17), measure, 150.0)
