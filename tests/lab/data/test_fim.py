"""Fill-in-the-middle: what is rearranged, by which tokens, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bestiary import BestiaryError, create_model
from bestiary.core.contracts import IGNORE
from bestiary.lab.data.dataset import Data, open_data
from bestiary.lab.data.document import Document
from bestiary.lab.data.fim import FillInMiddle
from bestiary.lab.recipe import load_recipe

PREFIX, SUFFIX, MIDDLE, END = 257, 258, 259, 256


def opened(path: Path, *changes: str) -> Data:
    recipe = load_recipe(path, set=changes)
    return open_data(recipe, recipe.manifest())


def restored(tokens: list[int]) -> list[int]:
    """The text that a rearranged document was made of."""
    assert tokens[0] == PREFIX
    suffix, middle = tokens.index(SUFFIX), tokens.index(MIDDLE)
    return tokens[1:suffix] + tokens[middle + 1 :] + tokens[suffix + 1 : middle]


def documents(stream: np.ndarray) -> list[list[int]]:
    ends = np.flatnonzero(stream == END)
    return [part.tolist()[int(i > 0) :] for i, part in enumerate(np.split(stream, ends)[:-1])]


@given(st.text(max_size=30), st.text(min_size=1, max_size=8), st.integers(0, 3))
def test_prefix_suffix_middle_put_together_are_the_text(text, name, seed):
    pieces = FillInMiddle(1.0, (PREFIX, SUFFIX, MIDDLE), seed).pieces(Document(name, text.encode()))
    assert [piece for piece in pieces if isinstance(piece, int)] == [PREFIX, SUFFIX, MIDDLE]
    prefix, suffix, middle = (piece.decode() for piece in pieces if isinstance(piece, bytes))
    assert prefix + middle + suffix == text


def test_the_rate_is_kept_and_the_choice_follows_from_seed_and_name():
    chosen = {
        seed: {i for i in range(4000) if len(FillInMiddle(0.1, (1, 2, 3), seed).pieces(Document(str(i), b"abc"))) > 1} for seed in (0, 1)
    }
    assert all(abs(len(names) - 400) < 80 for names in chosen.values())
    assert chosen[0] != chosen[1]
    assert chosen[0] == {i for i in range(4000) if len(FillInMiddle(0.1, (1, 2, 3), 0).pieces(Document(str(i), b"longer text"))) > 1}


def test_cuts_are_spread_over_the_whole_document():
    pieces = [FillInMiddle(1.0, (1, 2, 3), 0).pieces(Document(str(i), b"x" * 100)) for i in range(2000)]
    prefix, suffix, middle = (np.array([len(own[at]) for own in pieces]) for at in (1, 3, 5))  # type: ignore[arg-type]
    assert all(abs(part.mean() - 100 / 3) < 3 for part in (prefix, suffix, middle))


def test_training_documents_are_rearranged_and_held_out_ones_are_not(lab: Path):
    plain, fim = opened(lab / "recipe.toml"), opened(lab / "recipe.toml", "data.fim_rate=1.0")
    assert (fim.held_out.stream == plain.held_out.stream).all()
    assert [restored(tokens) for tokens in documents(fim.train.stream)] == documents(plain.train.stream)


def test_special_tokens_stand_for_no_bytes(lab: Path):
    plain, fim = opened(lab / "recipe.toml"), opened(lab / "recipe.toml", "data.fim_rate=1.0")
    count = len(documents(plain.train.stream))
    assert len(fim.train.stream) == len(plain.train.stream) + 3 * count
    text = len(plain.train.stream) - count
    assert fim.bytes_per_token * len(fim.train.stream) == pytest.approx(text)
    assert plain.bytes_per_token * len(plain.train.stream) == pytest.approx(text)


def test_masked_segments_keep_a_rearranged_document_together(lab: Path):
    data = opened(lab / "recipe.toml", "data.fim_rate=1.0", "data.mask_documents=true", "data.sequence_length=512")
    batch = data.train.batch(range(len(data.train)))
    assert batch.segments is not None
    changes = (batch.segments[:, 1:] != batch.segments[:, :-1]).nonzero().tolist()
    ends = (batch.input_ids[:, :-1] == END).nonzero().tolist()
    assert changes == ends and ends
    assert ((batch.targets == IGNORE) == (batch.input_ids == END)).all()
    assert (batch.input_ids == MIDDLE).any()


@pytest.mark.parametrize("mask", ["true", "false"])
def test_a_model_with_mtp_sees_no_other_document_through_the_masks(lab: Path, mask: str):
    """Changing the first document of each row changes the loss of the others only where documents are not masked."""
    changes = ["data.fim_rate=1.0", f"data.mask_documents={mask}", "data.sequence_length=1200", "train.batch_size=1"]
    recipe = load_recipe(lab / "recipe.toml", set=changes)
    batch = open_data(recipe, recipe.manifest()).batch(0, 1)
    end = int((batch.input_ids[0] == END).nonzero()[0])
    assert 20 < end < 1100
    model = create_model(recipe.manifest(), seed=0).eval()
    changed = batch.input_ids.clone()
    changed[0, :end] = 65
    with torch.no_grad():
        before, after = (model.mtp_logits(ids, segments=batch.segments)[0] for ids in (batch.input_ids, changed))
    equal = torch.allclose(before[0, end + 2 :], after[0, end + 2 :], atol=1e-5)
    assert equal == (mask == "true")


def test_bytes_get_three_unused_tokens_of_the_vocabulary_or_an_error(lab: Path):
    recipe = lab / "recipe.toml"
    assert {257, 258, 259} <= set(opened(recipe, "data.fim_rate=1.0").train.stream.tolist())
    moved = opened(recipe, "data.fim_rate=1.0", "model.eos_token_id=258", "model.bos_token_id=256")
    assert {257, 259, 260} <= set(moved.train.stream.tolist()) and 256 not in moved.train.stream
    with pytest.raises(BestiaryError, match=r"three unused tokens above 255, and a vocabulary of 258 has 1\. Set 260"):
        opened(recipe, "data.fim_rate=0.1", "model.vocab_size=258")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("[257, 258, 264]", "three different ones between 256 and 263 are needed"),
        ("[256, 257, 258]", "256 ends documents"),
        ("[1, 2, 3]", "between 256 and 263"),
        ('["<a>", "<b>", 259]', "the tokenizer has no <a>, <b>"),
        ("[257, 257, 258]", "needs three different tokens"),
    ],
)
def test_tokens_that_cannot_be_are_named(lab: Path, tokens: str, message: str):
    with pytest.raises(BestiaryError, match=message):
        opened(lab / "recipe.toml", "data.fim_rate=0.1", f"data.fim_tokens={tokens}")


def test_tokens_without_a_rate_are_an_error(lab: Path):
    with pytest.raises(BestiaryError, match=r"data\.fim_tokens is set, and data\.fim_rate is 0"):
        opened(lab / "recipe.toml", "data.fim_tokens=[257, 258, 259]")


def trained(path: Path, special: list[str]) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["the beast eats"], trainers.BpeTrainer(vocab_size=263, initial_alphabet=alphabet, special_tokens=special))
    made.save(str(path))


def test_a_tokenizers_own_tokens_are_found_by_name(lab: Path):
    deepseek = ["<end>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]  # noqa: RUF001
    trained(lab / "tokenizer.json", deepseek)
    changes = ["data.tokenizer=tokenizer.json", "data.fim_rate=1.0", "model.eos_token_id=0"]
    stream = opened(lab / "recipe.toml", *changes).train.stream
    text = (lab / "text" / "0.txt").read_text()
    ends = np.flatnonzero(stream == 0)
    for first, last in zip([0, *(ends + 1)], ends, strict=False):
        assert [token for token in stream[first:last] if token < 4] == [1, 2, 3]
    assert stream[0] == 1 and len(ends) and text
    named = opened(lab / "recipe.toml", *changes, f'data.fim_tokens=["{deepseek[1]}", "{deepseek[2]}", "{deepseek[3]}"]')
    assert (named.train.stream == stream).all()
    trained(lab / "tokenizer.json", ["<end>"])
    with pytest.raises(BestiaryError, match="no tokens for fill-in-the-middle that are known"):
        opened(lab / "recipe.toml", *changes)


def test_a_saved_byte_tokenizer_knows_the_special_tokens(lab: Path, tmp_path: Path):
    opened(lab / "recipe.toml", "data.fim_rate=1.0").tokenizer.save(tmp_path, END)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode("<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>").ids == [PREFIX, 97, SUFFIX, 98, MIDDLE]
    assert saved.token_to_id("<|endoftext|>") == END
