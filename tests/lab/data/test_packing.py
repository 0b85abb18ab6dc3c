"""Rows and their order."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.contracts import IGNORE
from bestiary.lab.data.packing import Order, Rows, join

END = 300
documents = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=20), min_size=1, max_size=12)


def packed(texts, length, mask=False):
    return Rows(join([np.array(text) for text in texts], END, END + 1), length, END, mask)


@given(documents, st.integers(2, 9))
def test_every_token_is_read_once_and_every_token_but_the_first_predicted_once(texts, length):
    rows = packed(texts, length)
    if not len(rows):
        return
    batch, used = rows.batch(range(len(rows))), len(rows) * length
    assert batch.input_ids.flatten().tolist() == rows.stream[:used].tolist()
    assert batch.targets.flatten().tolist() == rows.stream[1 : used + 1].tolist()
    assert len(rows.stream) - 1 - used < length


@given(documents, st.integers(2, 9))
def test_masked_rows_number_their_documents_and_never_predict_across_them(texts, length):
    rows = packed(texts, length, mask=True)
    if not len(rows):
        return
    batch = rows.batch(range(len(rows)))
    assert batch.segments is not None
    for ids, targets, segments in zip(batch.input_ids.tolist(), batch.targets.tolist(), batch.segments.tolist(), strict=True):
        document = 0
        for position, token in enumerate(ids):
            assert segments[position] == document
            assert (targets[position] == IGNORE) == (token == END)
            document += token == END


def test_a_batch_has_shifted_targets_and_no_segments_unless_masked():
    batch = packed([[1, 2, 3], [4, 5]], 3).batch([0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3], [END, 4, 5]]
    assert batch.targets.tolist() == [[2, 3, END], [4, 5, END]]
    assert batch.segments is None
    assert batch.input_ids.dtype == torch.int64


def test_the_stream_takes_the_smallest_type_that_holds_the_vocabulary():
    assert join([np.array([1])], 255, 256).dtype == np.uint8
    assert join([np.array([1])], 256, 264).dtype == np.uint16
    assert join([np.array([1])], 70_000, 70_001).dtype == np.uint32


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_a_pass_reads_every_row_once(rows, batch_size, seed):
    order = Order(rows, seed)
    steps = -(-2 * rows // batch_size)
    read = np.concatenate([order.take(step * batch_size, batch_size) for step in range(steps)])
    assert sorted(read[:rows]) == list(range(rows))
    assert sorted(read[rows : 2 * rows]) == list(range(rows))


def test_order_follows_from_seed_and_step_alone():
    assert (Order(100, 1).take(56, 8) == Order(100, 1).take(56, 8)).all()
    assert (Order(100, 1).take(56, 8) != Order(100, 2).take(56, 8)).any()
    passes = [np.concatenate([Order(16, 1).take(8 * step, 8) for step in pair]) for pair in ((0, 1), (2, 3))]
    assert (passes[0] != passes[1]).any()
