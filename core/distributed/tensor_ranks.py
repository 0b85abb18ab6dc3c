"""Ranks that share the matrices of a layer, and the sums by which what they compute is the layer's (Shoeybi et al., 2019).

Each rank holds some outputs of the matrices that come first (column-parallel) and the same inputs of the one that comes last
(row-parallel). Everything outside of these is computed alike on all of them, so that parameters there get the whole gradient
on each, provided that every tensor goes through `enter` on its way in and the result through `leave`:

    y = ranks.leave(row(f(column(ranks.enter(x)))))

forward: `leave` adds up the parts of y. backward: `enter` adds up the parts of the gradient of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class TensorRanks:
    """The ranks that share a layer's matrices: rank i holds the i-th of equal parts of each."""

    size: int = 1
    index: int = 0
    group: Any = None

    def enter(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same tensors, which all ranks have alike; their gradients are the sums over the ranks. One dtype."""
        return tensors if self.size == 1 else _Enter.apply(self.group, *tensors)  # type: ignore[return-value]

    def leave(self, partial: Tensor, bias: Tensor | None = None) -> Tensor:
        """The sum over the ranks; its gradient, which all have alike, is that of each part.

        Args:
            partial: this rank's part.
            bias: what every rank has added to its part, and should be in the sum once.
        """
        if self.size == 1:
            return partial
        whole: Any = _Leave.apply(partial, self.group)
        return whole if bias is None else whole - (self.size - 1) * bias.detach().to(whole.dtype)

    def deal(self, rows: Tensor) -> Tensor:
        """This rank's of `[N, ...]` rows that all have alike; the last ranks may get fewer, or none."""
        start, stop = self._range(len(rows))
        return rows[start:stop]

    def deal_counts(self, counts: Tensor) -> Tensor:
        """`[E]` rows for each expert, or for whatever they are sorted by, to those among them that `deal` leaves to this rank."""
        if self.size == 1:
            return counts
        start, stop = self._range(int(counts.sum()))
        until = counts.cumsum(0)
        return until.clamp(start, stop) - (until - counts).clamp(start, stop)

    def collect(self, part: Tensor, rows: int) -> Tensor:
        """All `rows` rows, from what `deal` left to each rank."""
        padded = part.new_zeros(-(-rows // self.size), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat(parts)[:rows]

    def _range(self, rows: int) -> tuple[int, int]:
        each = -(-rows // self.size)
        start = min(self.index * each, rows)
        return start, min(start + each, rows)


ALONE = TensorRanks()
"""A layer whose matrices are whole."""


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=ctx.group)
        return None, *(part.view_as(grad) for part, grad in zip(flat.split([grad.numel() for grad in grads]), grads, strict=True))


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Any) -> Tensor:
        whole = partial.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
