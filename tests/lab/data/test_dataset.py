"""From files to batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bestiary import BestiaryError
from bestiary.core.contracts import Loss
from bestiary.lab.data.dataset import open_data
from bestiary.lab.data.document import Document
from bestiary.lab.evaluation.bits_per_byte import bits_per_byte, evaluate
from bestiary.lab.recipe import load_recipe


def opened(path: Path, *changes: str):
    recipe = load_recipe(path, set=changes)
    return open_data(recipe, recipe.manifest())


def test_streams_hold_every_document_in_the_order_of_its_place(lab: Path):
    """Against a plain reading of the same files."""
    data = opened(lab / "recipe.toml")
    documents = [Document(f"text/{path.name}", path.read_bytes()) for path in (lab / "text").iterdir()]
    documents.sort(key=lambda document: document.place)
    sides = [[d for d in documents if (d.place < 0.3 * 2**64) == held] for held in (False, True)]
    assert all(sides)
    for rows, side in zip((data.train, data.held_out), sides, strict=True):
        assert rows.stream.tolist() == [token for document in side for token in [*document.text, 256]]
    assert data.held_out_bytes.tolist() == [int(token != 256) for token in data.held_out.stream]
    assert data.bytes_per_token == sum(len(d.text) for d in sides[0]) / len(data.train.stream)


@pytest.mark.parametrize("start", [0, 1, 37, 10_001])
def test_batches_follow_from_the_position_alone(lab: Path, start: int):
    """A run that goes on at row `start` needs nothing but that number."""
    whole, resumed = opened(lab / "recipe.toml"), opened(lab / "recipe.toml")
    before = torch.cat([whole.batch(at, 3).input_ids for at in range(start, start + 12, 3)])
    for at, ids in enumerate(before):
        assert (resumed.batch(start + at, 1).input_ids[0] == ids).all()
    both = resumed.batch(start, 12)
    assert (both.input_ids == before).all() and (both.targets == whole.batch(start, 12).targets).all()


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

    value = evaluate(None, Uniform(), data, 3, torch.device("cpu")).bits_per_byte  # type: ignore[arg-type]
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
    read = Path.read_bytes

    def refuse(self):
        if self.suffix == ".txt":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read: Permission denied" in problem(lab / "recipe.toml")


def test_a_model_without_room_for_the_end_token_is_named(lab: Path):
    assert "model.eos_token_id" in problem(lab / "recipe.toml", "model.eos_token_id=5")
    assert "the tokenizer has 256 tokens and the model 200" in problem(lab / "recipe.toml", "model.vocab_size=200")


def test_everything_that_does_not_fit_is_said_at_once(lab: Path):
    found = problem(
        lab / "recipe.toml",
        "data.source=[nowhere, gone.parquet]",
        "data.tokenizer=nothing.json",
        "data.sequence_length=5000",
        "data.limit_bytes=3",
    )
    assert "no file or folder" in found and "nowhere" in found and "gone.parquet" in found
    found = problem(lab / "recipe.toml", "data.tokenizer=nothing.json", "data.sequence_length=5000")
    assert "no tokenizer that can be read" in found and "exceed the model's 4096 positions" in found


def test_missing_sources_are_said_with_the_recipes_other_problems(lab: Path):
    with pytest.raises(BestiaryError) as caught:
        load_recipe(lab / "recipe.toml", set=["data.source=nowhere", "model.hidden_sizes=3"])
    found = [str(found) for found in caught.value.problems]
    assert any("data.source" in line and "nowhere" in line for line in found)
    assert any("hidden_sizes" in line for line in found)


def test_a_batch_outlives_the_file_it_was_read_from(lab: Path, tmp_path: Path):
    """Batches are copies: nothing that a step changes reaches the cache."""
    data = opened(lab / "recipe.toml")
    before = data.batch(0, 2).input_ids.clone()
    data.batch(0, 2).input_ids.zero_()
    assert (data.batch(0, 2).input_ids == before).all()


def test_a_digest_tells_apart_what_changes_batches_and_nothing_else(lab: Path):
    recipe = lab / "recipe.toml"
    base = opened(recipe).digest
    assert base == opened(recipe, "data.cache=elsewhere").digest == opened(recipe, "data.suffixes=.txt").digest
    changes = ["data.seed=1", "data.sequence_length=16", "data.mask_documents=true", "data.held_out=0.4", "data.fim_rate=0.1"]
    digests = {opened(recipe, change).digest for change in changes}
    assert len(digests | {base}) == len(changes) + 1
    (lab / "text" / "0.txt").write_text("Another beast. " * 40)
    assert opened(recipe).digest != base
