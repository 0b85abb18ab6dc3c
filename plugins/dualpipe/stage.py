"""A pipeline stage: neighbouring layers of a model, the embedding in the first, norm, head and objectives in the last.

A stage's pass is a row of segments, one for each block, so that a schedule may stop within them and the backward pass may recompute
single blocks. Token ids, targets and documents of a micro-batch are known to every rank; only hidden states travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...core.backbone import Block, CausalLM
from ...core.contracts import Batch, Context, Hidden, Loss
from ...core.exchange import Steps


@dataclass
class MicroBatch:
    """A micro-batch of a step as one rank sees it."""

    batch: Batch
    context: Context
    counts: Mapping[str, Tensor]
    """Targets of each objective in the whole step."""
    loss: Loss | None = None
    """Of the objectives, where this rank has the last stage."""


@dataclass(frozen=True)
class Segment:
    """A part of a stage's pass: hidden states in, hidden states or the loss out."""

    run: Callable[[Tensor], Steps]
    recompute: bool = False


class Stage(nn.Module):
    """`[B, S, D] -> [B, S, D]`; the first ignores its input, the last gives the micro-batch's loss."""

    def __init__(self, model: CausalLM, layers: range, *, first: bool, last: bool, ends: Iterable[nn.Module] = ()) -> None:
        """
        Args:
            model: the whole model, of which this rank may hold these layers only.
            layers: of this stage, perhaps none.
            first: whether it embeds token ids.
            last: whether it computes the loss.
            ends: what else it holds, embedding, norm and head; of two stages of a rank that use the embedding only one.
        """
        super().__init__()
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(model.model.layers[layer] for layer in layers)
        self.ends = nn.ModuleList(ends)
        vars(self)["whole"] = model
        self.micro_batches: list[MicroBatch] = []
        """Of the step under way."""

    def segments(self, index: int) -> Iterator[Segment]:
        """The pass of micro-batch `index`."""
        micro = self.micro_batches[index]
        if self.first:
            yield Segment(lambda _: _at_once(lambda: self._model.model.embed(micro.batch.input_ids)))
        for module in self.blocks:
            block = cast(Block, module)
            yield Segment(lambda x, block=block: block.steps(x, micro.context), block.recompute and self.training)
        if self.last:
            yield Segment(lambda x: _at_once(lambda: self._loss(x, micro)))

    @property
    def _model(self) -> CausalLM:
        return vars(self)["whole"]

    def _loss(self, raw: Tensor, micro: MicroBatch) -> Tensor:
        hidden = Hidden(raw=raw, normed=self._model.model.norm(raw), context=micro.context)
        micro.loss = self._model.objective_loss(micro.batch, hidden, micro.counts)
        return micro.loss.total


def _at_once(compute: Callable[[], Tensor]) -> Steps:
    """A pass without stops."""
    return compute()
    yield  # makes this a generator


def example(rows: int, length: int, width: int, dtype: torch.dtype) -> Tensor:
    """The shape that travels between stages, without memory."""
    return torch.empty(rows, length, width, dtype=dtype, device="meta", requires_grad=True)
