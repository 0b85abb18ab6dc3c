"""From files to batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bestiary import BestiaryError
from bestiary.core.contracts import Loss
from bestiary.lab.data.corpus import Corpus, Document, read_corpus
from bestiary.lab.data.dataset import open_data, split
from bestiary.lab.data.options import DataOptions
from bestiary.lab.evaluation.bits_per_byte import bits_per_byte, evaluate
from bestiary.lab.recipe import load_recipe


def corpus(count: int) -> Corpus:
    documents = [Document(f"{index}.txt", b"text") for index in range(count)]
    return Corpus(sorted(documents, key=lambda document: document.place), [])


def opened(path: Path, *changes: str):
    recipe = load_recipe(path, set=changes)
    return open_data(recipe, recipe.manifest())


def test_held_out_documents_are_no_training_documents_and_stay_when_others_are_added():
    train, held_out = split(corpus(200), 0.2)
    names = {document.name for document in held_out}
    assert len(train) + len(held_out) == 200 and not names & {document.name for document in train}
    assert 20 < len(names) < 60
    more = {document.name for document in split(corpus(400), 0.2)[1]}
    assert {name for name in more if int(name.removesuffix(".txt")) < 200} == names


def test_both_sides_get_text_however_small_the_part():
    for part in (1e-9, 1 - 1e-9):
        train, held_out = split(corpus(3), part)
        assert train and held_out


def test_a_single_document_is_cut_and_its_end_held_out():
    train, held_out = split(Corpus([Document("a", "ä".encode() * 100)], []), 0.1)
    assert train[0].text.decode() == "ä" * 90
    assert held_out[0].text.decode() == "ä" * 10


def test_stdlib_is_a_real_corpus_in_the_same_order_each_time():
    one, two = (read_corpus(DataOptions()) for _ in range(2))
    assert one.bytes > 5_000_000
    assert one.digest == two.digest
    assert any(document.name == "stdlib/json/decoder.py" for document in one.documents)
    assert not any("site-packages" in document.name for document in one.documents)


def test_folders_give_files_of_the_suffixes_and_say_what_they_left_out(lab: Path):
    (lab / "text" / "image.png").write_bytes(b"\x89PNG")
    (lab / "text" / "empty.txt").write_text("")
    (lab / "text" / "latin.txt").write_bytes("Bär".encode("latin-1"))
    found = read_corpus(DataOptions(source=(str(lab / "text"),)))
    assert sorted(document.name for document in found.documents) == [f"text/{index}.txt" for index in range(8)]
    assert found.left_out == [str(lab / "text" / "latin.txt")]


def test_batches_are_equal_for_equal_seeds(lab: Path):
    one, two, other = opened(lab / "recipe.toml"), opened(lab / "recipe.toml"), opened(lab / "recipe.toml", "data.seed=1")
    assert (one.batch(12, 4).input_ids == two.batch(12, 4).input_ids).all()
    assert (one.batch(12, 4).input_ids != other.batch(12, 4).input_ids).any()


def test_bits_per_byte_by_hand():
    """Two bytes predicted with probabilities 1/2 and 1/8 cost 1 + 3 bits, over 2 bytes."""
    assert bits_per_byte(math.log(2) + math.log(8), 2) == pytest.approx(2.0)


@pytest.mark.parametrize("mask", ["false", "true"])
def test_evaluation_divides_by_the_true_bytes_behind_the_targets(lab: Path, mask: str):
    """A model that gives every token of 264 the same probability: log2(264) bits for each target."""
    recipe = load_recipe(lab / "recipe.toml", set=[f"data.mask_documents={mask}", "data.eval_tokens=4000"])
    manifest = recipe.manifest()
    data = open_data(recipe, manifest)
    targets = np.concatenate([batch.targets.numpy().ravel() for batch, _ in data.evaluation(3)])
    counted = targets[targets >= 0]
    text = int((counted != 256).sum())
    assert len(counted) > text, "end tokens are targets without text"

    class Uniform:
        def evaluate(self, model, batch):
            return Loss(torch.zeros(()), {"next-token": torch.tensor(math.log(264), dtype=torch.float64)})

    value = evaluate(None, Uniform(), data, 3, torch.device("cpu"))  # type: ignore[arg-type]
    assert value == pytest.approx(math.log2(264) * len(counted) / text)


def problem(path: Path, *changes: str) -> str:
    with pytest.raises(BestiaryError) as caught:
        opened(path, *changes)
    return str(caught.value)


def test_bad_text_is_one_clear_message(lab: Path, tmp_path: Path):
    recipe = lab / "recipe.toml"
    assert f"there is no file or folder {lab / 'nowhere'}" in problem(recipe, "data.source=nowhere")
    assert "There is no text in" in problem(recipe, "data.suffixes=.rs")
    assert "a row needs 4001" in problem(recipe, "data.sequence_length=4000", "data.held_out=0.5")
    assert "exceed the model's 4096 positions" in problem(recipe, "data.sequence_length=5000")
    (lab / "latin.txt").write_bytes("Bär".encode("latin-1"))
    assert "not UTF-8" in problem(recipe, "data.source=latin.txt")


def test_an_unreadable_file_is_named(lab: Path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read: Permission denied" in problem(lab / "recipe.toml")


def test_a_model_without_room_for_the_end_token_is_named(lab: Path):
    assert "model.eos_token_id" in problem(lab / "recipe.toml", "model.eos_token_id=5")
    assert "the tokenizer has 256 tokens and the model 200" in problem(lab / "recipe.toml", "model.vocab_size=200")
