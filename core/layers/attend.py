"""Softmax attention on heads, as `scaled_dot_product_attention`, and faster on a CPU in low precision.

torch's CPU kernel does its products in fp32 vector code. For plain causal attention in bf16 the products are done here by
blocks of queries as batched GEMMs, for which CPUs have bf16 instructions: 5 to 6 times faster. The
probabilities are kept for the backward pass, `H * S^2 / 2` numbers a row; of longer sequences they are computed again there, so
that memory grows with S alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 128
"""Queries in a block."""
LONGEST = 2048
"""Longest sequence whose probabilities are kept for the backward pass."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """`[B, H, S, width]` queries on `[B, h, T, width]` keys and `[B, h, T, value]` values to `[B, H, S, value]`.

    Args:
        q: queries; h divides H, and query heads share key-value heads in order.
        k: keys.
        v: values.
        scale: multiplies the scores.
        mask: bool, broadcast to `[B, H, S, T]`, True where a query may look.
        causal: query i sees keys 0 to i; S equals T.
    """
    if causal and mask is None and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        heads = q.shape[1] // k.shape[1]
        k, v = (t if heads == 1 else t.repeat_interleave(heads, dim=1) for t in (k, v))
        y = _BlockedCausal.apply(*(t.flatten(0, 1) for t in (q, k, v)), scale)
        return y.unflatten(0, q.shape[:2])  # type: ignore[union-attr]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


class _BlockedCausal(torch.autograd.Function):
    """`softmax(scale q k^T, causal) v` on `[N, S, width]` and `[N, S, value]`, a block of queries at a time.

    Operands of the batched products are contiguous or whole transposes; a transposed slice would be slow.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, out, kept = q * scale, v.new_empty(v.shape), []
        keep = any(ctx.needs_input_grad) and q.shape[1] <= LONGEST
        for start, stop in _blocks(q.shape[1]):
            prob = _probabilities(q, k, start, stop)
            out[:, start:stop] = torch.bmm(prob, v[:, :stop])
            if keep:
                kept.append(prob)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, *kept)
            ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        q_grad = torch.empty_like(q)
        k_grad, v_grad = (torch.zeros_like(t, dtype=torch.float32) for t in (k, v))
        for block, (start, stop) in enumerate(_blocks(q.shape[1])):
            prob = kept[block] if kept else _probabilities(q, k, start, stop)
            grad = grads[0][:, start:stop].contiguous()
            v_grad[:, :stop] += torch.bmm(prob.transpose(1, 2), grad)
            prob_grad = torch.bmm(grad, v[:, :stop].contiguous().transpose(1, 2))
            score_grad = (prob_grad - (prob_grad * prob).sum(dim=-1, keepdim=True)).mul_(prob)
            q_grad[:, start:stop] = torch.bmm(score_grad, k[:, :stop])
            k_grad[:, :stop] += torch.bmm(score_grad.transpose(1, 2), q[:, start:stop])
        return q_grad.mul_(ctx.scale), k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _probabilities(q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """`[N, stop - start, stop]` of a block of queries, which are scaled already."""
    score = torch.bmm(q[:, start:stop], k[:, :stop].contiguous().transpose(1, 2))
    mask = torch.full((stop - start, stop - start), float("-inf"), dtype=q.dtype).triu_(1)
    score[:, :, start:].add_(mask)
    return score.softmax(dim=-1)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]
