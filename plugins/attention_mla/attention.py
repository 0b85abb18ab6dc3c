"""Multi-head latent attention in both of its forms (DeepSeek-V3, equations 1 to 11).

With `c` the normed latent and `k_pe` the rotary key that all heads share,

    k_nope, v = split(W_kvb c)        score = (q_nope . k_nope + q_pe . k_pe) * scale        o = P v

*Expanded*, as written: keys and values of every head are made and attention is the usual one. Best for training and
prompts, where the cost of making them is shared by many queries. *Absorbed*: since `k_nope = W_UK c` and
`v = W_UV c` are linear in `c`,

    score = ((W_UK^T q_nope) . c + q_pe . k_pe) * scale        o = W_UV (P c)

so that attention runs on the latent itself, one key-value head for all query heads, and decoding reads
`kv_lora_rank + qk_rope_head_dim` numbers per position instead of expanding the whole cache at every step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.cache import LayerCache
from ...core.contracts import Context
from ...core.distributed.tensor_ranks import ALONE, TensorRanks
from ...core.errors import BestiaryError, Problem
from ...core.layers.attend import attend
from ...core.layers.rope import rotate, softmax_multiplier, tables
from ...core.site import Site
from . import decode
from .options import MLAOptions

if TYPE_CHECKING:
    from .kernels.launch import Kernels

ABSORBED_QUERIES = 64
"""Up to this many new positions on top of a cache are attended in absorbed form; more amortise the expansion."""


class MultiHeadLatentAttention(nn.Module):
    """`[B, S, D] -> [B, S, D]`, causal; the cache keeps the normed latent, then the rotary key after RoPE.

    Tensor ranks share the heads. Latents, their norms and the rotary key are every head's, and each rank makes them all.
    """

    tensor_ranks = ALONE

    def __init__(self, options: MLAOptions, site: Site) -> None:
        super().__init__()
        self.options, self.layer, self.heads = options, site.layer or 0, site.num_attention_heads
        self.nope, self.rope, self.value = options.qk_nope_head_dim, options.qk_rope_head_dim, options.v_head_dim
        self.latent, self.scale = options.kv_lora_rank, (self.nope + self.rope) ** -0.5 * softmax_multiplier(options.rope)
        self.widths = decode.Widths(self.heads, self.nope, self.rope, self.value, self.latent)
        self.kernels = _kernels() if options.kernels == "triton" else None
        d, query, eps = site.hidden_size, self.heads * (self.nope + self.rope), options.latent_norm_eps
        if options.q_lora_rank is None:
            self.q_proj = site.linear(d, query)
        else:
            self.q_a_proj = site.linear(d, options.q_lora_rank)
            self.q_a_layernorm = site.norm(options.q_lora_rank, eps=eps, before="linear")
            self.q_b_proj = site.linear(options.q_lora_rank, query)
        self.kv_a_proj_with_mqa = site.linear(d, self.latent + self.rope)
        self.kv_a_layernorm = site.norm(self.latent, eps=eps, before="linear")
        self.kv_b_proj = site.linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = site.linear(self.heads * self.value, d, after="attention")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.tensor_ranks.leave(self.o_proj(self._heads(x, context)))

    def new_cache(self, batch: int, length: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        return LayerCache({"latent": (self.latent + self.rope,)}, batch=batch, capacity=length, device=device, dtype=dtype)

    def share_matrices(self, ranks: TensorRanks) -> None:
        """From now on a part of the heads is here."""
        self.tensor_ranks, self.heads = ranks, self.heads // ranks.size
        self.widths = replace(self.widths, heads=self.heads)

    def _heads(self, x: Tensor, context: Context) -> Tensor:
        """What the heads here give: `[B, S, H * value]`."""
        q, kv = self._project(x)
        if (few := self._few(q, kv, context)) is not None:
            return few
        q_nope, q_pe, c, k_pe = self._parts(q, kv, context)
        if (cache := context.cache(self.layer)) is not None:
            (stored,) = cache.append(latent=torch.cat((c, k_pe), dim=-1))
            c, k_pe = stored.split([self.latent, self.rope], dim=-1)
            if context.past > 0 and x.shape[1] <= ABSORBED_QUERIES:
                return self._absorbed(q_nope, q_pe, stored, context)
        return self._expanded(q_nope, q_pe, c, k_pe, context)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of the heads here, and latent with rotary key, as the projections give them."""
        (query,) = self.tensor_ranks.enter(x if self.options.q_lora_rank is None else self.q_a_layernorm(self.q_a_proj(x)))
        q = self.q_proj(query) if self.options.q_lora_rank is None else self.q_b_proj(query)
        return q, self.kv_a_proj_with_mqa(x)

    def _parts(self, q: Tensor, kv: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries `[B, S, H, nope]` and `[B, S, H, rope]`, normed latent `[B, S, latent]`, rotary key `[B, S, rope]`."""
        q_nope, q_pe = q.unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], dim=-1)
        c, k_pe = kv.split([self.latent, self.rope], dim=-1)
        table, interleaved = tables(self.options.rope, self.rope, context), self.options.rope_interleave
        q_pe, k_pe = rotate(q_pe, table, interleaved=interleaved), rotate(k_pe, table, interleaved=interleaved)
        c, k_pe = self.tensor_ranks.enter(self.kv_a_layernorm(c), k_pe)
        return q_nope, q_pe, c, k_pe

    def _few(self, q: Tensor, kv: Tensor, context: Context) -> Tensor | None:
        """Attention of a few new positions when decoding, where a kernel is to be had for it."""
        cache, w = context.cache(self.layer), self.widths
        if cache is None or context.past == 0 or self.kernels is not None:
            return None
        table, norm = tables(self.options.rope, w.rope, context), self.kv_a_layernorm
        weights = (norm.weight, self.kv_b_proj.weight)
        kinds = {"scale": self.scale, "eps": norm.eps, "interleaved": self.options.rope_interleave}
        return decode.absorbed(q, kv, *weights, table, cache, widths=w, **kinds)

    def _expanded(self, q_nope: Tensor, q_pe: Tensor, c: Tensor, k_pe: Tensor, context: Context) -> Tensor:
        """Attention on every head's own keys and values: `[B, S, H * value]`."""
        kv, q = self.kv_b_proj(c).unflatten(-1, (self.heads, -1)), torch.cat((q_nope, q_pe), dim=-1)
        if self.kernels is not None:
            y, _ = self.kernels.attention(q, kv, k_pe, nope=self.nope, scale=self.scale, segments=context.segments)
            return y.flatten(-2)
        k_nope, v = kv.split([self.nope, self.value], dim=-1)
        k = torch.cat((k_nope, k_pe.unsqueeze(2).expand(-1, -1, self.heads, -1)), dim=-1)
        heads = (t.transpose(1, 2) for t in (q, k, v))
        y = attend(*heads, scale=self.scale, mask=context.mask(), causal=context.is_causal)
        return y.transpose(1, 2).flatten(-2)

    def _absorbed(self, q_nope: Tensor, q_pe: Tensor, stored: Tensor, context: Context) -> Tensor:
        """Attention on the latents: heads become queries of one shared head, `[B, S, H * value]`."""
        batch, length = q_nope.shape[:2]
        w_uk, w_uv = self.kv_b_proj.dense(q_nope.dtype).unflatten(0, (self.heads, -1)).split([self.nope, self.value], dim=1)
        q = torch.cat((torch.einsum("bshn,hnc->bshc", q_nope, w_uk), q_pe), dim=-1)
        y = self._on_latents(q, stored, context)
        return torch.einsum("bshc,hvc->bshv", y.reshape(batch, length, self.heads, self.latent), w_uv).flatten(-2)

    def _on_latents(self, q: Tensor, stored: Tensor, context: Context) -> Tensor:
        """Attention of `[B, S, H, latent + rope]` queries on what is stored: `B * S * H` latents. Kernels do not differentiate it."""
        cache = context.cache(self.layer)
        if self.kernels is not None and cache is not None and not (q.requires_grad or stored.requires_grad):
            batch, length = q.shape[:2]
            seen = context.once("seen", lambda: torch.arange(1, length + 1, device=q.device).repeat(batch) + context.past)
            kinds = {"latent": self.latent, "scale": self.scale, "queries": length}
            return self.kernels.decode(q.flatten(0, 1), cache.buffers["latent"], seen, **kinds)[0]
        mask = context.mask()
        if mask is not None:
            mask = mask.repeat_interleave(self.heads, dim=2)
        c = stored[..., : self.latent]
        heads = (t.unsqueeze(1) for t in (q.flatten(1, 2), stored, c))
        return attend(*heads, scale=self.scale, mask=mask, causal=False)


def _kernels() -> Kernels:
    """The Triton kernels.

    Raises:
        BestiaryError: Triton is not installed.
    """
    try:
        from .kernels.launch import Kernels
    except ImportError as error:
        remedy = "Install it with `pip install 'bestiary[gpu]'`, or set block.attention.kernels = 'torch'."
        raise BestiaryError(Problem(f"{error}.", "block.attention.kernels = 'triton'", remedy)) from error
    return Kernels()
