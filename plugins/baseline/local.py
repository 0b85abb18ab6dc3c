"""One process, one device: the reference for every other way of running a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ...core.backbone import CausalLM
from ...core.contracts import Batch, Loss, Share, added
from ...core.manifest import Manifest
from .options import LocalOptions


class Local:
    """Runs a step's micro-batches one after the other and lets gradients add up."""

    processes = 1

    def __init__(self, options: LocalOptions) -> None:
        self.row_multiple = options.micro_batches

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
            return self._run(model, batch.padded(self.row_multiple), backward=False).of_rows(batch.input_ids.shape[0])
        finally:
            model.train(was_training)

    def describe(self, manifest: Manifest, rank: int) -> str:
        """What a rank holds, in words."""
        return "everything"

    def shares(self, manifest: Manifest) -> Sequence[Share]:
        """Nothing to share."""
        return ()

    def clip(self, model: CausalLM, limit: float) -> float:
        """As torch does."""
        return float(clip_grad_norm_(model.parameters(), limit))

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, found: dict[str, Any]) -> dict[str, Any]:
        return found

    def _run(self, model: CausalLM, batch: Batch, *, backward: bool) -> Loss:
        counts, done = model.counts(batch), []
        for part in batch.chunks(self.row_multiple):
            loss = model.loss(part, counts, share=1 / self.row_multiple, observe=not backward)
            if backward:
                loss.total.backward()
            done.append(replace(loss, total=loss.total.detach()))
        return added(done)
