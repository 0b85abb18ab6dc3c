"""The names of DeepSeek's own inference code, and those of the Hub.

`model.layers.0.self_attn.q_a_proj.weight` is `layers.0.attn.wq_a.weight` there. Every part of a name is replaced by itself, so
that the way back is the same table read from right to left.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint

THERE = {
    "embed_tokens": "embed", "lm_head": "head", "self_attn": "attn", "mlp": "ffn",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "q_proj": "wq", "q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b",
    "kv_a_proj_with_mqa": "wkv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "o_proj": "wo",
    "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
    "weight_scale_inv": "scale", "e_score_correction_bias": "bias",
}  # fmt: skip
HERE = {there: here for here, there in THERE.items()}
FILE = "model0-mp1.safetensors"
"""What that code reads on one device."""


def to_deepseek(name: str) -> str:
    """The name that DeepSeek's code gives to a tensor of the Hub."""
    return ".".join(THERE.get(part, part) for part in name.removeprefix("model.").split("."))


def to_hub(name: str) -> str:
    """The way back."""
    found = ".".join(HERE.get(part, part) for part in name.split("."))
    return found if found.startswith("lm_head.") else f"model.{found}"


def with_hub_names(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint under the Hub's names; one that has them already stays as it is."""
    from dataclasses import replace

    if "embed.weight" not in checkpoint.tensors:
        return checkpoint
    renamed = [replace(tensor, name=to_hub(tensor.name)) for tensor in checkpoint.tensors.values()]
    return Checkpoint(checkpoint.folder, {tensor.name: tensor for tensor in renamed})
