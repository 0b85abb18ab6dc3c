"""Stacked linear layers, one per expert, over rows that are sorted by expert.

On a GPU this is one grouped GEMM. On a CPU it is one GEMM per expert over contiguous rows, whose weight gradient is
written straight into the stacked buffer; indexing the stack under autograd instead would allocate a whole
stack of zeros per expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from .. import weight_gradients
from ..contracts import GroupedLayer, GroupedProduct
from ..weight_gradients import WeightGradients, accumulate

ROW_MULTIPLE = 32
"""On a CPU rows per expert are rounded up to this where they are many: oneDNN compiles a kernel for each new shape
(0.35 ms) and remembers 1024 of them, so that shapes should be few."""


class GroupedLinear(GroupedLayer):
    """Row n of expert e: `x[n] @ weight[e].T`. Parameter `weight` `[E, d_out, d_in]`."""

    def __init__(self, experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))
        self.product: GroupedProduct = grouped

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """`[N, d_in]` rows and `[E]` int64 counts, `counts.sum() == N`, to `[N, d_out]`."""
        if x.is_meta:  # the assembly's shape check has no counts
            return x.new_empty(x.shape[0], self.weight.shape[1])
        return self.product(x, self.weight, counts, weight_gradients.active() if torch.is_grad_enabled() else None)

    def multiply_by(self, product: GroupedProduct) -> None:
        """From now on `product` computes."""
        self.product = product

    def row_multiple(self, rows: int) -> int:
        """What rows per expert should be a multiple of when `rows` rows are spread over all experts."""
        return ROW_MULTIPLE if self.weight.device.type == "cpu" and rows >= ROW_MULTIPLE * self.weight.shape[0] else 1

    def extra_repr(self) -> str:
        experts, d_out, d_in = self.weight.shape
        return f"{experts} x ({d_in} -> {d_out})"


def grouped(x: Tensor, weight: Tensor, counts: Tensor, store: WeightGradients | None = None) -> Tensor:
    """`[N, d_in]`, `[E, d_out, d_in]`, `[E]` to `[N, d_out]`, in the dtype of `x`; weight gradients go to a store if there is one."""
    if store is not None:
        return _Grouped.apply(x, weight, counts.tolist(), store)  # type: ignore[return-value]
    weight = weight.to(x.dtype)
    if x.is_cuda and x.dtype == torch.bfloat16:
        return grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    return _Grouped.apply(x, weight, counts.tolist(), None)  # type: ignore[return-value]


class _Grouped(torch.autograd.Function):
    """One GEMM per expert; the weight gradient goes to autograd, or to a store if there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: list[int], store: WeightGradients | None) -> Tensor:
        ctx.sizes, ctx.store = sizes, store
        ctx.save_for_backward(x, *([weight] if store is None else []))
        ctx.parameter = None if store is None else weight
        out = x.new_empty(x.shape[0], weight.shape[1])
        for rows, to, w in zip(x.split(sizes), out.split(sizes), weight.to(x.dtype).unbind(), strict=True):
            torch.mm(rows, w.t(), out=to)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, *saved), sizes, grad = ctx.saved_tensors, ctx.sizes, grads[0].contiguous()
        weight = saved[0] if saved else ctx.parameter
        x_grad = _input_gradient(grad, weight.to(grad.dtype), sizes) if ctx.needs_input_grad[0] else None
        if ctx.store is not None:
            if weight.requires_grad:
                ctx.store.put(lambda: accumulate(weight, _weight_gradient(grad, x, sizes)))
            return x_grad, None, None, None
        return x_grad, _weight_gradient(grad, x, sizes) if ctx.needs_input_grad[1] else None, None, None


def _input_gradient(grad: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    out = grad.new_empty(grad.shape[0], weight.shape[2])
    for rows, to, w in zip(grad.split(sizes), out.split(sizes), weight.unbind(), strict=True):
        torch.mm(rows, w, out=to)
    return out


def _weight_gradient(grad: Tensor, x: Tensor, sizes: list[int]) -> Tensor:
    out = grad.new_empty(len(sizes), grad.shape[1], x.shape[1])
    for g, rows, to in zip(grad.split(sizes), x.split(sizes), out.unbind(), strict=True):
        torch.mm(g.t(), rows, out=to)
    return out
