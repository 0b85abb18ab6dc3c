"""Next-token prediction: the mean cross-entropy over the step's targets."""

from __future__ import annotations

from torch import Tensor, nn

from ...core.backbone import CausalLM
from ...core.contracts import IGNORE, Batch, Hidden, Loss
from ...core.site import Site
from .options import NextTokenOptions


class NextToken:
    """Cross-entropy of each position's next token, divided by the number of targets in the whole step."""

    def __init__(self, options: NextTokenOptions) -> None:
        self.weight = options.weight

    def extend(self, model: CausalLM, site: Site) -> nn.Module | None:
        return None

    def count(self, batch: Batch) -> Tensor:
        return (batch.targets != IGNORE).sum()

    def loss(self, model: CausalLM, batch: Batch, hidden: Hidden, count: Tensor) -> Loss:
        loss = model.token_loss(hidden.normed, batch.targets) / count.clamp(min=1)
        return Loss(self.weight * loss, {"next-token": loss.detach()})
