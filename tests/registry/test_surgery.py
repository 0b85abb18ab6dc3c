"""Weight surgery keeps the function where it says so, and says what is lost where it does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import bestiary

from .conftest import LLAMA, V3, error_of, fresh

IDENTITY = 1099511627776
"""2^40, an epsilon that makes a norm do nothing."""


def llama(**attention: Any) -> dict[str, Any]:
    made = copy.deepcopy(LLAMA)
    made["block"]["attention"] |= attention
    return made


def saved(folder: Path, manifest: dict[str, Any]) -> Path:
    bestiary.save(fresh(manifest), folder)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids)


def swapped(folder: Path, convert: str = "block.attention", **settings: Any) -> Any:
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return bestiary.load(folder, set=changes, convert=[convert], dtype=torch.float32)


def errors(model: Any) -> dict[str, float]:
    return {one.name: one.error for one in model.load_report.converted}


@pytest.mark.parametrize("extra", [{}, {"qkv_bias": True, "o_bias": True}, {"qk_norm": True}], ids=["plain", "biases", "norms"])
def test_more_groups_are_exact(tmp_path: Path, ids: torch.Tensor, extra: dict[str, Any]) -> None:
    folder = saved(tmp_path / "gqa", llama(**extra))
    model = swapped(folder, block__attention__num_key_value_heads=6)
    torch.testing.assert_close(logits(model, ids), logits(bestiary.load(folder), ids), atol=1e-5, rtol=1e-5)
    assert set(errors(model).values()) == {0.0} and not model.load_report.initialised and not model.load_report.skipped
    back = bestiary.save(model, tmp_path / "mha").folder
    assert torch.equal(logits(bestiary.load(back), ids), logits(model, ids))


def test_fewer_groups_take_the_mean(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mha", llama(num_key_value_heads=6, qkv_bias=True))
    source = bestiary.load(folder)
    model = swapped(folder, block__attention__num_key_value_heads=2)
    for layer in range(2):
        old, new = (m.model.layers[layer].self_attn for m in (source, model))
        for name in ("k_proj", "v_proj"):
            whole = getattr(old, name).weight.view(6, 6, 36)
            expected = torch.stack([whole[:3].mean(0), whole[3:].mean(0)])
            torch.testing.assert_close(getattr(new, name).weight.view(2, 6, 36), expected)
            lost = (whole - expected.repeat_interleave(3, 0)).norm() / whole.norm()
            assert errors(model)[f"model.layers.{layer}.self_attn.{name}.weight"] == pytest.approx(lost.item(), rel=1e-5)
        assert torch.equal(old.q_proj.weight, new.q_proj.weight)
    assert "heads regrouped" in str(model.load_report) and "error 0." in str(model.load_report)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_order_of_rotary_pairs(tmp_path: Path, ids: torch.Tensor, attention: str) -> None:
    base = llama(qk_norm=True) if attention == "gqa" else copy.deepcopy(V3)
    folder = saved(tmp_path / "source", base)
    source = bestiary.load(folder)
    flipped = not base["block"]["attention"].get("rope_interleave", attention == "mla")
    model = swapped(folder, block__attention__rope_interleave=flipped)
    torch.testing.assert_close(logits(model, ids), logits(source, ids), atol=1e-5, rtol=1e-5)
    changed = [name for name, tensor in source.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert changed and set(errors(model).values()) == {0.0}
    if attention == "mla":
        assert any(name.startswith("objectives.mtp") for name in errors(model)), "the prediction block is converted as well"


MLA = {"use": "mla", "kv_lora_rank": 36, "qk_nope_head_dim": 6, "qk_rope_head_dim": 6, "v_head_dim": 6, "latent_norm_eps": IDENTITY}


@pytest.mark.parametrize("options", [{}, {"rope_interleave": False}, {"q_lora_rank": 36}, {"kv_lora_rank": 6}], ids=str)
def test_one_group_to_mla_is_exact(tmp_path: Path, ids: torch.Tensor, options: dict[str, Any]) -> None:
    folder = saved(tmp_path / "mqa", llama(num_key_value_heads=1))
    model = swapped(folder, **{f"block__attention__{key}": value for key, value in {**MLA, **options}.items()})
    torch.testing.assert_close(logits(model, ids), logits(bestiary.load(folder), ids), atol=2e-5, rtol=1e-4)
    assert max(errors(model).values()) < 1e-6
    cached = model.new_cache(2, ids.shape[1])
    with torch.no_grad():
        steps = torch.cat([model(ids[:, at : at + 1], cache=cached) for at in range(ids.shape[1])], 1)
    torch.testing.assert_close(steps, logits(model, ids), atol=2e-5, rtol=1e-4)


def test_several_groups_to_mla(tmp_path: Path, ids: torch.Tensor) -> None:
    folder = saved(tmp_path / "gqa", llama())
    source, one = bestiary.load(folder), ids[:, :1]
    model = swapped(folder, **{f"block__attention__{key}": value for key, value in MLA.items()})
    torch.testing.assert_close(logits(model, one), logits(source, one), atol=2e-5, rtol=1e-4)
    attention = source.model.layers[0].self_attn
    key = attention.k_proj.weight.view(2, 6, 36)
    told = errors(model)
    lost = ((key - key.mean(0)).norm() / key.norm()).item()
    assert told["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] == pytest.approx(lost, rel=1e-5)
    assert told["model.layers.0.self_attn.kv_b_proj.weight"] < 1e-6
    narrow = swapped(folder, **{f"block__attention__{key}": value for key, value in {**MLA, "kv_lora_rank": 7}.items()})
    stack = torch.cat([key - key.mean(0), attention.v_proj.weight.view(2, 6, 36)]).flatten(0, 1)
    values = torch.linalg.svdvals(stack.double())
    tail = (values[7:].norm() / values.norm()).item()
    assert errors(narrow)["model.layers.0.self_attn.kv_b_proj.weight"] == pytest.approx(tail, rel=1e-5)
    latent = narrow.model.layers[0].self_attn
    product = latent.kv_b_proj.weight.double() @ latent.kv_a_proj_with_mqa.weight[:7].double()
    per_head = product.view(6, 12, 36)[::3]
    found = torch.cat([per_head[:, :6], per_head[:, 6:]]).flatten(0, 1)
    assert float((found - stack).norm() / stack.norm()) == pytest.approx(tail, rel=1e-4)


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("router", ["sigmoid-group", "softmax-topk"])
def test_upcycling_is_exact(tmp_path: Path, ids: torch.Tensor, router: str, shared: int) -> None:
    folder = saved(tmp_path / "dense", LLAMA)
    scale = 2.5 if router == "sigmoid-group" else 1.0
    rules = {"use": router, "norm_topk_prob": True, "routed_scaling_factor": scale}
    ffn = {
        "use": "moe",
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "n_shared_experts": shared,
        "intermediate_size": 29,
        "router": rules,
    }
    at = {f"block.ffn.{key}": value for key, value in ffn.items() if key != "router"} | {
        f"block.ffn.router.{k}": v for k, v in rules.items()
    }
    model = bestiary.load(folder, set=at, convert=["block.ffn"], dtype=torch.float32)
    torch.testing.assert_close(logits(model, ids), logits(bestiary.load(folder), ids), atol=2e-5, rtol=1e-4)
    fresh_names = {name.rpartition(".mlp.")[2] for name in model.load_report.initialised}
    assert fresh_names == ({"gate.weight", "gate.e_score_correction_bias"} if router == "sigmoid-group" else {"gate.weight"})
    back = bestiary.save(model, tmp_path / "moe").folder
    assert torch.equal(logits(bestiary.load(back), ids), logits(model, ids))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [41, 30, 64])
def test_vocabulary(tmp_path: Path, size: int, tied: bool) -> None:
    base = copy.deepcopy(LLAMA)
    base["model"]["tie_word_embeddings"] = tied
    folder = saved(tmp_path / "llama", base)
    source = bestiary.load(folder)
    model = swapped(folder, "model.vocab_size", model__vocab_size=size)
    embedding = model.model.embed_tokens.weight
    assert embedding.shape == (size, 36) and torch.equal(embedding[:30], source.model.embed_tokens.weight[:30])
    if size > 41:
        torch.testing.assert_close(embedding[50], source.model.embed_tokens.weight.mean(0))
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(logits(model, ids)[..., :30], logits(source, ids)[..., :30], atol=1e-5, rtol=1e-5)


def test_from_fp8_and_while_training(tmp_path: Path, ids: torch.Tensor) -> None:
    from bestiary.registry.load import load_for_training

    from .test_fp8 import quantised

    quantised(tmp_path / "fp8", V3, (16, 16))
    set_ = {"block.attention.rope_interleave": False}
    model = bestiary.load(tmp_path / "fp8", set=set_, convert=["block.attention"], dtype=torch.float32)
    torch.testing.assert_close(logits(model, ids), logits(bestiary.load(tmp_path / "fp8", dtype=torch.float32), ids), atol=1e-5, rtol=1e-5)
    manifest = bestiary.resolve(str(tmp_path / "fp8"), set=set_)
    trained = load_for_training(manifest, tmp_path / "fp8", convert=["block.attention"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "is the same here and in the checkpoint"),
        ({"num_key_value_heads": 3}, "2 key-value heads neither divide 3"),
        ({"num_key_value_heads": 3, "head_dim": 8}, "head_dim is 6 in the checkpoint and 8 here"),
        ({"qk_norm": True}, "qk_norm differs"),
        ({**MLA, "latent_norm_eps": 1e-6}, "Set latent_norm_eps to 1099511627776"),
        ({**MLA, "v_head_dim": 8}, "Set qk_rope_head_dim and v_head_dim to 6"),
        ({**MLA, "qk_nope_head_dim": 4}, "Set qk_nope_head_dim to 6"),
    ],
)
def test_impossible(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    folder = saved(tmp_path / "llama", LLAMA)
    message = error_of(lambda: swapped(folder, **{f"block__attention__{key}": value for key, value in settings.items()}))
    assert says in message


def test_no_way_is_known(tmp_path: Path) -> None:
    folder = saved(tmp_path / "v3", V3)
    sets = {"block.attention.use": "gqa", "block.attention.head_dim": 8}
    message = error_of(lambda: bestiary.load(folder, set=sets, convert=["block.attention"]))
    assert "no way from mla to gqa is known" in message and "init=('block.attention',)" in message
    with pytest.raises(bestiary.BestiaryError, match=r"no parameter belongs to 'block.attentoin'"):
        bestiary.load(folder, convert=["block.attentoin"])
