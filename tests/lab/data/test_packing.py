"""Rows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bestiary.core.contracts import IGNORE
from bestiary.lab.data.packing import Rows

END = 300
documents = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=20), min_size=1, max_size=12)


def packed(texts, length, mask=False):
    return Rows(np.concatenate([[*text, END] for text in texts]).astype(np.uint16), length, END, mask)


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
