"""What the dense architectures share: grouped-query attention and a SwiGLU in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .common import MODEL, STORAGE
from .rope import Rope
from .rules import Config, Fixed, Inexpressible, Key, Rule, Values


def heads(values: Values) -> int:
    """Key-value heads where none are given: as many as query heads. Called before the latter are consumed."""
    return values["model.num_attention_heads"]


def head_width(values: Values) -> int:
    return values["model.hidden_size"] // values["model.num_attention_heads"]


@dataclass(frozen=True)
class AllBiases:
    """`attention_bias`: biases on all four projections, or on none."""

    def read(self, config: Config, values: Values) -> None:
        found = bool(config.data.get("attention_bias"))
        values |= {"attention.qkv_bias": found, "attention.o_bias": found}

    def write(self, values: Values, config: dict[str, Any]) -> None:
        qkv, o = values.pop("attention.qkv_bias"), values.pop("attention.o_bias")
        if qkv != o:
            raise Inexpressible(f"qkv_bias = {qkv} with o_bias = {o}, where this architecture has all biases or none")
        config["attention_bias"] = qkv


@dataclass(frozen=True)
class FullAttention:
    """Refuses layers that see only a window, in every way in which Qwen's configs say so."""

    def read(self, config: Config, values: Values) -> None:
        if config.data.get("use_sliding_window"):
            config.refuse("use_sliding_window", "sliding windows are not supported.", "Set it to false if no layer uses one.")
        other = set(config.data.get("layer_types") or ()) - {"full_attention"}
        if other:
            config.refuse("layer_types", f"{', '.join(sorted(map(str, other)))} is not supported.", "Only full_attention is.")

    def write(self, values: Values, config: dict[str, Any]) -> None:
        config["use_sliding_window"] = False


GQA: tuple[Rule, ...] = (
    Fixed("attention.use", "gqa"),
    Fixed("attention.rope_interleave", False),
    Fixed("dense.use", "dense"),
    Key("intermediate_size", "dense.intermediate_size"),
    Key("num_key_value_heads", "attention.num_key_value_heads", absent=None, fill=heads),
    Rope(),
)


def blocks(head_dim: Key, *more: Rule) -> tuple[Rule, ...]:
    """Rules of a dense model. What fills in widths is written while the model's own are still at hand."""
    return (*GQA, head_dim, *MODEL, *STORAGE, *more)
