"""Stacked FP8 linear layers, one per expert, over rows that are sorted by expert.

The products of `linear`, for each expert; tiles along tokens, for weight gradients, begin anew at each expert.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ...core import weight_gradients
from ...core.layers.grouped import GroupedLinear
from ...core.weight_gradients import WeightGradients, accumulate
from .linear import along_tokens, keep, kept
from .recipe import Recipe


class FP8GroupedLinear(GroupedLinear):
    """Row n of expert e: `x[n] @ weight[e].T`. Parameter `weight` `[E, d_out, d_in]`, the master weights."""

    def __init__(self, experts: int, d_in: int, d_out: int, recipe: Recipe) -> None:
        super().__init__(experts, d_in, d_out)
        self.recipe, self.wire = recipe, recipe.wire

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """`[N, d_in]` rows and `[E]` int64 counts, `counts.sum() == N`, to `[N, d_out]`."""
        if x.is_meta:
            return x.new_empty(x.shape[0], self.weight.shape[1])
        store = weight_gradients.active() if torch.is_grad_enabled() else None
        return _Products.apply(x, self.weight, counts.tolist(), self.recipe, store)  # type: ignore[return-value]

    def saving(self) -> AbstractContextManager[object]:
        """SwiGLU before this layer keeps codes."""
        return self.recipe.saving()


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: list[int], recipe: Recipe, store: WeightGradients | None) -> Tensor:
        rows, blocks = recipe.activation(x), recipe.weight(weight)
        ctx.recipe, ctx.store, ctx.weight, ctx.sizes = recipe, store, weight, sizes
        keep(ctx, recipe, x, rows, blocks)
        return recipe.backend.grouped(rows, blocks, sizes, x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        recipe, weight, store, sizes, grad = ctx.recipe, ctx.weight, ctx.store, ctx.sizes, grads[0].contiguous()
        x, blocks = kept(ctx)

        def weight_gradient() -> Tensor:
            return recipe.backend.weight_gradient(along_tokens(recipe, grad), x, sizes)

        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = recipe.backend.grouped(recipe.gradient(grad), blocks.T, sizes, grad.dtype)
        if not weight.requires_grad:
            return x_grad, None, None, None, None
        if store is not None:
            store.put(lambda: accumulate(weight, weight_gradient()))
            return x_grad, None, None, None, None
        return x_grad, weight_gradient().to(weight.dtype), None, None, None
