"""Llama, and Mistral without its sliding window."""

from __future__ import annotations

from .common import DividesHidden
from .dense import AllBiases, blocks
from .rules import Family, Fixed, Key, Only

HEAD_DIM = Key("head_dim", "attention.head_dim", absent=None, omit=True)

LLAMA = Family(
    ("llama",),
    "LlamaForCausalLM",
    blocks(
        HEAD_DIM,
        AllBiases(),
        DividesHidden(),
        Fixed("attention.qk_norm", False),
        Only("mlp_bias", False, "SwiGLU has no biases here."),
    ),
)

MISTRAL = Family(
    ("mistral",),
    "MistralForCausalLM",
    blocks(
        HEAD_DIM,
        Fixed("attention.qkv_bias", False),
        Fixed("attention.o_bias", False),
        Fixed("attention.qk_norm", False),
        Only("sliding_window", None, "Sliding windows are not supported; later releases have null here.", absent=4096),
    ),
)
