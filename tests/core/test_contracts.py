"""What one forward pass shares: masks, memory of what was done, batches."""

from __future__ import annotations

import pytest
import torch

from bestiary.core.contracts import Batch, Context


def context(length, **parts):
    return Context(torch.arange(length)[None], **parts)


def test_a_plain_sequence_needs_no_mask_and_a_single_query_no_causality():
    assert context(4).mask() is None
    assert context(4).is_causal
    assert context(1).mask() is None
    assert not context(1).is_causal


def test_packed_documents_see_themselves_only_and_nothing_later():
    mask = context(5, segments=torch.tensor([[0, 0, 1, 1, 1]])).mask()
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool)[None, None])


@pytest.mark.parametrize(("past", "length"), [(3, 1), (3, 2), (2, 4)])
def test_queries_on_top_of_a_cache_see_the_past_and_themselves(past, length):
    class Held:
        pass

    held = Held()
    held.length = past
    mask = context(length, caches=[held]).mask()
    full = torch.ones(past + length, past + length, dtype=torch.bool).tril()[past:]
    assert mask is None if length == 1 else torch.equal(mask, full[None, None])


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("ffn", ["dense", "moe"])
def test_a_packed_row_equals_its_documents_run_alone(tiny, build, attention, ffn):
    model = build(tiny(attention, ffn))
    ids = torch.randint(31, (2, 9))
    segments = torch.tensor([[0] * 4 + [1] * 5, [7] * 2 + [3] * 7])
    packed = model(ids, segments=segments)
    for row, cut in ((0, 4), (1, 2)):
        for part in (slice(0, cut), slice(cut, 9)):
            alone = model(ids[row : row + 1, part])
            assert torch.allclose(packed[row : row + 1, part], alone, atol=1e-6), "RoPE is relative up to its fp32 angles"


def test_positions_may_restart_with_each_document(tiny, build):
    model = build(tiny())
    ids, segments = torch.randint(31, (1, 7)), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    packed = model(ids, segments=segments, positions=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    assert torch.allclose(packed[:, 3:], model(ids[:, 3:]), atol=1e-12)


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_a_later_token_never_changes_an_earlier_logit(tiny, build, attention):
    model = build(tiny(attention))
    ids = torch.randint(31, (1, 8))
    other = ids.clone()
    other[0, 5] = (ids[0, 5] + 1) % 31
    before, after = model(ids), model(other)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-12)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_once_computes_once_even_when_the_answer_is_none():
    here, calls = context(3), []
    assert [here.once("key", lambda: calls.append(1)) for _ in range(3)] == [None] * 3
    assert len(calls) == 1


def test_first_is_true_once_per_key_and_pass():
    here = context(3)
    assert [here.first("load"), here.first("load"), here.first("other"), context(3).first("load")] == [True, False, True, True]


def test_chunks_split_every_field_into_equal_rows():
    batch = Batch(torch.arange(12).view(4, 3), torch.arange(12, 24).view(4, 3), valid=torch.ones(4, 3, dtype=torch.bool))
    first, second = batch.chunks(2)
    assert torch.equal(torch.cat((first.input_ids, second.input_ids)), batch.input_ids)
    assert torch.equal(second.targets, batch.targets[2:])
    assert first.segments is None
    assert first.valid.shape == (2, 3)
    with pytest.raises(ValueError, match="4 rows do not split into 3 equal micro-batches"):
        batch.chunks(3)
