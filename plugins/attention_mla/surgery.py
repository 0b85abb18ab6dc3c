"""MLA from grouped-query attention, and from MLA with another order of rotary pairs.

Grouped-query attention scores `R(q) . R(k_g)` with keys that all turn; MLA has one turning key for all heads, and keys that do not turn
from a latent. Split as `k_g = m + (k_g - m)` with the mean m over groups: m becomes the shared rotary key, and the rest goes with the
values into the latent by a truncated singular value decomposition, as GQA-to-MLA conversions do (Meng et al., 2025, "TransMLA"; Ji et
al., 2025, "MHA2MLA"). With one group nothing is left of the rest. RMSNorm of the latent is made the identity by an epsilon far
above its mean square, and a gain of sqrt(epsilon).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...core.site import Site
from ...core.surgery import Made, relative, rotary_order
from .options import MLAOptions


def reorder(old: Mapping[str, Tensor], before: MLAOptions, after: MLAOptions, site: Site) -> dict[str, Made]:
    """The same attention with its rotary rows in another order."""
    rope, latent = after.qk_rope_head_dim, after.kv_lora_rank
    order = torch.tensor(rotary_order(rope, before.rope_interleave, after.rope_interleave))
    made = dict(old)
    query = "q_proj.weight" if after.q_lora_rank is None else "q_b_proj.weight"
    heads = old[query].unflatten(0, (site.num_attention_heads, -1))
    made[query] = torch.cat([heads[:, :-rope], heads[:, -rope:][:, order]], 1).flatten(0, 1)
    shared = old["kv_a_proj_with_mqa.weight"]
    made["kv_a_proj_with_mqa.weight"] = torch.cat([shared[:latent], shared[latent:][order]])
    return {name: Made(tensor) for name, tensor in made.items()}


def from_gqa(old: Mapping[str, Tensor], groups: int, interleaved: bool, after: MLAOptions, site: Site) -> dict[str, Made]:
    """As above.

    Args:
        old: `q_proj.weight` `[H w, D]`, `k_proj.weight` and `v_proj.weight` `[G w, D]`, `o_proj.weight`.
        groups: G.
        interleaved: order of the old rotary pairs.
        after: options of the new attention.
        site: where it stands.
    """
    heads, width, rank = site.num_attention_heads, after.qk_rope_head_dim, after.kv_lora_rank
    order = rotary_order(width, interleaved, after.rope_interleave)
    query, key, value = (old[f"{name}_proj.weight"].unflatten(0, (-1, width)) for name in "qkv")
    shared = key.mean(0)
    rest = key - shared
    turned = torch.cat([rest, value]).flatten(0, 1) if groups > 1 else value.flatten(0, 1)
    left, right, lost = _factors(turned, rank)
    left = left.unflatten(0, (-1, width))
    nothing = left.new_zeros(groups, after.qk_nope_head_dim, rank)
    both = torch.cat([nothing if groups == 1 else left[:groups], left[-groups:]], 1)
    gain = math.sqrt(after.latent_norm_eps)
    made = {
        "kv_a_proj_with_mqa.weight": Made(torch.cat([right, shared[order]]), relative(rest, key) if groups > 1 else 0.0),
        "kv_a_layernorm.weight": Made(right.new_full((rank,), gain)),
        "kv_b_proj.weight": Made(both.repeat_interleave(heads // groups, 0).flatten(0, 1), lost),
        "o_proj.weight": Made(old["o_proj.weight"]),
    }
    query = query * math.sqrt((after.qk_nope_head_dim + width) / width)
    still = query if groups > 1 else query.new_zeros(heads, after.qk_nope_head_dim, query.shape[-1])
    whole = torch.cat([still, query[:, order]], 1).flatten(0, 1)
    if after.q_lora_rank is None:
        return {"q_proj.weight": Made(whole), **made}
    left, right, lost = _factors(whole, after.q_lora_rank)
    norm = Made(right.new_full((after.q_lora_rank,), gain))
    return {"q_a_proj.weight": Made(right), "q_a_layernorm.weight": norm, "q_b_proj.weight": Made(left, lost), **made}


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """`[R, r]` and `[r, C]` whose product is nearest to `[R, C]` (Eckart and Young, 1936), and the share that is lost."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    left = matrix.new_zeros(matrix.shape[0], rank)
    right = matrix.new_zeros(rank, matrix.shape[1])
    left[:, :kept], right[:kept] = u[:, :kept] * root, root[:, None] * v[:kept]
    lost = float(s[kept:].norm() / s.norm()) if len(s) and float(s.norm()) else 0.0
    return left, right, lost
