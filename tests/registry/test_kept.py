"""FP8 blocks stay in memory as they are stored: what is computed from them, what they take, and that they are saved again unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import bestiary
from bestiary.core.backbone import CausalLM
from bestiary.core.table import own_entries
from bestiary.registry.coverage import uncovered
from bestiary.registry.layout import QUANTISED

from .conftest import V3, edit_json, error_of, read_file
from .test_fp8 import KV_A, quantise, quantised

FP8 = {"precision.use": "fp8"}
WIDE = V3 | {
    "model": V3["model"] | {"hidden_size": 256, "vocab_size": 61},
    "block": {  # type: ignore[operator]
        **V3["block"],
        "ffn": {**V3["block"]["ffn"], "intermediate_size": 160},
    },
}  # type: ignore[index]
"""Sizes that 128 divides and does not: experts of 160 rows begin a new block at `up_proj`, which lies below `gate_proj` in memory."""


@pytest.fixture(params=[(16, 16), (7, 9), (128, 128)], ids=str)
def block(request: pytest.FixtureRequest) -> Any:
    return request.param


def as_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().view(torch.uint8) for name, tensor in tensors.items()}


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the C++ kernels for a few bf16 rows, which sum in another order than torch and take plain weights only."""
    monkeypatch.setattr("bestiary.core.native.few_rows", lambda x: False)
    for module in ("core.native.linear", "plugins.moe.decode", "plugins.attention_mla.decode"):
        monkeypatch.setattr(f"bestiary.{module}.few_rows", lambda x: False)


@pytest.mark.usefixtures("torch_alone")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32], ids=str)
def test_logits_and_texts_are_those_of_decoded_weights(dtype: torch.dtype | None, block: Any, tmp_path: Path, ids: Tensor) -> None:
    quantised(tmp_path / "fp8", V3, block)
    kept, plain = bestiary.load(tmp_path / "fp8", set=FP8, dtype=dtype), bestiary.load(tmp_path / "fp8", dtype=dtype)
    assert torch.equal(kept(ids), plain(ids)) and kept(ids).dtype == (dtype or torch.bfloat16)
    assert torch.equal(kept.generate(ids, max_new_tokens=9), plain.generate(ids, max_new_tokens=9))
    drafted = [model.generate(ids, max_new_tokens=6, speculative="mtp") for model in (kept, plain)]
    assert torch.equal(*drafted)


def test_saved_again_it_is_the_same(block: Any, tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, block)
    bestiary.save(bestiary.load(tmp_path / "fp8", set=FP8), tmp_path / "again")
    again = as_bytes(read_file(tmp_path / "again" / "model.safetensors"))
    assert again.keys() == stored.keys()
    assert all(torch.equal(found, again[name]) for name, found in as_bytes(stored).items())
    assert bestiary.load(tmp_path / "again").manifest.hub.weight_block_size == block
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "fp8")]
    assert configs[0] == configs[1]


def test_a_byte_a_number(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", WIDE, (128, 128), shards=2)
    model = bestiary.load(tmp_path / "fp8", set=FP8)
    low = {name for name, entry in own_entries(model.manifest).items() if entry.weight.role in QUANTISED}
    numbers = sum(model.get_parameter(name).numel() for name in low)
    nbytes = sum(t.nbytes for name, t in model.state_dict().items() if name.removesuffix("_scale_inv") in low)
    assert numbers > 500_000 and numbers < nbytes < 1.01 * numbers
    assert not any(model.get_parameter(name).requires_grad for name in low) and model.model.norm.weight.requires_grad


def test_every_code_and_factor_is_read_once_and_named(block: Any, tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, block)
    model = bestiary.load(tmp_path / "fp8", set=FP8)
    kept = [read.source.name for read in model.load_report.taken if read.op == "keep"]
    low = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    assert sorted(kept) == sorted(low | {f"{name}_scale_inv" for name in low})
    held = {name: tuple(slice(0, n) for n in tensor.shape) for name, tensor in model.state_dict().items()}
    assert uncovered(model.load_report.taken, held) == []
    assert f"keep        {len(low):>7,} tensors" in str(model.load_report) and "dequantise" not in str(model.load_report)


def test_packed_experts_are_saved_in_a_layout_that_cuts_no_block(tmp_path: Path) -> None:
    """18 rows of `gate_proj` above 18 of `up_proj` are blocks of 16, 16 and 4 rows, which cannot be told apart again."""
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    packed = {name: tensor for name, tensor in stored.items() if ".mlp.experts." not in name}
    for layer in (1, 2, 3):
        full = torch.randn(6, 36, 44, generator=torch.Generator().manual_seed(layer))
        for name, tensor in (("gate_up_proj", full), ("down_proj", full[:, :18].transpose(1, 2).contiguous())):
            codes, scales = zip(*(quantise(matrix, (16, 16)) for matrix in tensor), strict=True)
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            packed |= {
                stem: torch.stack([c.view(torch.uint8) for c in codes]).view(codes[0].dtype),
                f"{stem}_scale_inv": torch.stack(scales),
            }
    save_file(packed, tmp_path / "fp8" / "model.safetensors")
    model = bestiary.load(tmp_path / "fp8", set=FP8)
    bestiary.save(model, tmp_path / "again")
    again = as_bytes(read_file(tmp_path / "again" / "model.safetensors"))
    assert "model.layers.1.mlp.experts.gate_up_proj" in again and "model.layers.1.mlp.experts.0.down_proj.weight" in again
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert all(torch.equal(again[key], as_bytes(packed)[key]) for key in (name, f"{name}_scale_inv"))
    bestiary.save(model, tmp_path / "plain", dtype=torch.float32)
    expected, found = (bestiary.load(tmp_path / folder, dtype=torch.float32).state_dict() for folder in ("fp8", "plain"))
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_saved_in_another_dtype_it_is_decoded(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    bestiary.save(bestiary.load(tmp_path / "fp8", set=FP8), tmp_path / "plain", dtype=torch.float32)
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    expected, found = bestiary.load(tmp_path / "fp8", dtype=torch.float32).state_dict(), bestiary.load(tmp_path / "plain").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_training_starts_from_decoded_masters(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    manifest = bestiary.resolve(str(tmp_path / "fp8"), set=FP8)
    model = bestiary.registry.load.load_for_training(manifest, tmp_path / "fp8")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.blocks
    assert "backend     emulation\n  reason      auto" in str(model.load_report)


def test_fresh_and_converted_parts_are_plain_and_not_mixed_into_fp8(tmp_path: Path, ids: Tensor) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    model = bestiary.load(tmp_path / "fp8", set=FP8, init=["block.attention"])
    assert model(ids).isfinite().all() and model.get_parameter(KV_A).dtype == torch.bfloat16
    assert "matrices are not FP8, such as model.layers.0" in error_of(lambda: bestiary.save(model, tmp_path / "mixed"))
    bestiary.save(model, tmp_path / "plain", dtype=torch.bfloat16)


def edited(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = quantised(folder, V3, (16, 16))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{KV_A}_scale_inv"), f"its scales {KV_A}_scale_inv are missing"),
        (lambda t: t.update({f"{KV_A}_scale_inv": torch.ones(1, 3)}), r"shape \[1, 3\] was found, \[2, 3\] is expected"),
        (lambda t: t.pop(KV_A), f"{KV_A}: missing"),
        (lambda t: t.update({KV_A: t[KV_A].float().bfloat16()}), f"{KV_A}_scale_inv: unexpected"),
        (lambda t: t.update({KV_A: t[KV_A].float().to(torch.float8_e5m2)}), "its dtype F8_E5M2 is no format of weights"),
        (lambda t: t.update({f"{KV_A}_scale_inv": torch.ones(2, 3, dtype=torch.int32)}), "its dtype I32 is no format of scales"),
        (lambda t: t.update({f"{KV_A}_scale_inv": torch.ones(2, 3).to(torch.float8_e8m0fnu)}), "its dtype F8_E8M0 is no format of scales"),
    ],
    ids=["no-scales", "shape", "no-weight", "scales-of-bf16", "e5m2", "int-scales", "e8m0"],
)
def test_what_does_not_fit_is_said_before_anything_is_read(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(tmp_path / "fp8", change)
    monkeypatch.setattr("bestiary.registry.fill.fill", lambda *_, **__: pytest.fail("something was read"))
    with pytest.raises(bestiary.BestiaryError, match=message):
        bestiary.load(tmp_path / "fp8", set=FP8)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0], ids=str)
def test_unusable_factors(value: float, tmp_path: Path) -> None:
    edited(tmp_path / "fp8", lambda tensors: tensors[f"{KV_A}_scale_inv"][1, 1].fill_(value))
    message = error_of(lambda: bestiary.load(tmp_path / "fp8", set=FP8))
    assert f"{KV_A}_scale_inv" in message and "1 of 6 scales" in message


@pytest.mark.usefixtures("torch_alone")
def test_factors_in_bf16_stay_so(tmp_path: Path, ids: Tensor) -> None:
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    stored |= {name: tensor.bfloat16() for name, tensor in stored.items() if name.endswith("_scale_inv")}
    save_file(stored, tmp_path / "fp8" / "model.safetensors")
    model = bestiary.load(tmp_path / "fp8", set=FP8)
    assert torch.equal(model(ids), bestiary.load(tmp_path / "fp8")(ids))
    bestiary.save(model, tmp_path / "again")
    again = as_bytes(read_file(tmp_path / "again" / "model.safetensors"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in as_bytes(stored).items())


def test_factors_are_never_rounded(tmp_path: Path) -> None:
    stored = quantised(tmp_path / "fp8", V3, (16, 16))
    factors = bestiary.load(tmp_path / "fp8", set=FP8).state_dict()[f"{KV_A}_scale_inv"]
    assert torch.equal(factors, stored[f"{KV_A}_scale_inv"]) and (factors.log2() % 1 != 0).any()


def test_codes_that_were_cast_are_refused(tmp_path: Path, ids: Tensor) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    model: CausalLM = bestiary.load(tmp_path / "fp8", set=FP8).float()
    assert "FP8 codes were cast to torch.float32" in error_of(lambda: model(ids))


def test_a_block_size_is_asked_for(tmp_path: Path) -> None:
    quantised(tmp_path / "fp8", V3, (16, 16))
    edit_json(tmp_path / "fp8" / "config.json", lambda data: data.pop("quantization_config"))
    assert "no block size is given" in error_of(lambda: bestiary.load(tmp_path / "fp8", set=FP8))
