"""Grouped-query attention (Ainslie et al., 2023): H query heads share fewer key-value heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.cache import LayerCache
from ...core.contracts import Context
from ...core.layers.attend import attend
from ...core.layers.rope import rotate, tables
from ...core.site import Site
from .options import GQAOptions, gqa_sizes


class GroupedQueryAttention(nn.Module):
    """`[B, S, D] -> [B, S, D]`, causal; the cache keeps keys (after RoPE) and values."""

    def __init__(self, options: GQAOptions, site: Site) -> None:
        super().__init__()
        self.options, self.layer = options, site.layer or 0
        self.heads, self.kv_heads, self.width = gqa_sizes(options, site)
        d = site.hidden_size
        self.q_proj = site.linear(d, self.heads * self.width, bias=options.qkv_bias)
        self.k_proj = site.linear(d, self.kv_heads * self.width, bias=options.qkv_bias)
        self.v_proj = site.linear(d, self.kv_heads * self.width, bias=options.qkv_bias)
        self.o_proj = site.linear(self.heads * self.width, d, bias=options.o_bias)
        self.q_norm = site.norm(self.width) if options.qk_norm else nn.Identity()
        self.k_norm = site.norm(self.width) if options.qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        split = (-1, self.width)
        table = tables(self.options.rope, self.width, context)
        q = rotate(self.q_norm(self.q_proj(x).unflatten(-1, split)), table, interleaved=self.options.rope_interleave)
        k = rotate(self.k_norm(self.k_proj(x).unflatten(-1, split)), table, interleaved=self.options.rope_interleave)
        v = self.v_proj(x).unflatten(-1, split)
        mask, causal = context.mask(), context.is_causal
        if (cache := context.cache(self.layer)) is not None:
            k, v = cache.append(keys=k, values=v)
        y = attend(*(t.transpose(1, 2) for t in (q, k, v)), scale=self.width**-0.5, mask=mask, causal=causal)
        return self.o_proj(y.transpose(1, 2).flatten(-2))

    def new_cache(self, batch: int, length: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        shape = (self.kv_heads, self.width)
        return LayerCache({"keys": shape, "values": shape}, batch=batch, capacity=length, device=device, dtype=dtype)
