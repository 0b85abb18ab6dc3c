"""Tokens on their way to experts on other ranks: a token travels once to each rank that has some of its experts, and is copied there.

From each of these ranks one row comes home, the sum of its experts' results. With one group of experts a rank, and 8 experts from 4
groups for each token as in DeepSeek-V3, a row travels at most 4 times instead of 8.

    T tokens    K experts of a token    N rows that travel, (token, rank) pairs    C copies    R rows sorted by expert, padding included
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .dispatch import TORCH, Dispatched, Moves
from .hookspecs import Routing


@dataclass(frozen=True)
class Copies:
    """Rows that each copy one of others, and the way back: the sum over the copies of each."""

    source: Tensor
    """Which row each copies; any, for padding."""
    place: Tensor
    """Where the copies are, in the order of what they copy; padding is left out."""
    start: Tensor
    """Where in `place` the copies of each begin."""

    def spread(self, x: Tensor) -> Tensor:
        """The copies. Differentiable."""
        return _Spread.apply(x, self)  # type: ignore[return-value]

    def gather(self, rows: Tensor) -> Tensor:
        """The sum over the copies of each. Differentiable."""
        return _Gather.apply(rows, self)  # type: ignore[return-value]

    def sums(self, rows: Tensor) -> Tensor:
        """`gather` without gradients."""
        if not len(self.place):
            return rows.new_zeros(len(self.start), rows.shape[1])
        return embedding_bag(self.place, rows, self.start, mode="sum")


@dataclass(frozen=True)
class Leaving:
    """What travels, sorted by rank."""

    copies: Copies
    """From tokens to the N rows that travel."""
    counts: Tensor
    """`[ranks]`, rows for each."""
    experts: Tensor
    """`[N, K]` int32: which of its rank's experts a row goes to; -1 for those of its token that other ranks have."""
    weights: Tensor
    """`[N, K]`, 0 for the latter."""


def leave(routing: Routing, ranks: int, each: int, dtype: torch.dtype) -> Leaving:
    """What goes where, when every rank has `each` experts; weights in `dtype`."""
    to, tokens = routing.experts.div(each, rounding_mode="floor"), len(routing.experts)
    visited = torch.zeros(tokens, ranks, dtype=torch.bool, device=to.device).scatter_(1, to, True)
    rank, token = visited.T.nonzero(as_tuple=True)
    there = to[token] == rank[:, None]
    experts = torch.where(there, routing.experts[token] % each, -1).to(torch.int32)
    weights = routing.weights.to(dtype).index_select(0, token).masked_fill(~there, 0)
    copies = Copies(token, token.argsort(stable=True), _starts(visited.sum(dim=1)))
    return Leaving(copies, visited.sum(dim=0), experts, weights)


def arrive(
    rows: Tensor, experts: Tensor, weights: Tensor, count: int, multiple: Callable[[int], int], moves: Moves = TORCH
) -> tuple[Dispatched, Copies]:
    """Rows that came, copied for each expert that they are for, and the way home.

    Args:
        rows: `[N, D]`.
        experts: `[N, K]`, as they left.
        weights: `[N, K]`.
        count: experts here.
        multiple: from the number of copies to what each expert's rows are rounded up to.
        moves: what plans.
    """
    wanted = experts >= 0
    row, choice = wanted.nonzero(as_tuple=True)
    place, source, counts = moves.plan(experts[row, choice].long()[:, None], count, multiple(len(row)))
    flat, origin = place.flatten(), row[source]
    spread = weights.new_zeros(len(source)).index_copy(0, flat, weights[row, choice])
    copies = Copies(origin, flat, _starts(wanted.sum(dim=1)))
    return Dispatched(copies.spread(rows), spread[:, None], counts, place, origin), copies


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, copies: Copies) -> Tensor:
        ctx.copies = copies
        return x.index_select(0, copies.source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.copies.sums(grads[0]), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, copies: Copies) -> Tensor:
        ctx.copies = copies
        return copies.sums(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.copies.source), None
