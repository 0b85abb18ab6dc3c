"""Grouped-query attention (Ainslie et al., 2023): H query heads share fewer key-value heads."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...core.cache import LayerCache
from ...core.contracts import Context
from ...core.distributed.tensor_ranks import ALONE, TensorRanks
from ...core.layers.attend import attend
from ...core.layers.norm import RMSNorm
from ...core.layers.rope import rotate, tables
from ...core.site import Site
from .options import GQAOptions, gqa_sizes


class GroupedQueryAttention(nn.Module):
    """`[B, S, D] -> [B, S, D]`, causal; the cache keeps keys (after RoPE) and values. Tensor ranks share the heads."""

    tensor_ranks = ALONE

    def __init__(self, options: GQAOptions, site: Site) -> None:
        super().__init__()
        self.options, self.layer = options, site.layer or 0
        self.heads, self.kv_heads, self.width = gqa_sizes(options, site)
        d = site.hidden_size
        self.q_proj = site.linear(d, self.heads * self.width, bias=options.qkv_bias)
        self.k_proj = site.linear(d, self.kv_heads * self.width, bias=options.qkv_bias)
        self.v_proj = site.linear(d, self.kv_heads * self.width, bias=options.qkv_bias)
        self.o_proj = site.linear(self.heads * self.width, d, bias=options.o_bias, after="attention")
        self.q_norm = site.norm(self.width) if options.qk_norm else nn.Identity()
        self.k_norm = site.norm(self.width) if options.qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        (x,), split = self.tensor_ranks.enter(x), (-1, self.width)
        table = tables(self.options.rope, self.width, context)
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, split)), table, interleaved=self.options.rope_interleave)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, split)), table, interleaved=self.options.rope_interleave)
        v = self.v_proj(x).unflatten(-1, split)
        mask, causal = context.mask(), context.is_causal
        if (cache := context.cache(self.layer)) is not None:
            k, v = cache.append(keys=k, values=v)
        y = attend(*(t.transpose(1, 2) for t in (q, k, v)), scale=self.width**-0.5, mask=mask, causal=causal)
        return self.tensor_ranks.leave(self.o_proj(y.transpose(1, 2).flatten(-2)), self.o_bias)

    @property
    def o_bias(self) -> Tensor | None:
        """Of the output projection, whole on every rank."""
        return cast(Tensor, self.o_proj.bias) if self.options.o_bias else None

    def share_matrices(self, ranks: TensorRanks) -> None:
        """From now on a part of the heads is here, each key-value head with the query heads that share it."""
        self.tensor_ranks, self.heads, self.kv_heads = ranks, self.heads // ranks.size, self.kv_heads // ranks.size
        if self.options.qk_norm:
            cast(RMSNorm, self.q_norm).tensor_ranks = cast(RMSNorm, self.k_norm).tensor_ranks = ranks

    def new_cache(self, batch: int, length: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        shape = (self.kv_heads, self.width)
        return LayerCache({"keys": shape, "values": shape}, batch=batch, capacity=length, device=device, dtype=dtype)
