"""Saving: the Hub's layout, and a folder that is complete or untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary.registry.layout import published

from .conftest import V3, error_of, fresh, read_file


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.parent.rglob("*")) if path.is_file()}


def test_files_and_their_content(tmp_path: Path) -> None:
    model = fresh(V3)
    report = bestiary.save(model, tmp_path / "m")
    assert report.files == ("bestiary.json", "config.json", "generation_config.json", "model.safetensors")
    assert not report.not_expressed and f"{report.tensors}" in str(report)
    record = json.loads((tmp_path / "m" / "bestiary.json").read_text())
    assert record["digest"] == model.manifest.digest and record["name"] == model.manifest.name
    assert record["distributions"].keys() == {"bestiary"}
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "float32"


def test_tensors_are_those_of_the_published_layout(sharded: Path) -> None:
    wanted = {tensor.name: tensor.shape for tensor in published(bestiary.resolve(V3))}
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == wanted.keys()
    found = {name: tensor for file in set(index["weight_map"].values()) for name, tensor in read_file(sharded / file).items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert torch.equal(found["model.layers.3.shared_head.head.weight"], found["lm_head.weight"])
    assert max(file.stat().st_size for file in sharded.glob("*.safetensors")) < 70_000


def test_dtype_casts_all_but_the_selection_bias(tmp_path: Path) -> None:
    bestiary.save(fresh(V3), tmp_path / "m", dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in read_file(tmp_path / "m" / "model.safetensors").items()}
    odd = {name for name, dtype in dtypes.items() if dtype != torch.bfloat16}
    assert odd == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_model_that_transformers_does_not_have(tmp_path: Path, ids: torch.Tensor) -> None:
    model = fresh(V3, set={"block.attention": {"use": "gqa", "head_dim": 8}})
    report = bestiary.save(model, tmp_path / "m")
    assert "config.json" not in report.files and "only bestiary loads it" in str(report)
    assert torch.equal(bestiary.load(tmp_path / "m")(ids), model(ids))


def test_saving_over_a_checkpoint_replaces_it_and_keeps_the_rest(sharded: Path) -> None:
    (sharded / "tokenizer.json").write_text("{}")
    (sharded / "README.md").write_text("# card")
    model = fresh(V3, set={"block.attention": {"use": "gqa", "head_dim": 8}})
    report = bestiary.save(model, sharded)
    found = {path.name for path in sharded.iterdir()}
    assert found == {*report.files, "tokenizer.json", "README.md"} and "model.safetensors.index.json" not in found
    assert [path.name for path in sharded.parent.iterdir()] == [sharded.name]


@pytest.mark.parametrize("existing", [True, False], ids=["over-a-checkpoint", "new-folder"])
def test_failure_leaves_everything_as_it_was(existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    if existing:
        bestiary.save(fresh(V3), folder)
    before, calls = snapshot(folder), []

    def fail_at_the_second(tensors: dict, path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space left on device")
        Path(path).write_bytes(b"half")

    monkeypatch.setattr("safetensors.torch.save_file", fail_at_the_second)
    with pytest.raises(OSError, match="no space left"):
        bestiary.save(fresh(V3), folder, max_shard_size="60KB")
    assert snapshot(folder) == before and len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == (["m"] if existing else [])


def test_folders_that_are_no_checkpoint_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "will not be overwritten" in error_of(lambda: bestiary.save(fresh(V3), tmp_path))
    assert "this is a file" in error_of(lambda: bestiary.save(fresh(V3), tmp_path / "notes.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_empty_folders_are_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    bestiary.save(fresh(V3), tmp_path / "m")
    assert bestiary.load(tmp_path / "m").manifest.digest == bestiary.resolve(V3).digest


def test_saving_over_what_is_loaded(checkpoint: Path, ids: torch.Tensor) -> None:
    model = bestiary.load(checkpoint)
    expected = model(ids)
    bestiary.save(model, checkpoint)
    assert torch.equal(bestiary.load(checkpoint)(ids), expected)
