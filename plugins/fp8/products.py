"""The three products of an FP8 layer as one autograd function, dense or grouped by expert; `linear` says what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import weight_gradients
from ...core.weight_gradients import WeightGradients, accumulate
from .backends import AlongTokens
from .e5m6 import Packed
from .inputs import Entered, Saved, enter, keep, kept, leave, tensors
from .quantize import Quantised
from .recipe import Recipe, tile_of
from .swiglu import Gated


def products(x: Tensor | Gated, weight: Tensor, recipe: Recipe, sizes: list[int] | None = None, *, saved: Saved | None = None) -> Tensor:
    """`[..., K]`, or what SwiGLU makes that of, times a matrix `[N, K]`; or times those of experts `[E, N, K]`, with `sizes` rows each.

    The result is `[..., N]`, in the dtype of what enters. `saved` is what the backward pass keeps of it, the recipe's choice if None.
    """
    store = weight_gradients.active() if torch.is_grad_enabled() else None
    entered = enter(x, recipe, saved or recipe.options.saved_input)
    y: Tensor = _Products.apply(weight, recipe, store, sizes, entered, *tensors(x))  # type: ignore[assignment]
    leading = (x if isinstance(x, Tensor) else x.inputs[0]).shape[:-1]
    return y.view(*leading, y.shape[-1])


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, recipe: Recipe, store: WeightGradients | None, sizes: list[int] | None, x: Entered, *entering: Tensor
    ) -> Tensor:
        blocks, dtype = recipe.weight(weight, turned=any(ctx.needs_input_grad[5:])), entering[-1].dtype
        ctx.recipe, ctx.store, ctx.weight, ctx.sizes, ctx.dtype = recipe, store, weight, sizes, dtype
        keep(ctx, x, blocks)
        return _multiply(recipe, x.rows, blocks, sizes, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        recipe, weight, grad = ctx.recipe, ctx.weight, grads[0].contiguous()
        source, turned, before = kept(ctx)
        inputs: tuple[Tensor | None, ...] = (None,) * (len(ctx.needs_input_grad) - 5)
        if any(ctx.needs_input_grad[5:]):
            inputs = leave(recipe, before, _multiply(recipe, recipe.gradient(grad), turned, ctx.sizes, grad.dtype))
        to_weight = None
        if weight.requires_grad:
            work = _weight_gradient(recipe, weight, grad, source, ctx.sizes, ctx.dtype)
            if ctx.store is None:
                to_weight = work().to(weight.dtype)
            else:
                ctx.store.put(lambda: accumulate(weight, work()))
        return to_weight, None, None, None, None, *inputs


def _multiply(recipe: Recipe, rows: Quantised, blocks: Quantised, sizes: list[int] | None, dtype: torch.dtype) -> Tensor:
    backend = recipe.backend
    return backend.product(rows, blocks, dtype) if sizes is None else backend.grouped(rows, blocks, sizes, dtype)


def _weight_gradient(
    recipe: Recipe, weight: Tensor, grad: Tensor, source: Tensor | Quantised | Packed, sizes: list[int] | None, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """The product that gives it, to be called now or later."""
    options, rows = recipe.options, [len(grad)] if sizes is None else sizes
    dy = AlongTokens(grad, tile_of(options.gradients, "tokens"), recipe.backward_rule, grad.dtype)
    x = AlongTokens(source, tile_of(options.activations, "tokens"), recipe.forward_rule, dtype)
    return lambda: recipe.backend.weight_gradient(dy, x, rows).view(weight.shape)
