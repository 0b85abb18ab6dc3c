"""Rows of `block.at`: Python's slices over the layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.slices import layer_tables, select
from bestiary.core.tree import plain, plant

BOUND = st.none() | st.integers(-14, 14)


def text(number):
    return "" if number is None else str(number)


@given(st.integers(1, 12), BOUND, BOUND, st.none() | st.integers(-3, 3))
def test_slices_choose_what_python_slices_choose_and_nothing_outside(count, start, stop, step):
    chosen, wrong = select(f"{text(start)}:{text(stop)}:{text(step)}", count)
    inside = all(bound is None or -count <= bound <= count for bound in (start, stop))
    expected = list(range(count)[start:stop:step]) if inside and step != 0 else []
    assert chosen == expected
    assert bool(wrong) == (not expected)


@given(st.integers(1, 12), st.integers(-14, 14))
def test_an_index_chooses_what_python_indexing_chooses(count, index):
    chosen, wrong = select(str(index), count)
    if -count <= index < count:
        assert (chosen, wrong) == ([range(count)[index]], "")
    else:
        assert "outside" in wrong


@pytest.mark.parametrize("key", ["", "first", "0-3", "1:2:3:4", "1.5", "::0", "0:3,5"])
def test_nonsense_is_no_slice(key):
    chosen, wrong = select(key, 8)
    assert not chosen
    assert wrong == f"'{key}' is no slice of layers."


def test_a_slice_that_holds_nothing_is_an_error():
    assert select("3:3", 8) == ([], "slice '3:3' holds no layer of 8.")


def tables(block, count=4):
    return layer_tables(plant({"block": block}, "file")["block"], count)


def test_rows_lie_on_top_of_what_holds_for_every_layer():
    rows, problems = tables(
        {"attention": {"use": "mla"}, "ffn": {"use": "moe", "k": 2}, "at": {"0": {"ffn": {"k": 3}}, "-1": {"ffn": {"use": "dense"}}}}
    )
    assert not problems
    assert [plain(row["ffn"].tree) for row in rows] == [
        {"use": "moe", "k": 3},
        {"use": "moe", "k": 2},
        {"use": "moe", "k": 2},
        {"use": "dense"},
    ]
    assert [row["ffn"].path for row in rows] == ['block.at."0".ffn', "block.ffn", "block.ffn", 'block.at."-1".ffn']
    assert {row["attention"].path for row in rows} == {"block.attention"}


def test_rows_that_fill_one_slot_of_one_layer_twice_are_refused_naming_both():
    _, (problem,) = tables({"at": {"0:3": {"ffn": {"use": "dense"}}, "2::2": {"ffn": {"use": "moe"}}}})
    assert str(problem) == 'file: block.at."2::2": rows "0:3" and "2::2" both set ffn of layer 2. Make the slices disjoint.'


def test_rows_for_different_slots_may_overlap():
    rows, problems = tables({"at": {"0:3": {"ffn": {"use": "dense"}}, "2:": {"attention": {"use": "gqa"}}}})
    assert not problems
    assert [sorted(slot for slot in row if row[slot].tree) for row in rows] == [["ffn"], ["ffn"], ["attention", "ffn"], ["attention"]]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"atention": {"use": "mla"}}, "file: block.atention: there is no slot called 'atention'. Did you mean 'attention'?"),
        ({"at": {"0": {"fnn": {"use": "moe"}}}}, "file: block.at.\"0\".fnn: there is no slot called 'fnn'. Did you mean 'ffn'?"),
        ({"at": {"0:9": {"ffn": {"k": 1}}}}, "file: block.at.\"0:9\": slice '0:9' reaches outside the 4 layers. Layers go from 0 to 3"),
        ({"at": {"0": 3}}, 'file: block.at."0": expected a table, found 3. Write [block.at."0"].'),
        ({"ffn": "moe"}, "file: block.ffn: expected a table, found 'moe'. Write [block.ffn]."),
    ],
)  # fmt: skip
def test_each_mistake_has_its_message(block, message):
    _, problems = tables(block)
    assert [str(problem)[: len(message)] for problem in problems] == [message]
