"""Needles: prompts hold what they should, and the score tells a model that looks back from one that does not."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from bestiary.core.errors import BestiaryError
from bestiary.lab.data.tokens import ByteTokenizer
from bestiary.lab.evaluation import needle as module
from bestiary.lab.evaluation.needle import Retrieval, make_needles, retrieval
from bestiary.lab.evaluation.options import NeedleOptions
from bestiary.lab.evaluation.plots import heat_maps, position_curves
from bestiary.lab.evaluation.positions import Documents, PositionLoss
from bestiary.lab.evaluation.scores import Scores

LINE_END = 10
OPTIONS = NeedleOptions(lengths=(128, 300), depths=(0.0, 0.5, 1.0), count=5)


def documents(line=20, length=301):
    text = np.random.default_rng(0).integers(97, 122, (3, length))
    text[:, ::line] = LINE_END
    return Documents(text, np.ones((3, length - 1), dtype=np.int64))


@pytest.fixture
def needles():
    return make_needles(ByteTokenizer(), documents(), OPTIONS)


def text(ids):
    return bytes(ids.tolist()).decode()


@pytest.mark.parametrize("length", OPTIONS.lengths)
@pytest.mark.parametrize("depth", OPTIONS.depths)
def test_a_prompt_holds_the_needle_at_its_depth_and_ends_with_question_and_value(needles, length, depth):
    for needle in needles:
        line, value, question = text(needle.line), text(needle.value), text(needle.question)
        prompt = text(needle.prompt(length, depth, LINE_END))
        assert len(prompt) == length
        assert prompt.endswith(question + value) and question.startswith("\nNEEDLE_") and question.endswith(' = "')
        assert prompt.count(line) == 1 and prompt.count(value) == 2
        filler = length - len(line) - len(question) - len(value)
        assert prompt.index(line) == pytest.approx(depth * filler, abs=10)
        assert prompt.index(line) in (0, filler) or prompt[prompt.index(line) - 1] == "\n"


def test_the_control_has_the_same_length_and_no_needle(needles):
    prompt = text(needles[0].prompt(300, None, LINE_END))
    assert len(prompt) == 300 and prompt.count("NEEDLE_") == 1 and prompt.count(text(needles[0].value)) == 1


def test_text_without_lines_takes_the_needle_where_it_is_wanted():
    (needle, *_) = make_needles(ByteTokenizer(), documents(line=10_000, length=2001), NeedleOptions(lengths=(2000,), count=1))
    assert text(needle.prompt(2000, 0.5, LINE_END)).index("NEEDLE") == pytest.approx(975, abs=30)


def test_needles_follow_from_the_seed(needles):
    again, other = (make_needles(ByteTokenizer(), documents(), OPTIONS.model_copy(update={"seed": seed})) for seed in (0, 1))
    assert [text(n.line) for n in needles] == [text(n.line) for n in again]
    assert {text(n.line) for n in needles}.isdisjoint(text(n.line) for n in other)
    assert len({text(n.line) for n in needles}) == 5


def looks_back(reach):
    """A rule instead of a model: predicts what followed the last four tokens when they stood within `reach` before."""

    def score(model, ids):
        right = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool)
        for b, row in enumerate(ids.tolist()):
            for t in range(4, len(row)):
                before = [i for i in range(max(4, t - reach), t) if row[i - 4 : i] == row[t - 4 : t]]
                right[b, t - 1] = bool(before) and row[before[-1]] == row[t]
        return Scores(torch.where(right, 0.1, 5.0), right)

    return score


def test_who_looks_back_far_enough_finds_every_needle_and_nobody_without_one(monkeypatch):
    monkeypatch.setattr(module, "token_scores", looks_back(1000))
    found = retrieval(None, ByteTokenizer(), documents(), OPTIONS)
    assert found.share == found.found == ((1.0, 1.0, 1.0),) * 2
    assert found.control == (0.0, 0.0)
    assert found.gain == (pytest.approx((4.9, 4.9, 4.9)),) * 2


def test_who_looks_back_a_little_finds_what_is_near(monkeypatch):
    monkeypatch.setattr(module, "token_scores", looks_back(100))
    found = retrieval(None, ByteTokenizer(), documents(), OPTIONS)
    assert found.found == ((0.0, 1.0, 1.0), (0.0, 0.0, 1.0))


def test_results_read_back_from_json(monkeypatch):
    monkeypatch.setattr(module, "token_scores", looks_back(100))
    found = retrieval(None, ByteTokenizer(), documents(), OPTIONS)
    assert Retrieval.read(json.loads(json.dumps(asdict(found)))) == found


def test_batches_do_not_change_scores(monkeypatch):
    monkeypatch.setattr(module, "token_scores", looks_back(100))
    one = retrieval(None, ByteTokenizer(), documents(), OPTIONS)
    monkeypatch.setattr(module, "BATCH_TOKENS", 1)
    assert retrieval(None, ByteTokenizer(), documents(), OPTIONS) == one


@pytest.mark.parametrize(("lengths", "message"), [((60, 300), "too short"), ((128, 400), "longer than the documents, of which 300")])
def test_lengths_that_cannot_be_are_refused(lengths, message):
    with pytest.raises(BestiaryError, match=message):
        make_needles(ByteTokenizer(), documents(), NeedleOptions(lengths=lengths))


@pytest.mark.parametrize("wrong", [{"lengths": ()}, {"lengths": (512, 256)}, {"depths": (0.0, 1.5)}, {"count": 0}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError):
        NeedleOptions(**wrong)


def test_pictures_are_drawn(monkeypatch):
    monkeypatch.setattr(module, "token_scores", looks_back(100))
    found = retrieval(None, ByteTokenizer(), documents(), OPTIONS)
    loss = PositionLoss((0, 16, 32), (2.0, 1.5), (0.1, 0.1), 4)
    assert heat_maps({"before": found, "after": found}).startswith(b"\x89PNG")
    assert position_curves({"before": loss, "after": loss}, {"trained": 16}).startswith("<svg")
