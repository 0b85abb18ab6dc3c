"""Stacked linear layers, one per expert, over rows that are sorted by expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from .. import weight_gradients
from ..weight_gradients import WeightGradients, accumulate


class GroupedLinear(nn.Module):
    """Row n of expert e: `x[n] @ weight[e].T`. Parameter `weight` `[E, d_out, d_in]`, without the name `weight` on the Hub."""

    def __init__(self, experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """`[N, d_in]` rows and `[E]` int64 counts, `counts.sum() == N`, to `[N, d_out]`."""
        store = weight_gradients.active()
        if store is not None and torch.is_grad_enabled():
            return SplitGrouped.apply(x, self.weight, counts, store)
        return grouped(x, self.weight.to(x.dtype), counts)


def grouped(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """`[N, d_in]`, `[E, d_out, d_in]`, `[E]` to `[N, d_out]`."""
    if x.is_meta:  # the assembly's shape check has no counts
        return x.new_empty(x.shape[0], weight.shape[1])
    if x.dtype == torch.float64:
        return torch.cat([rows @ w.T for rows, w in zip(x.split(counts.tolist()), weight.unbind(0), strict=True)])
    return grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))


class SplitGrouped(torch.autograd.Function):
    """`grouped` whose weight gradient goes through a `WeightGradients` store."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: nn.Parameter, counts: Tensor, store: WeightGradients) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, counts)
        ctx.weight, ctx.store = weight, store
        return grouped(x, weight.to(x.dtype), counts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None, None]:  # type: ignore[override]
        (x, counts), weight, grad = ctx.saved_tensors, ctx.weight, grad.contiguous()

        def weight_gradient() -> None:
            with torch.no_grad():
                sizes = counts.tolist()
                pairs = zip(grad.split(sizes), x.split(sizes), strict=True)
                accumulate(weight, torch.stack([g.T @ rows for g, rows in pairs]))

        if weight.requires_grad:
            ctx.store.put(weight_gradient)
        x_grad = grouped(grad, weight.to(grad.dtype).transpose(1, 2), counts) if ctx.needs_input_grad[0] else None
        return x_grad, None, None, None
