"""Options of the baseline components, and what follows from them without building anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ...core.component import Cost, Options
from ...core.layers.rope import RopeOptions
from ...core.site import Site
from ...core.weights import Weight, linear, norm, swiglu

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.surgery import Made
    from .attention import GroupedQueryAttention
    from .ffn import Dense
    from .local import Local
    from .objective import NextToken
    from .precision import Native


class GQAOptions(Options):
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key and value heads; as many as query heads when None (MHA)."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of a head; `hidden_size / num_attention_heads` when None."""
    qkv_bias: bool = False
    """Biases on the q, k and v projections (Qwen2)."""
    o_bias: bool = False
    """Bias on the output projection."""
    qk_norm: bool = False
    """RMSNorm over each head of q and k before RoPE (Qwen3)."""
    rope: RopeOptions = RopeOptions()
    """Rotary position embedding."""
    rope_interleave: bool = False
    """Whether rotary pairs are neighbours (True) or half a head apart (False, as in Llama's and Qwen's weights)."""


def gqa_sizes(options: GQAOptions, site: Site) -> tuple[int, int, int]:
    """Query heads, key-value heads, head width."""
    heads = site.num_attention_heads
    return heads, options.num_key_value_heads or heads, options.head_dim or site.hidden_size // heads


def gqa_check(options: GQAOptions, site: Site) -> Iterator[str]:
    heads, kv_heads, width = gqa_sizes(options, site)
    if heads % kv_heads:
        valid = [n for n in range(1, heads + 1) if heads % n == 0]
        yield f"num_key_value_heads = {kv_heads} does not divide the {heads} attention heads. Use one of {valid}."
    if options.head_dim is None and site.hidden_size % heads:
        yield f"hidden_size = {site.hidden_size} is no multiple of num_attention_heads = {heads}. Set head_dim."
    if width % 2:
        yield f"head_dim = {width} is odd, and RoPE turns pairs. Use an even head_dim."


def gqa_weights(options: GQAOptions, site: Site) -> list[Weight]:
    heads, kv_heads, width = gqa_sizes(options, site)
    d = site.hidden_size
    rows = [
        *linear("q_proj", d, heads * width, shard="column", bias=options.qkv_bias, unit=width),
        *linear("k_proj", d, kv_heads * width, shard="column", bias=options.qkv_bias, unit=width),
        *linear("v_proj", d, kv_heads * width, shard="column", bias=options.qkv_bias, unit=width),
        *linear("o_proj", heads * width, d, shard="row", bias=options.o_bias, unit=width),
    ]
    return [*rows, norm("q_norm", width), norm("k_norm", width)] if options.qk_norm else rows


def gqa_cost(options: GQAOptions, site: Site) -> Cost:
    heads, kv_heads, width = gqa_sizes(options, site)
    q, kv = heads * width, kv_heads * width
    cut = 2 * q + 2 * kv + (q + kv if options.qk_norm else 0)
    return Cost(
        pair_macs=heads * 2 * width,
        cache_elements=2 * kv,
        saved_elements=site.hidden_size + cut,
        cut_elements=cut,
        saved_fp32=heads,
    )


def gqa_why_not(before: GQAOptions, after: GQAOptions, site: Site) -> str:
    """Why heads cannot be regrouped; see `surgery.regroup`."""
    (_, groups, width), (_, wanted, new_width) = gqa_sizes(before, site), gqa_sizes(after, site)
    if width != new_width:
        return f"head_dim is {width} in the checkpoint and {new_width} here. Keep it."
    for name in ("qkv_bias", "o_bias", "qk_norm", "rope"):
        if getattr(before, name) != getattr(after, name):
            return f"{name} differs from the checkpoint's. Keep it."
    if max(groups, wanted) % min(groups, wanted):
        return f"{groups} key-value heads neither divide {wanted} nor are divided by it. Use a divisor or a multiple."
    return ""


def gqa_from_gqa(old: Mapping[str, Tensor], before: GQAOptions, after: GQAOptions, site: Site) -> dict[str, Made]:
    """Tensors of the same attention with other groups."""
    from .surgery import regroup

    return regroup(old, before, after, site)


class DenseOptions(Options):
    intermediate_size: int = Field(gt=0)
    """Width of the hidden layer."""


def dense_weights(options: DenseOptions, site: Site) -> list[Weight]:
    return swiglu("", site.hidden_size, options.intermediate_size)


def dense_cost(options: DenseOptions, site: Site) -> Cost:
    cut = 3 * options.intermediate_size
    return Cost(saved_elements=site.hidden_size + cut, cut_elements=cut)


class NativeOptions(Options):
    """No options."""


class LocalOptions(Options):
    micro_batches: int = Field(default=1, gt=0)
    """Equal parts into which a step's batch is split; gradients add up (gradient accumulation)."""


class NextTokenOptions(Options):
    weight: float = Field(default=1.0, ge=0)
    """Weight in the total loss."""


def build_fp32(options: NativeOptions, site: Site) -> Native:
    import torch

    from .precision import Native

    return Native(compute=torch.float32, storage=torch.float32)


def build_fp64(options: NativeOptions, site: Site) -> Native:
    import torch

    from .precision import Native

    return Native(compute=torch.float64, storage=torch.float64)


def build_bf16(options: NativeOptions, site: Site) -> Native:
    import torch

    from .precision import Native

    return Native(compute=torch.bfloat16, storage=torch.float32)


def build_gqa(options: GQAOptions, site: Site) -> GroupedQueryAttention:
    from .attention import GroupedQueryAttention

    return GroupedQueryAttention(options, site)


def build_dense(options: DenseOptions, site: Site) -> Dense:
    from .ffn import Dense

    return Dense(options, site)


def build_local(options: LocalOptions, site: Any) -> Local:
    from .local import Local

    return Local(options)


def build_next_token(options: NextTokenOptions, site: Any) -> NextToken:
    from .objective import NextToken

    return NextToken(options)
