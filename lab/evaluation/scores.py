"""How well a model predicts every single token of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.backbone import CausalLM

POSITIONS = 1024
"""Of which logits are in memory at once."""


@dataclass(frozen=True)
class Scores:
    """Of the targets of `[B, S + 1]` ids, each predicted from all true ids before it."""

    nats: Tensor
    """`[B, S]` fp32, minus the log-probability of each target."""
    right: Tensor
    """`[B, S]` bool, whether the target was the most likely token."""


@torch.no_grad()
def token_scores(model: CausalLM, ids: Tensor) -> Scores:
    """Reads `[B, S + 1]` ids once."""
    was_training = model.training
    model.eval()
    try:
        ids = ids.to(model.device)
        normed, targets = model.hidden(ids[:, :-1]).normed, ids[:, 1:]
        parts = [_score(model, *pair) for pair in zip(normed.split(POSITIONS, dim=1), targets.split(POSITIONS, dim=1), strict=True)]
    finally:
        model.train(was_training)
    return Scores(torch.cat([part.nats for part in parts], dim=1), torch.cat([part.right for part in parts], dim=1))


def _score(model: CausalLM, normed: Tensor, targets: Tensor) -> Scores:
    logits = model.logits(normed).float()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return Scores(nats.cpu(), (logits.argmax(dim=-1) == targets).cpu())
