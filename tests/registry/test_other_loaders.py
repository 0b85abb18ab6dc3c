"""What we save, vLLM and SGLang place completely: their loaders' rules for deepseek_v3 and its prediction layer, as a table.

The rules are those of vLLM's `deepseek_v2.py` and `deepseek_mtp.py` and SGLang's `deepseek_v2.py` and `deepseek_nextn.py`: which parameters
they have, and from which names of a checkpoint each is filled. A name without a place, a place without a name, or a wrong shape fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bestiary
from bestiary.registry.layout import scale_shape

from .conftest import V3, fresh, read_file
from .test_fp8 import quantised

FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj"}
"""Names that both loaders join into one parameter."""
OWN = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head")
"""What vLLM looks for beside the block in a prediction layer."""

Place = tuple[str, str]
"""A parameter of the server, and which part of it."""


def placed(name: str, layers: int) -> Place:
    """Where vLLM puts a tensor of a checkpoint."""
    layer = f"model.layers.{layers}."
    if name.startswith(layer):
        rest = name.removeprefix(layer)
        if rest.startswith("embed_tokens"):
            return f"mtp:model.{rest}", ""
        inner = rest if rest.startswith(OWN) else f"mtp_block.{rest}"
        name = f"mtp:{layer}{inner}"
    parts = name.split(".")
    if "experts" in parts:
        at = parts.index("experts")
        expert, projection, kind = parts[at + 1 :]
        stack = "w2" if projection == "down_proj" else "w13"
        return ".".join([*parts[: at + 1], f"{stack}_{kind}"]), f"{expert}.{projection}"
    for part in parts:
        if part in FUSED:
            return name.replace(part, FUSED[part]), part
    return name, ""


def expected(config: dict[str, Any]) -> dict[Place, tuple[int, ...]]:
    """Every place of the main model and of the prediction layer, with the shape of what goes there."""
    d, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    vocabulary, layers = config["vocab_size"], config["num_hidden_layers"]
    found: dict[Place, tuple[int, ...]] = {
        ("model.embed_tokens.weight", ""): (vocabulary, d), ("lm_head.weight", ""): (vocabulary, d), ("model.norm.weight", ""): (d,),
    }  # fmt: skip

    def dense(stem: str, width: int) -> None:
        for part in ("gate_proj", "up_proj"):
            found[f"{stem}.gate_up_proj.weight", part] = (width, d)
        found[f"{stem}.down_proj.weight", ""] = (d, width)

    def block(stem: str, experts: bool) -> None:
        attention = f"{stem}.self_attn."
        found[f"{attention}fused_qkv_a_proj.weight", "q_a_proj"] = (config["q_lora_rank"], d)
        found[f"{attention}fused_qkv_a_proj.weight", "kv_a_proj_with_mqa"] = (rank + rope, d)
        found[f"{attention}q_a_layernorm.weight", ""] = (config["q_lora_rank"],)
        found[f"{attention}q_b_proj.weight", ""] = (heads * (nope + rope), config["q_lora_rank"])
        found[f"{attention}kv_a_layernorm.weight", ""] = (rank,)
        found[f"{attention}kv_b_proj.weight", ""] = (heads * (nope + value), rank)
        found[f"{attention}o_proj.weight", ""] = (d, heads * value)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{stem}.{norm}.weight", ""] = (d,)
        if not experts:
            dense(f"{stem}.mlp", config["intermediate_size"])
            return
        width, count = config["moe_intermediate_size"], config["n_routed_experts"]
        found[f"{stem}.mlp.gate.weight", ""] = (count, d)
        found[f"{stem}.mlp.gate.e_score_correction_bias", ""] = (count,)
        dense(f"{stem}.mlp.shared_experts", width * config["n_shared_experts"])
        for expert in range(count):
            for part in ("gate_proj", "up_proj"):
                found[f"{stem}.mlp.experts.w13_weight", f"{expert}.{part}"] = (width, d)
            found[f"{stem}.mlp.experts.w2_weight", f"{expert}.down_proj"] = (d, width)

    for layer in range(layers):
        block(f"model.layers.{layer}", layer >= config["first_k_dense_replace"])
    own = f"mtp:model.layers.{layers}."
    found |= {(f"{own}{name}.weight", ""): (d,) for name in ("enorm", "hnorm", "shared_head.norm")}
    found[f"{own}eh_proj.weight", ""] = (d, 2 * d)
    found[f"{own}shared_head.head.weight", ""] = found["mtp:model.embed_tokens.weight", ""] = (vocabulary, d)
    block(f"{own}mtp_block", experts=True)
    return found


@pytest.fixture(params=["bf16", "fp8"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "fp8":
        quantised(tmp_path / "v3", V3, (16, 16))
    else:
        bestiary.save(fresh(V3), tmp_path / "v3", dtype=torch.bfloat16)
    return tmp_path / "v3"


def test_every_tensor_has_a_place_and_every_place_a_tensor(folder: Path) -> None:
    import json

    config, tensors = json.loads((folder / "config.json").read_text()), read_file(folder / "model.safetensors")
    wanted = expected(config)
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    places = {placed(name, config["num_hidden_layers"]): tuple(tensor.shape) for name, tensor in plain.items()}
    assert len(places) == len(plain) and places == wanted
    for name, tensor in plain.items():
        scale = tensors.get(f"{name}_scale_inv")
        assert (scale is not None) == (tensor.dtype == torch.float8_e4m3fn), name
        if scale is not None:
            assert scale.dtype == torch.float32 and tuple(scale.shape) == scale_shape(tuple(tensor.shape), (16, 16))
        if name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.float32
    assert config["num_nextn_predict_layers"] == 1 and config["architectures"] == ["DeepseekV3ForCausalLM"]


def test_sglang_takes_the_head_and_embedding_from_the_main_model(folder: Path) -> None:
    tensors = read_file(folder / "model.safetensors")
    layer = [name.removeprefix("model.layers.3.") for name in tensors if name.startswith("model.layers.3.")]
    left = [name for name in layer if "shared_head.head" not in name and "embed_tokens" not in name]
    own = {name for name in left if name.startswith(("shared_head.norm", "eh_proj", "enorm", "hnorm"))}
    assert own == {"shared_head.norm.weight", "eh_proj.weight", "enorm.weight", "hnorm.weight"}
    assert all(name.startswith(("self_attn.", "mlp.", "input_layernorm", "post_attention_layernorm")) for name in set(left) - own)
    for copy, original in (("shared_head.head", "lm_head"), ("embed_tokens", "model.embed_tokens")):
        assert torch.equal(tensors[f"model.layers.3.{copy}.weight"], tensors[f"{original}.weight"])
