"""Broken tables are refused with rank, position and pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.errors import BestiaryError
from bestiary.plugins.dualpipe.schedules.actions import Schedule, parse
from bestiary.plugins.dualpipe.schedules.catalog import make
from bestiary.plugins.dualpipe.schedules.check import check
from bestiary.plugins.dualpipe.schedules.course import course


def table(*rows: str) -> Schedule:
    """One stage a rank, as many micro-batches as the first row has forward passes."""
    line = tuple(range(len(rows)))
    parsed = tuple(tuple(parse(text) for text in row.split()) for row in rows)
    return Schedule("mine", len(rows), rows[0].count("F"), (line,), line, parsed)


def test_a_table_of_ones_own_passes():
    check(table("0F0 0F1 0I0 0B1 0W0", "1F0 1B0 1F1 1B1"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("0F0 0F1 0B0 0B1", "1F0 1B0 1B1"), "mine: rank 1: 1F1 is missing"),
        (("0F0 0F1 0B0 0B1", "1F0 1B0 1F1"), "rank 1: 1B1, or 1I1 and 1W1, is missing"),
        (("0F0 0B0", "1F0 1B0 1F0"), "rank 1, position 2: 1F0 is there already, at rank 1, position 0"),
        (("0F0 0B0", "1F0 1I0"), "rank 1, position 1: 1I0 is there without 1W0"),
        (("0F0 0B0", "1F0 1W0"), "rank 1, position 1: 1W0 is there without 1I0"),
        (("0F0 0B0", "1F0 1I0 1B0 1W0"), "rank 1, position 2: 1B0 computes input and weight gradients"),
        (("0F0 0B0", "1F0 1B0 1F7"), "rank 1, position 2: 1F7 is of a micro-batch beyond the 1 of each stage"),
        (("0F0 0B0", "0F0 1F0 1B0"), "rank 1, position 0: 0F0 belongs on rank 0"),
        (("0F0 0B0", "1F0 1B0 9W0"), "rank 1, position 2: 9W0 is of a stage that there is not"),
        (("0B0 0F0", "1F0 1B0"), "rank 0, position 0: 0B0 waits for"),
        (("0F0 0W0 0I0", "1F0 1B0"), "rank 0, position 1: 0W0 waits for 0I0, which never comes"),
        (("0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"), "rank 1, position 0: 1F1 waits for 0F1"),
        (("(0F0;0B0)", "1F0 1B0"), "pairs passes that cannot overlap"),
    ],
)
def test_what_is_wrong_is_said(rows, message):
    with pytest.raises(BestiaryError) as caught:
        check(table(*rows))
    assert message in str(caught.value)


def test_a_pair_whose_halves_need_each_other_comes_to_a_halt():
    row = tuple(parse(text) for text in ("(0F0;1B0)", "1F0", "0B0"))
    broken = Schedule("mine", 1, 1, ((0, 1),), (0, 0), (row,))
    with pytest.raises(BestiaryError, match=r"rank 0, position 0: \(0F0;1B0\) waits for 1F0, which never comes"):
        check(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": ((0, 1), (2,))}, "the chains go through the stages"),
        ({"ranks": 5}, "4 rows for 5 ranks"),
        ({"rank_of": (0, 1, 2, 3, 3, 2, 1, 4)}, "stages on the ranks"),
        ({"microbatches": 9}, "9 micro-batches do not split over 2 chains"),
    ],
)
def test_tables_that_contradict_themselves(change, message):
    with pytest.raises(BestiaryError, match=message):
        check(replace(make("dualpipe", ranks=4, microbatches=8), **change))


@given(st.sampled_from(["1f1b", "interleaved", "interleaved-overlap", "zb1p", "zb-v", "dualpipe", "dualpipe-v"]), st.data())
def test_a_pass_too_early_or_too_late(name, data):
    """Two entries of a row change places: refused by the check exactly where the table comes to a halt."""
    good = make(name, ranks=4, microbatches=8)
    rank = data.draw(st.integers(0, 3))
    row = list(good.rows[rank])
    a, b = (data.draw(st.integers(0, len(row) - 1)) for _ in range(2))
    row[a], row[b] = row[b], row[a]
    swapped = replace(good, rows=(*good.rows[:rank], tuple(row), *good.rows[rank + 1 :]))
    try:
        course(swapped)
    except BestiaryError:
        with pytest.raises(BestiaryError, match="never comes"):
            check(swapped)
    else:
        check(swapped)
