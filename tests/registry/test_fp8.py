"""FP8 blocks come out exactly, also where the last ones are smaller, and nothing about them is guessed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import bestiary
from bestiary.registry.layout import QUANTISED

from .conftest import V3, edit_json, error_of, fresh, read_file

KV_A = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"


def quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`[R, C]` to e4m3 and one multiplier per block, block by block."""
    rows, columns = (math.ceil(n / b) for n, b in zip(weight.shape, block, strict=True))
    out, scale = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            place = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale[i, j] = weight[place].abs().max() / 448
            out[place] = (weight[place] / scale[i, j]).to(torch.float8_e4m3fn)
    return out, scale


def dequantise_one_by_one(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """The definition, element by element, in fp32."""
    i, j = (torch.arange(n) // b for n, b in zip(weight.shape, block, strict=True))
    return weight.float() * scale[i[:, None], j[None, :]]


def quantised(folder: Path, manifest: dict[str, Any], block: tuple[int, int], shards: int = 1) -> dict[str, Tensor]:
    """Writes a checkpoint of FP8 blocks, scales far from their weights, and returns its tensors."""
    model = fresh(manifest)
    bestiary.save(model, folder, dtype=torch.bfloat16)
    tensors = read_file(folder / "model.safetensors")
    roles = {piece.hub: entry.weight.role for entry in _entries(model) for piece in entry.pieces}
    scales = {}
    for name, tensor in list(tensors.items()):
        if roles[name] in QUANTISED:
            tensors[name], scales[f"{name}_scale_inv"] = quantise(tensor.float(), block)
    (folder / "model.safetensors").unlink()
    parts = [tensors, scales] if shards == 2 else [tensors | scales]
    names = [f"model-{n}.safetensors" for n in range(len(parts))] if shards == 2 else ["model.safetensors"]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    if shards == 2:
        index = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        (folder / "model.safetensors.index.json").write_text('{"weight_map": ' + str(index).replace("'", '"') + "}")
    (folder / "bestiary.json").unlink()
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    edit_json(folder / "config.json", lambda data: data.update(quantization_config=config))
    return tensors | scales


def _entries(model: Any) -> list[Any]:
    from bestiary.core.table import entries

    return entries(model.manifest)


@pytest.mark.parametrize("shards", [1, 2], ids=["one-file", "scales-in-another-shard"])
@pytest.mark.parametrize("block", [(16, 16), (7, 9), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["bf16", "fp32"])
def test_blocks_are_exact(block: tuple[int, int], shards: int, dtype: torch.dtype | None, tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, block, shards)
    model = bestiary.load(tmp_path / "fp8", dtype=dtype)
    state = model.state_dict()
    kept = dtype or torch.bfloat16
    expected = dequantise_one_by_one(stored[KV_A], stored[f"{KV_A}_scale_inv"], block).to(kept)
    assert state[KV_A].dtype == kept and torch.equal(state[KV_A], expected)
    name = "model.layers.2.mlp.experts.5.up_proj.weight"
    expected = dequantise_one_by_one(stored[name], stored[f"{name}_scale_inv"], block).to(kept)
    assert torch.equal(state["model.layers.2.mlp.experts.gate_up_proj.weight"][5, 18:], expected)
    assert state["model.layers.2.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    ops = {read.op for read in model.load_report.taken}
    assert "dequantise" in ops and "F8_E4M3 to" in str(model.load_report)


@pytest.mark.parametrize("rows", [576, 192, 72])
def test_ragged_rows_of_published_block_size(rows: int, tmp_path: Path) -> None:
    """576 rows are DeepSeek-V3's; 192 rows with two rows of scales are what a guess from shapes gets wrong."""
    changes = {**V3["block"]["attention"], "kv_lora_rank": rows - 6, "q_lora_rank": None}
    manifest = V3 | {"block": V3["block"] | {"attention": changes}, "objective": {}}
    block = (128, 128) if rows > 72 else (16, 16)
    stored = quantised(tmp_path / "fp8", manifest, block)
    state = bestiary.load(tmp_path / "fp8").state_dict()
    expected = dequantise_one_by_one(stored[KV_A], stored[f"{KV_A}_scale_inv"], block)
    assert stored[KV_A].shape[0] == rows and torch.equal(state[KV_A], expected.bfloat16())


def test_packed_experts_in_fp8(tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    packed = {name: tensor for name, tensor in stored.items() if ".mlp.experts." not in name}
    for layer in (1, 2, 3):
        stem = f"model.layers.{layer}.mlp.experts"
        full = torch.randn(6, 36, 44, generator=torch.Generator().manual_seed(layer))
        for name, tensor in (("gate_up_proj", full), ("down_proj", full[:, :18].transpose(1, 2).contiguous())):
            pairs = [quantise(matrix, (16, 16)) for matrix in tensor]
            packed[f"{stem}.{name}"] = torch.stack([pair[0].view(torch.uint8) for pair in pairs]).view(torch.float8_e4m3fn)
            packed[f"{stem}.{name}_scale_inv"] = torch.stack([pair[1] for pair in pairs])
    save_file(packed, tmp_path / "fp8" / "model.safetensors")
    state = bestiary.load(tmp_path / "fp8", dtype=torch.float32).state_dict()
    name = "model.layers.1.mlp.experts.down_proj"
    expected = dequantise_one_by_one(packed[name][4], packed[f"{name}_scale_inv"][4], (16, 16))
    assert torch.equal(state[f"{name}.weight"][4], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0], ids=str)
def test_unusable_scales(value: float, tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    stored[f"{KV_A}_scale_inv"][1, 1] = value
    save_file(stored, tmp_path / "fp8" / "model.safetensors")
    message = error_of(lambda: bestiary.load(tmp_path / "fp8"))
    assert f"{KV_A}_scale_inv" in message and "1 of" in message and "fetch it again" in message


def test_missing_scales(tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    del stored[f"{KV_A}_scale_inv"]
    save_file(stored, tmp_path / "fp8" / "model.safetensors")
    assert f"its scales {KV_A}_scale_inv are missing" in error_of(lambda: bestiary.load(tmp_path / "fp8"))


def test_block_size_is_never_guessed(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    edit_json(tmp_path / "fp8" / "config.json", lambda data: data.pop("quantization_config"))
    assert "no block size is given" in error_of(lambda: bestiary.load(tmp_path / "fp8"))


def test_block_size_that_does_not_fit_the_scales(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    edit_json(tmp_path / "fp8" / "config.json", lambda data: data["quantization_config"].update(weight_block_size=[8, 16]))
    assert "is expected" in error_of(lambda: bestiary.load(tmp_path / "fp8"))


def test_scales_without_fp8_are_unexpected(checkpoint: Path) -> None:
    tensors = read_file(checkpoint / "model.safetensors") | {f"{KV_A}_scale_inv": torch.ones(1, 1)}
    save_file(tensors, checkpoint / "model.safetensors")
    assert f"{KV_A}_scale_inv: unexpected" in error_of(lambda: bestiary.load(checkpoint))


def test_what_was_fp8_is_saved_plainly(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    model = bestiary.load(tmp_path / "fp8")
    bestiary.save(model, tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    again = bestiary.load(tmp_path / "plain").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
