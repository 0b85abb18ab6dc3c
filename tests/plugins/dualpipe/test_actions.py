"""Passes, pairs and tables as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.plugins.dualpipe.schedules.actions import Action, Kind, Pair, parse
from bestiary.plugins.dualpipe.schedules.catalog import make

numbers = st.integers(0, 999)
actions = st.builds(Action, numbers, st.sampled_from(Kind), numbers)
pairs = st.builds(
    Pair,
    st.builds(Action, numbers, st.just(Kind.FORWARD), numbers),
    st.builds(Action, numbers, st.sampled_from([Kind.BACKWARD, Kind.INPUT]), numbers),
)


@given(actions | pairs)
def test_text_and_back(item):
    assert parse(str(item)) == item


@pytest.mark.parametrize(
    "text", ["", "3F", "F5", "3X5", "-1F0", "3F5 ", "(0F3)", "(0F3;7F1)", "(0B3;7B1)", "(0F3;7W1)", "((0F3;7B1);7B1)", "(0F3;7B1"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(BestiaryError, match="as in 3F5; a pair as"):
        parse(text)


def test_a_table_reads_rank_by_rank():
    assert str(make("1f1b", ranks=2, microbatches=2)) == "0F0 0F1 0B0 0B1\n1F0 1B0 1F1 1B1"
    assert str(make("dualpipe-v", ranks=2, microbatches=4)).splitlines()[1].startswith("1F0 2F0 1F1 2F1 1F2 2B0 (2F2;1B0)")


def test_stages_know_their_rank_and_their_end_of_the_line():
    both = make("dualpipe", ranks=4, microbatches=8)
    assert [both.stages_of(rank) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    assert [stage for stage in range(8) if both.first(stage)] == [0, 4]
    assert [stage for stage in range(8) if both.last(stage)] == [3, 7]
    rounds = make("interleaved", ranks=2, microbatches=2, chunks=3)
    assert rounds.stages_of(1) == (1, 3, 5) and rounds.first(0) and rounds.last(5) and not rounds.last(1)
