"""The optimizer of a recipe."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from .options import AdamWOptions


def adamw(model: nn.Module, options: AdamWOptions) -> AdamW:
    """AdamW whose weight decay leaves vectors (norms, biases) alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=True)


def set_lr(optimizer: AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
