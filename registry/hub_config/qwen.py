"""Qwen2 (biases on q, k and v) and Qwen3 (norms on q and k)."""

from __future__ import annotations

from .dense import AllBiases, FullAttention, blocks, head_width
from .rules import Family, Fixed, Key

QWEN2 = Family(
    ("qwen2",),
    "Qwen2ForCausalLM",
    blocks(
        Key("head_dim", "attention.head_dim", absent=None, omit=True),
        Fixed("attention.qkv_bias", True),
        Fixed("attention.o_bias", False),
        Fixed("attention.qk_norm", False),
        FullAttention(),
    ),
)

QWEN3 = Family(
    ("qwen3",),
    "Qwen3ForCausalLM",
    blocks(
        Key("head_dim", "attention.head_dim", absent=128, fill=head_width),
        AllBiases(),
        Fixed("attention.qk_norm", True),
        FullAttention(),
    ),
)
