"""Loss by position: every token is counted in its bin, on documents that are long enough."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bestiary
from bestiary.core.errors import BestiaryError
from bestiary.lab.evaluation import scores
from bestiary.lab.evaluation.positions import Documents, bin_edges, long_documents, loss_by_position

SMALL = {"model.num_hidden_layers": 1, "model.hidden_size": 32, "precision.use": "fp32"}


@pytest.fixture(scope="module")
def model():
    return bestiary.create_model("deepseek-v3-nano", set=SMALL, seed=1)


def test_scores_are_those_of_the_logits_whatever_is_in_memory_at_once(model, monkeypatch):
    ids = torch.randint(256, (2, 30))
    with torch.no_grad():
        logs = model(ids[:, :-1]).double().log_softmax(dim=-1)
    expected = -logs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    for positions in (7, 1024):
        monkeypatch.setattr(scores, "POSITIONS", positions)
        found = scores.token_scores(model, ids)
        torch.testing.assert_close(found.nats.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.right, logs.argmax(-1) == ids[:, 1:])


def test_scoring_leaves_the_model_in_the_mode_it_was_in(model):
    for training in (True, False):
        model.train(training)
        scores.token_scores(model, torch.randint(256, (1, 5)))
        assert model.training is training


def test_a_model_that_knows_nothing_has_the_same_loss_everywhere(model):
    flat = bestiary.create_model("deepseek-v3-nano", set=SMALL, seed=1)
    torch.nn.init.zeros_(flat.lm_head.weight)
    ids = np.random.default_rng(0).integers(0, 256, (3, 101))
    found = loss_by_position(flat, Documents(ids, np.ones((3, 100), dtype=np.int64)))
    assert found.bits_per_byte == pytest.approx([math.log2(264)] * 4)
    assert found.error == pytest.approx([0.0] * 4, abs=1e-6)


def test_bins_together_hold_every_token_and_count_bytes(model):
    ids, behind = np.random.default_rng(0).integers(0, 256, (2, 41)), np.random.default_rng(1).integers(0, 4, (2, 40))
    found = loss_by_position(model, Documents(ids, behind))
    nats = scores.token_scores(model, torch.from_numpy(ids)).nats.double().numpy()
    for value, low, high in zip(found.bits_per_byte, found.edges, found.edges[1:], strict=False):
        assert value == pytest.approx(nats[:, low:high].sum() / behind[:, low:high].sum() / math.log(2))


@pytest.mark.parametrize(
    ("length", "edges"), [(17, (0, 16, 17)), (64, (0, 16, 32, 64)), (100, (0, 16, 32, 64, 100)), (4096, (0, *(2**k for k in range(4, 13))))]
)
def test_bins_double_and_end_with_the_window(length, edges):
    assert bin_edges(length) == edges


def data(*lengths, end=256):
    """Held-out documents of these lengths, document i made of the byte i."""
    stream = np.concatenate([np.append(np.full(length, i), end) for i, length in enumerate(lengths)])
    return SimpleNamespace(held_out=SimpleNamespace(stream=stream), held_out_bytes=(stream != end).astype(int), end=end)


def test_documents_are_read_from_their_start_and_short_ones_left_out():
    found = long_documents(data(5, 21, 20, 40), length=20, count=9)
    assert found.ids.shape == (2, 21) and (found.ids == [[1], [3]]).all()
    assert found.bytes.shape == (2, 20) and (found.bytes == 1).all()
    assert len(long_documents(data(5, 21, 20, 40), length=20, count=1).ids) == 1


def test_text_without_long_documents_is_refused_with_its_longest():
    with pytest.raises(BestiaryError, match="more than 50 tokens; the longest has 40"):
        long_documents(data(5, 40), length=50, count=9)
