"""Options of MLA, and what follows from them without building anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...core.component import Cost, Options
from ...core.layers.rope import RopeOptions
from ...core.site import Site
from ...core.weights import Weight, linear, norm

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.surgery import Made
    from .attention import MultiHeadLatentAttention


class MLAOptions(Options):
    q_lora_rank: int | None = Field(default=None, gt=0)
    """Width of the query latent; queries come straight from the input when None (V2-Lite, Moonlight)."""
    kv_lora_rank: int = Field(gt=0)
    """Width of the latent from which all heads' keys and values are made."""
    qk_nope_head_dim: int = Field(gt=0)
    """Width of a head's query and key that carries no position."""
    qk_rope_head_dim: int = Field(gt=0)
    """Width of the rotary part; the rotary key is shared by all heads."""
    v_head_dim: int = Field(gt=0)
    """Width of a head's value."""
    rope: RopeOptions = RopeOptions()
    """Rotary position embedding."""
    rope_interleave: bool = True
    """Whether rotary pairs are neighbours, as in DeepSeek's weights."""
    latent_norm_eps: float = Field(default=1e-6, gt=0)
    """Epsilon of the two norms on the latents; 1e-6 in the released code whatever `rms_norm_eps` says."""
    kernels: Literal["torch", "triton"] = "torch"
    """What computes attention: torch, or our Triton kernels on an NVIDIA GPU, in bf16, fp16 or fp32. Results are the same up to rounding;
    torch is the default until the kernels were measured to be faster."""

    def table(self) -> dict[str, Any]:
        """The options as manifest data, `kernels` only if it is not torch: else it says nothing about a model, and changes no digest."""
        table = super().table()
        if self.kernels == "torch":
            del table["kernels"]
        return table


def check(options: MLAOptions, site: Site) -> Iterator[str]:
    if options.qk_rope_head_dim % 2:
        yield f"qk_rope_head_dim = {options.qk_rope_head_dim} is odd, and RoPE turns pairs. Use an even number."


def weights(options: MLAOptions, site: Site) -> list[Weight]:
    d, heads = site.hidden_size, site.num_attention_heads
    query, value = options.qk_nope_head_dim + options.qk_rope_head_dim, options.v_head_dim
    key_value = options.qk_nope_head_dim + value
    if options.q_lora_rank is None:
        rows = linear("q_proj", d, heads * query, shard="column", unit=query)
    else:
        rows = [
            *linear("q_a_proj", d, options.q_lora_rank),
            norm("q_a_layernorm", options.q_lora_rank),
            *linear("q_b_proj", options.q_lora_rank, heads * query, shard="column", unit=query),
        ]
    return [
        *rows,
        *linear("kv_a_proj_with_mqa", d, options.kv_lora_rank + options.qk_rope_head_dim),
        norm("kv_a_layernorm", options.kv_lora_rank),
        *linear("kv_b_proj", options.kv_lora_rank, heads * key_value, shard="column", unit=key_value),
        *linear("o_proj", heads * value, d, shard="row", unit=value),
    ]


def cost(options: MLAOptions, site: Site) -> Cost:
    heads, latent, rope = site.num_attention_heads, options.kv_lora_rank, options.qk_rope_head_dim
    key, value = options.qk_nope_head_dim + rope, options.v_head_dim
    query_latent = 2 * (options.q_lora_rank or 0)
    return Cost(
        pair_macs=heads * (key + value),
        cache_elements=latent + rope,
        saved_elements=site.hidden_size + query_latent + 2 * latent + rope + heads * (2 * key + 2 * value),
        cut_elements=heads * (2 * key + 2 * value),
        saved_fp32=heads,
    )


def build(options: MLAOptions, site: Site) -> MultiHeadLatentAttention:
    from .attention import MultiHeadLatentAttention

    return MultiHeadLatentAttention(options, site)


IDENTITY = 2.0**30
"""Epsilon from which on the norm of a latent of ordinary size changes it by less than fp32 can show."""


def gqa_why_not(before: Any, after: MLAOptions, site: Site) -> str:
    """Why grouped-query attention cannot become this MLA; see `surgery.from_gqa`."""
    width = before.head_dim or site.hidden_size // site.num_attention_heads
    groups = before.num_key_value_heads or site.num_attention_heads
    if before.qkv_bias or before.o_bias or before.qk_norm:
        return "the checkpoint has biases or norms on queries and keys, and MLA has none."
    if (after.qk_rope_head_dim, after.v_head_dim) != (width, width):
        return f"heads are {width} wide in the checkpoint. Set qk_rope_head_dim and v_head_dim to {width}."
    if groups > 1 and after.qk_nope_head_dim != width:
        return f"keys of {groups} groups need as wide a part without position. Set qk_nope_head_dim to {width}."
    if before.rope != after.rope or getattr(after.rope.scaling, "type", "") == "yarn":
        return "rope differs from the checkpoint's, or is YaRN, which scales the scores of MLA only. Use the same, without YaRN."
    if after.latent_norm_eps < IDENTITY:
        return "the norm of the latent would change it. Set latent_norm_eps to 1099511627776 (2^40), which makes it the identity."
    return ""


def from_gqa(old: Mapping[str, Tensor], before: Any, after: MLAOptions, site: Site) -> dict[str, Made]:
    """Tensors of MLA from those of grouped-query attention."""
    from .surgery import from_gqa

    return from_gqa(old, before.num_key_value_heads or site.num_attention_heads, before.rope_interleave, after, site)


def mla_why_not(before: MLAOptions, after: MLAOptions, site: Site) -> str:
    """Why MLA cannot become this MLA."""
    same = {"rope_interleave": after.rope_interleave, "kernels": after.kernels}
    if before.model_copy(update=same) != after:
        return "only rope_interleave of MLA can be converted. Keep its other options as the checkpoint has them."
    return ""


def from_mla(old: Mapping[str, Tensor], before: MLAOptions, after: MLAOptions, site: Site) -> dict[str, Made]:
    """Tensors of MLA with its rotary rows in the new order."""
    from .surgery import reorder

    return reorder(old, before, after, site)
