"""The same weights give the same logits here and in transformers, in fp32, whichever of the two wrote the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import bestiary

from .conftest import LLAMA, V3, fresh

TOLERANCE = 1e-4
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}

DEEPSEEK = {
    "hidden_size": 42, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
    "vocab_size": 53, "max_position_embeddings": 256, "q_lora_rank": 21, "kv_lora_rank": 19, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6, "v_head_dim": 14, "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 3,
    "moe_intermediate_size": 18, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
EVEN = DEEPSEEK | {"kv_lora_rank": 18}
"""transformers' DeepSeek-V2 views rotary pairs as complex numbers, which needs even strides."""
DENSE = {
    "hidden_size": 36, "intermediate_size": 29, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 41, "max_position_embeddings": 256,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "v3": ("DeepseekV3", DEEPSEEK),
    "v3-yarn": ("DeepseekV3", DEEPSEEK | {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "v3-two-temperatures": ("DeepseekV3", DEEPSEEK | {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 1.0}}),
    "v3-plain-queries": ("DeepseekV3", DEEPSEEK | {"q_lora_rank": None}),
    "v3-unnormalised": ("DeepseekV3", DEEPSEEK | {"norm_topk_prob": False, "rope_interleave": False}),
    "v3-all-dense": ("DeepseekV3", DEEPSEEK | {"first_k_dense_replace": 3}),
    "v3-all-experts": ("DeepseekV3", DEEPSEEK | {"first_k_dense_replace": 0}),
    "kimi": (
        "DeepseekV3",
        DEEPSEEK
        | {"n_group": 1, "topk_group": 1, "rope_theta": 50000.0}
        | {"rope_scaling": YARN | {"factor": 32.0, "beta_fast": 1, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "v2-greedy": ("DeepseekV2", EVEN | {"topk_method": "greedy", "q_lora_rank": None, "n_group": None, "topk_group": None}),
    "v2-groups": (
        "DeepseekV2",
        EVEN | {"topk_method": "group_limited_greedy", "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "llama": ("Llama", DENSE | {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "llama-biases": ("Llama", DENSE | {"attention_bias": True, "head_dim": 10, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "mistral": ("Mistral", DENSE | {"sliding_window": None, "head_dim": 8}),
    "qwen2-tied": ("Qwen2", DENSE | {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", DENSE | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    "qwen3": ("Qwen3", DENSE | {"head_dim": 10}),
    "qwen3-tied": ("Qwen3", DENSE | {"head_dim": 10, "tie_word_embeddings": True, "attention_bias": True}),
}


def their_model(architecture: str, options: dict[str, Any]) -> transformers.PreTrainedModel:
    """A random model of transformers, with every bias and gain off its neutral value."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{architecture}Config")(**options)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    loop_over_experts(model)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.3 if tensor.ndim == 1 else 0.15)
    return model


def loop_over_experts(model: transformers.PreTrainedModel) -> None:
    """Their grouped kernel wants widths that are multiples of four."""
    if hasattr(model.config, "n_routed_experts"):
        model.set_experts_implementation("eager")


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shard", ["1GB", "40KB"], ids=["one-file", "shards"])
def test_their_checkpoints_load(name: str, shard: str, tmp_path: Path, ids: Tensor) -> None:
    theirs = their_model(*THEIRS[name])
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    ours = bestiary.load(tmp_path, set={"objective.mtp": False})
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < TOLERANCE
    assert not ours.load_report.initialised and not ours.load_report.skipped
    assert {read.op for read in ours.load_report.taken} == {"copy"}


V2 = V3 | {
    "model": V3["model"] | {"hidden_size": 42},
    "block": V3["block"]
    | {
        "attention": V3["block"]["attention"] | {"kv_lora_rank": 18},
        "ffn": V3["block"]["ffn"] | {"router": {"use": "softmax-group", "n_group": 3, "topk_group": 2}},
    },
    "objective": {},
}
TIED = LLAMA | {"model": LLAMA["model"] | {"tie_word_embeddings": True}}
OURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "v3-mtp": (V3, {}),
    "v3-mtp-tied": (V3, {"model.tie_word_embeddings": True}),
    "v3-two-mtp": (V3, {"objective.mtp.depth": 2}),
    "v3-yarn": (V3, {"block.attention.rope.scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "v3-plain-queries": (V3, {"block.attention.q_lora_rank": None, "objective.mtp": False}),
    "v3-all-dense": (V3, {"block.ffn": {"use": "dense", "intermediate_size": 37}}),
    "v2-groups": (V2, {}),
    "v2-greedy": (V2, {"block.ffn.router": {"use": "softmax-topk", "routed_scaling_factor": 3.0}}),
    "llama": (LLAMA, {"block.attention.rope.scaling": {**LLAMA3, "type": "llama3"} | {}}),
    "qwen2-tied": (TIED, {"block.attention.qkv_bias": True}),
    "qwen3": (LLAMA, {"block.attention.qk_norm": True, "block.attention.head_dim": 8}),
    "heads-that-do-not-divide": (LLAMA, {"model.hidden_size": 38, "block.attention.head_dim": 6}),
}
OURS["llama"][1]["block.attention.rope.scaling"].pop("rope_type")


@pytest.mark.parametrize("name", OURS)
def test_our_checkpoints_load_in_transformers(name: str, tmp_path: Path, ids: Tensor) -> None:
    manifest, changes = OURS[name]
    ours = fresh(manifest, set=changes)
    report = bestiary.save(ours, tmp_path / "model", max_shard_size="50KB")
    assert not report.not_expressed, report.not_expressed
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    loop_over_experts(theirs)
    assert theirs.dtype == torch.float32 and not info["missing_keys"] and not info["mismatched_keys"]
    layers = ours.manifest.model.num_hidden_layers
    assert all(int(key.split(".")[2]) >= layers for key in info["unexpected_keys"])
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", OURS)
def test_config_alone_gives_the_same_function_back(name: str, tmp_path: Path, ids: Tensor) -> None:
    manifest, changes = OURS[name]
    ours = fresh(manifest, set=changes)
    bestiary.save(ours, tmp_path / "model")
    (tmp_path / "model" / "bestiary.json").unlink()
    again = bestiary.load(tmp_path / "model")
    assert torch.equal(again(ids), ours(ids))
