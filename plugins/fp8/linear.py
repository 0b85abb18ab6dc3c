"""A linear layer whose three products run in FP8 (DeepSeek-V3 technical report, figure 6).

    forward          y  = x wᵀ       x in 1x128 tiles, w in 128x128 blocks       bf16
    input gradient   dx = dy w       dy in 1x128 tiles, w's blocks transposed     bf16
    weight gradient  dw = dyᵀ x      dy and x in tiles of 128 tokens              fp32

The weight gradient may be deferred through a `WeightGradients` store; each product runs once either way.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import weight_gradients
from ...core.layers.linear import Linear
from ...core.weight_gradients import WeightGradients, accumulate
from .backends import AlongTokens
from .e5m6 import Packed, keep_e5m6
from .quantize import Quantised
from .recipe import Recipe, tile_of

Saved = Literal["fp8", "bf16", "e5m6"]
"""What is kept of a layer's input."""


class FP8Linear(Linear):
    """`[..., d_in] -> [..., d_out]`; the parameter is the master weight, in the dtype in which it is stored."""

    def __init__(self, d_in: int, d_out: int, recipe: Recipe, *, bias: bool = False, saved: Saved | None = None) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.recipe, self.saved = recipe, saved or recipe.options.saved_input

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty(*x.shape[:-1], self.weight.shape[0])
        store = weight_gradients.active() if torch.is_grad_enabled() else None
        y: Tensor = _Products.apply(x, self.weight, self.recipe, store, self.saved)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def saving(self) -> AbstractContextManager[object]:
        """SwiGLU before this layer keeps codes."""
        return self.recipe.saving()


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe, store: WeightGradients | None, saved: Saved) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        rows, blocks = recipe.activation(flat), recipe.weight(weight)
        ctx.recipe, ctx.store, ctx.weight = recipe, store, weight
        keep(ctx, recipe, flat, rows, blocks, saved)
        return recipe.backend.product(rows, blocks, x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        recipe, weight, store, (grad,) = ctx.recipe, ctx.weight, ctx.store, grads
        flat = grad.reshape(-1, grad.shape[-1])
        x, blocks = kept(ctx)

        def weight_gradient() -> Tensor:
            return recipe.backend.weight_gradient(along_tokens(recipe, flat), x, [len(flat)])[0]

        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = recipe.backend.product(recipe.gradient(flat), blocks.T, grad.dtype).view(*grad.shape[:-1], weight.shape[1])
        if not weight.requires_grad:
            return x_grad, None, None, None, None
        if store is not None:
            store.put(lambda: accumulate(weight, weight_gradient()))
            return x_grad, None, None, None, None
        return x_grad, weight_gradient().to(weight.dtype), None, None, None


def keep(ctx: Any, recipe: Recipe, x: Tensor, rows: Quantised, blocks: Quantised, saved: Saved) -> None:
    """Saves a layer's input, as codes, as it is or in E5M6, and the codes of its weight for the backward pass."""
    packed = keep_e5m6(x, recipe.options.floor) if saved == "e5m6" else None
    source = (packed.data, packed.scale) if packed else (x,) if saved == "bf16" else (rows.codes, rows.scale)
    ctx.save_for_backward(*source, blocks.codes, blocks.scale)
    ctx.tiles, ctx.dtype, ctx.saved, ctx.columns = (rows.tile, blocks.tile), x.dtype, saved, x.shape[1]


def kept(ctx: Any) -> tuple[AlongTokens, Quantised]:
    """What `keep` saved: the input, as a side of the weight gradient, and the weight's codes."""
    *saved, codes, scale = ctx.saved_tensors
    recipe, source = ctx.recipe, saved[0]
    if ctx.saved == "e5m6":
        source = Packed(saved[0], saved[1], ctx.columns)
    elif ctx.saved == "fp8":
        source = Quantised(saved[0], saved[1], ctx.tiles[0])
    x = AlongTokens(source, tile_of(recipe.options.activations, "tokens"), recipe.forward_rule, ctx.dtype)
    return x, Quantised(codes, scale, ctx.tiles[1])


def along_tokens(recipe: Recipe, grad: Tensor) -> AlongTokens:
    """The gradient of a layer's output, as a side of the weight gradient."""
    return AlongTokens(grad, tile_of(recipe.options.gradients, "tokens"), recipe.backward_rule, grad.dtype)
