"""Between tokens and experts: copies sorted by expert, and the sum of what comes back.

Rows of an expert may be padded to a multiple, so that matrix products see few shapes or aligned ones. A padding row is a
copy of token 0 with weight 0: it adds nothing to an output, and its gradient is multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .hookspecs import Routing


@dataclass
class Dispatched:
    """Token copies sorted by expert, R rows in all."""

    rows: Tensor
    """`[R, D]`"""
    weights: Tensor
    """`[R, 1]`, the routing weight of each row, 0 for padding."""
    counts: Tensor
    """`[E]` int64, rows of each expert, padding included."""
    place: Tensor
    """`[T, K]`, the row of each copy."""
    source: Tensor
    """`[R]`, the token of each row."""


class Moves(Protocol):
    """How rows are moved: torch's way, which is the definition, or the kernels'."""

    def plan(self, chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
        """Place `[T, K]`, source `[R]` and counts `[E]` of `Dispatched`, from the experts of each token `[T, K]`."""
        ...

    def copy(self, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """`[T, D]` to `[R, D]`. Differentiable."""
        ...

    def sum(self, rows: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """`[R, D]` to `[T, D]`: the sum of each token's rows. Differentiable."""
        ...


class TorchMoves:
    """By torch."""

    def plan(self, chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sorts copies by expert."""
        return _plan(chosen, experts, multiple)

    def copy(self, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """`x[source]`"""
        return _Copy.apply(x, source, place)  # type: ignore[return-value]

    def sum(self, rows: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """`rows[place].sum(dim=1)`"""
        return _Sum.apply(rows, source, place)  # type: ignore[return-value]


TORCH = TorchMoves()


def dispatch(x: Tensor, routing: Routing, experts: int, *, multiple: Callable[[int], int], moves: Moves = TORCH) -> Dispatched:
    """Copies each token once per chosen expert.

    Args:
        x: `[T, D]`.
        routing: experts and weights `[T, K]`.
        experts: how many there are.
        multiple: from the number of copies to what each expert's rows are rounded up to.
        moves: what plans and copies.
    """
    place, source, counts = moves.plan(routing.experts, experts, multiple(routing.experts.numel()))
    flat = place.flatten()
    weights = x.new_zeros(len(source)).index_copy(0, flat, routing.weights.flatten().to(x.dtype))
    return Dispatched(moves.copy(x, source, place), weights.unsqueeze(1), counts, place, source)


def combine(rows: Tensor, sent: Dispatched, *, moves: Moves = TORCH) -> Tensor:
    """`[R, D]` to `[T, D]`: the sum of each token's rows."""
    return moves.sum(rows, sent.source, sent.place)


def _plan(chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Place `[T, K]`, source `[R]`, and counts `[E]`."""
    flat = chosen.flatten()
    if chosen.is_meta:
        return torch.empty_like(chosen), flat, flat.new_empty(experts)
    order, copies = flat.argsort(stable=True), torch.arange(len(flat), device=flat.device)
    counts = torch.bincount(flat, minlength=experts)
    padded = (counts + multiple - 1).div(multiple, rounding_mode="floor") * multiple
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    place = torch.empty_like(order)
    place[order] = copies if multiple == 1 else copies + shift[flat[order]]
    source = place.new_zeros(len(flat) if multiple == 1 else int(padded.sum()))
    source[place] = copies.div(chosen.shape[1], rounding_mode="floor")
    return place.view(chosen.shape), source, padded


class _Copy(torch.autograd.Function):
    """`x[source]`; the gradient of a token is the sum over its places, padding rows left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return _bag(grads[0], place), None, None


class _Sum(torch.autograd.Function):
    """The sum over each token's places; the gradient of a row is its token's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(source)
        return _bag(rows, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (source,) = ctx.saved_tensors
        return grads[0].index_select(0, source), None, None


def _bag(rows: Tensor, place: Tensor) -> Tensor:
    """`[R, D]` and `[T, K]` to `[T, D]`: sums of K rows, in one kernel."""
    if rows.is_meta:
        return rows.new_empty(place.shape[0], rows.shape[1])
    return embedding_bag(place, rows, mode="sum")
