"""One process, one device: the reference for every other way of running a step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...core.backbone import CausalLM
from ...core.contracts import Batch, Loss
from .options import LocalOptions


class Local:
    """Runs a step's micro-batches one after the other and lets gradients add up."""

    def __init__(self, options: LocalOptions) -> None:
        self.micro_batches = options.micro_batches

    def place(self, model: CausalLM) -> CausalLM:
        return model

    def step(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward and backward; the loss is the mean over all targets of the batch."""
        return self._run(model, batch, backward=True)

    @torch.no_grad()
    def evaluate(self, model: CausalLM, batch: Batch) -> Loss:
        was_training = model.training
        model.eval()
        try:
            return self._run(model, batch, backward=False)
        finally:
            model.train(was_training)

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def _run(self, model: CausalLM, batch: Batch, *, backward: bool) -> Loss:
        counts, done = model.counts(batch), []
        for part in batch.chunks(self.micro_batches):
            loss = model.loss(part, counts, share=1 / self.micro_batches, observe=not backward)
            if backward:
                loss.total.backward()
            done.append(replace(loss, total=loss.total.detach()))
        return _sum(done)


def _sum(losses: list[Loss]) -> Loss:
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).sum() for name in losses[0].parts}
    observed = {name: torch.cat([loss.observed[name] for loss in losses]) for name in losses[0].observed}
    return Loss(torch.stack([loss.total for loss in losses]).sum(), parts, losses[-1].metrics, observed)
