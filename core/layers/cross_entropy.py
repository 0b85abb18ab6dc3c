"""Cross-entropy of a large vocabulary: fp32 arithmetic on logits in any dtype, a slice of rows at a time.

The usual way keeps an fp32 copy of all logits, their log-softmax, and its gradient. Here only one number a row is kept,
the log of the partition sum, and the gradient `softmax(logits) - onehot(target)` is written in the dtype of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contracts import IGNORE

ROWS = 128
"""Rows in a slice: an fp32 slice of some ten thousand columns stays in a CPU's cache."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of `-log softmax(logits)[target]`, in nats.

    Args:
        logits: `[T, V]`.
        targets: `[T]` int64; `IGNORE` leaves a row out.

    Returns:
        A scalar, at least fp32.
    """
    return _CrossEntropy.apply(logits, targets)  # type: ignore[return-value]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        partition = torch.cat([rows.to(wide).logsumexp(dim=-1) for rows in logits.split(ROWS)])
        used = targets != IGNORE
        picked = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1).to(wide)
        ctx.save_for_backward(logits, targets, partition, used)
        return torch.where(used, partition - picked, 0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets, partition, used = ctx.saved_tensors
        scale = torch.where(used, grads[0], 0).unsqueeze(1)
        out = torch.empty_like(logits)
        slices = (t.split(ROWS) for t in (logits, out, partition.unsqueeze(1), scale, targets.clamp(min=0).unsqueeze(1)))
        for rows, to, total, share, target in zip(*slices, strict=True):
            to.copy_((rows.to(partition.dtype) - total).exp_().mul_(share).scatter_add_(1, target, -share))
        return out, None
