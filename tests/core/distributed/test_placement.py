"""Experts placed by load: DeepSeek's own example, and what must hold for every load."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bestiary.core.distributed.placement import in_order, place_experts
from bestiary.core.errors import BestiaryError

LOADS = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
PLACED = [(5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1), (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1)]


@st.composite
def cases(draw, *, nodes=4):
    """Load, ranks, slots, groups and up to so many nodes that divide."""
    count, per_node, per_group = draw(st.integers(1, nodes)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups, ranks = count * draw(st.integers(1, 3)), count * per_node
    experts = groups * per_group
    slots = (-(-experts // ranks) + draw(st.integers(0, 3))) * ranks
    load = draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts))
    return load, {"ranks": ranks, "slots": slots, "groups": groups, "nodes": count}


@pytest.mark.parametrize("layer", [0, 1])
def test_the_published_example(layer):
    placement = place_experts(LOADS[layer], ranks=8, slots=16, groups=4, nodes=2)
    assert placement.experts == PLACED[layer]
    assert placement.balancedness(LOADS[layer]) > in_order(12, 4).balancedness(LOADS[layer])


@given(cases())
def test_every_expert_is_placed_ranks_have_equal_slots_and_the_load_is_kept(case):
    load, numbers = case
    placement = place_experts(load, **numbers)
    assert set(placement.experts) == set(range(len(load)))
    assert [len(held) for held in placement.by_rank] == [numbers["slots"] // numbers["ranks"]] * numbers["ranks"]
    assert sum(placement.loads(load)) == pytest.approx(sum(load))
    assert 0 < placement.balancedness(load) <= 1 + 1e-9


@given(cases())
def test_a_group_stays_on_one_node(case):
    load, numbers = case
    held = place_experts(load, **numbers).by_rank
    per_node, size = numbers["ranks"] // numbers["nodes"], len(load) // numbers["groups"]
    nodes = [{expert // size for rank in held[n * per_node : (n + 1) * per_node] for expert in rank} for n in range(numbers["nodes"])]
    assert sum(len(groups) for groups in nodes) == numbers["groups"]
    assert len({len(groups) for groups in nodes}) == 1


@given(cases(nodes=1))
def test_copies_and_ranks_are_balanced(case):
    """No copy has more than the load divided by the spare slots; no rank more than the mean and one copy."""
    load, numbers = case
    placement = place_experts(load, **numbers)
    most = max(weight / copies for weight, copies in zip(load, placement.copies(), strict=True))
    spare = numbers["slots"] - len(load)
    assert most <= max(sum(load) / spare if spare else max(load), 0) + 1e-9
    assert max(placement.loads(load)) <= sum(load) / numbers["ranks"] + most + 1e-9


@given(cases())
def test_where_groups_do_not_divide_among_nodes_all_ranks_are_one_node(case):
    load, numbers = case
    ranks = numbers["ranks"]
    other = next((n for n in range(2, ranks + 1) if ranks % n == 0 and numbers["groups"] % n), None)
    assume(other is not None)
    assert place_experts(load, **numbers | {"nodes": other}) == place_experts(load, ranks=ranks, slots=numbers["slots"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"ranks": 5}, "12 slots do not divide among 5 ranks. The nearest: 15."),
        ({"ranks": 8, "slots": 20}, "20 slots do not divide among 8 ranks. The nearest: 16 or 24."),
        ({"ranks": 8, "slots": 8}, "8 slots do not hold 12 experts. Take at least 16 on 8 ranks."),
        ({"ranks": 4, "nodes": 3}, r"4 ranks do not divide among 3 nodes. Use one of \[1, 2, 4\]"),
        ({"ranks": 4, "groups": 5}, r"12 experts do not divide into 5 groups. Use one of \[1, 2, 3, 4, 6, 12\]"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_the_nearest(numbers, message):
    with pytest.raises(BestiaryError, match=message):
        place_experts(LOADS[0], **numbers)
