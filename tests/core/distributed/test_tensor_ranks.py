"""Rows that tensor ranks deal out among themselves; sums over ranks are tested by the conformance of every layout."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.distributed.tensor_ranks import ALONE, TensorRanks


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 5))
def test_every_row_goes_to_one_rank_and_counts_are_those_of_its_rows(counts, size):
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ranks = [TensorRanks(size, index) for index in range(size)]
    dealt = [one.deal(experts) for one in ranks]
    assert torch.equal(torch.cat(dealt), experts)
    for one, mine in zip(ranks, dealt, strict=True):
        assert one.deal_counts(torch.tensor(counts)).tolist() == torch.bincount(mine, minlength=len(counts)).tolist()


def test_a_layer_that_is_whole_adds_nothing_to_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert ALONE.enter(x)[0] is x and ALONE.leave(x, bias=x) is x
