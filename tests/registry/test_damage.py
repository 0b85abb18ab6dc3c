"""Every way in which a checkpoint can be wrong gives one error that names the file or tensor and says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import bestiary
from bestiary.registry.header import read_header

from .conftest import LLAMA, edit_header, edit_json, edit_tensors, error_of, fresh

NORM = "model.layers.1.input_layernorm.weight"
EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"


def test_missing_tensors_are_all_named(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: [tensors.pop(name) for name in (NORM, EXPERT)])
    message = error_of(lambda: bestiary.load(checkpoint))
    assert NORM in message and EXPERT in message and "missing" in message
    assert f"init=('block.ffn', '{NORM}')" in message


def test_unexpected_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update(extra=torch.zeros(2)))
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "model.safetensors: extra: unexpected." in message


def test_misshapen_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({NORM: torch.zeros(45)}))
    message = error_of(lambda: bestiary.load(checkpoint))
    assert NORM in message and "[45] was found, [44] is expected" in message


def test_all_kinds_of_problems_come_together(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({NORM: torch.zeros(45), "extra": torch.zeros(2)}))
    edit_tensors(checkpoint, lambda tensors: tensors.pop(EXPERT))
    message = error_of(lambda: bestiary.load(checkpoint))
    assert all(part in message for part in (NORM, "extra: unexpected", f"{EXPERT}: missing"))


def test_integers_are_no_weights(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({NORM: torch.zeros(44, dtype=torch.int32)}))
    assert "I32 is no format of weights" in error_of(lambda: bestiary.load(checkpoint))


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    message = error_of(lambda: bestiary.load(sharded))
    assert shard.name in message and "fetch it again" in message


@pytest.mark.parametrize("blob", [b"", b"\x05", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"])
def test_garbage_instead_of_a_header(checkpoint: Path, blob: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(blob)
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "model.safetensors" in message and "fetch it again" in message


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [44], "data_offsets": [0, 175]},
        {"dtype": "F32", "shape": [-44], "data_offsets": [0, 176]},
        {"dtype": "F99", "shape": [44], "data_offsets": [0, 176]},
        {"dtype": "F32", "shape": [44]},
        "text",
    ],
)
def test_header_entries_that_contradict_themselves(checkpoint: Path, entry: object) -> None:
    edit_header(checkpoint / "model.safetensors", lambda header: header.update({NORM: entry}))
    message = error_of(lambda: bestiary.load(checkpoint))
    assert NORM in message and "do not fit together" in message


def test_overlapping_offsets(checkpoint: Path) -> None:
    def overlap(header: dict) -> None:
        header[NORM]["data_offsets"] = header["model.norm.weight"]["data_offsets"]

    edit_header(checkpoint / "model.safetensors", overlap)
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "overlaps" in message or "leaves a gap" in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd.safetensors", "a\\..\\b.safetensors", "weights.bin"])
def test_index_that_leaves_its_folder(sharded: Path, name: str) -> None:
    edit_json(sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({NORM: name}))
    message = error_of(lambda: bestiary.load(sharded))
    assert "model.safetensors.index.json" in message and name in message


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.unlink()
    message = error_of(lambda: bestiary.load(sharded))
    assert "model.safetensors.index.json" in message and f"'{shard.name}' is missing" in message


def test_index_that_places_a_tensor_wrongly(sharded: Path) -> None:
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))

    def swap(index: dict) -> None:
        where = index["weight_map"]
        where[NORM] = next(name for name in shards if name != where[NORM])

    edit_json(sharded / "model.safetensors.index.json", swap)
    assert NORM in error_of(lambda: bestiary.load(sharded))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_broken_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in error_of(lambda: bestiary.load(sharded))


def test_one_file_beside_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors").touch()
    assert "two sets of weights" in error_of(lambda: bestiary.load(sharded))


def test_pickles_are_never_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"never opened")
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "pickle" in message and "save_pretrained" in message


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "bestiary.json").unlink()
    (checkpoint / "config.json").write_text("{'hidden_size': 44}")
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "config.json" in message and "not valid JSON" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "neither bestiary.json nor config.json" in error_of(lambda: bestiary.load(tmp_path))


def test_folder_without_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in error_of(lambda: bestiary.load(checkpoint))


@pytest.mark.parametrize("reference", ["deepseek-v3", "./nowhere", "no-such-model"])
def test_references_without_weights(reference: str) -> None:
    message = error_of(lambda: bestiary.load(reference))
    assert reference in message and "Give" in message


def test_file_instead_of_a_folder(checkpoint: Path) -> None:
    assert "Give the folder" in error_of(lambda: bestiary.load(checkpoint / "config.json"))


def test_edited_manifest_does_not_pass_for_the_original(checkpoint: Path) -> None:
    def edit(record: dict) -> None:
        record["manifest"]["block"]["ffn"]["router"]["routed_scaling_factor"] = 2.0

    edit_json(checkpoint / "bestiary.json", edit)
    message = error_of(lambda: bestiary.load(checkpoint))
    assert "bestiary.json" in message and "digest" in message
    edit_json(checkpoint / "bestiary.json", lambda record: record.pop("digest"))
    assert bestiary.load(checkpoint).manifest.layers[-1].ffn.table()["router"]["routed_scaling_factor"] == 2.0


def test_tied_head_that_differs_from_the_embedding(tmp_path: Path) -> None:
    tied = LLAMA | {"model": LLAMA["model"] | {"tie_word_embeddings": True}}
    bestiary.save(fresh(tied), tmp_path / "tied")

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(tmp_path / "tied", add_head)
    assert bestiary.load(tmp_path / "tied").load_report.duplicates[0][0].name == "lm_head.weight"
    edit_tensors(tmp_path / "tied", lambda tensors: tensors["lm_head.weight"].view(-1)[5].neg_())
    message = error_of(lambda: bestiary.load(tmp_path / "tied"))
    assert "lm_head.weight differs from model.embed_tokens.weight" in message


def test_duplicate_alone_does_not_stand_for_the_original(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert "model.embed_tokens.weight: missing" in error_of(lambda: bestiary.load(checkpoint))


def test_misshapen_duplicate(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({"model.layers.3.embed_tokens.weight": torch.zeros(53, 43)}))
    assert "model.layers.3.embed_tokens.weight" in error_of(lambda: bestiary.load(checkpoint))


def test_problems_of_a_config_come_together(tmp_path: Path) -> None:
    config = {"model_type": "deepseek_v3", "attention_bias": True, "hidden_act": "gelu", "rope_scaling": {"type": "dynamic", "factor": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = error_of(lambda: bestiary.load(tmp_path))
    for part in ("attention_bias", "hidden_act", "'dynamic' is not supported", "kv_lora_rank: this key is missing"):
        assert part in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_give_tensors_or_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    """Flips, cuts and insertions in a small file: what is read afterwards lies inside of the file."""
    blob = bytearray(save({"a": torch.arange(6.0), "b": torch.ones(2, 3)}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob)))
        blob[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = tmp_path / "x.safetensors"
    path.write_bytes(blob)
    try:
        tensors = read_header(path)
    except bestiary.BestiaryError as error:
        assert "x.safetensors" in str(error)
    else:
        assert all(8 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(blob) for tensor in tensors)


@pytest.mark.parametrize("value", [[], {}, True, 7, [[]], {"a": []}, "", None], ids=repr)
@pytest.mark.parametrize("key", ["model_type", "architectures", "torch_dtype", "rope_scaling", "quantization_config", "eos_token_id"])
def test_config_values_of_another_type(checkpoint: Path, key: str, value: object) -> None:
    (checkpoint / "bestiary.json").unlink()
    edit_json(checkpoint / "config.json", lambda data: data.update({key: value}))
    try:
        bestiary.load(checkpoint)
    except bestiary.BestiaryError as error:
        assert "config.json" in str(error) or "tensor" in str(error) or key in str(error)


@pytest.mark.parametrize("notes", [[], "x", {"a": 1}, {"a": None}], ids=repr)
def test_metadata_that_is_no_texts(checkpoint: Path, notes: object) -> None:
    edit_header(checkpoint / "model.safetensors", lambda header: header.update(__metadata__=notes))
    assert "`__metadata__` in its header holds something else than texts" in error_of(lambda: bestiary.load(checkpoint))
