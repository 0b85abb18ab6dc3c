"""A linear layer whose three products run in FP8 (DeepSeek-V3 technical report, figure 6).

    forward          y  = x wᵀ       x in 1x128 tiles, w in 128x128 blocks       bf16
    input gradient   dx = dy w       dy in 1x128 tiles, w's blocks transposed     bf16
    weight gradient  dw = dyᵀ x      dy and x in tiles of 128 tokens              fp32

The weight gradient may be deferred through a `WeightGradients` store; each product runs once either way.
"""

from __future__ import annotations

from torch import Tensor

from ...core.layers.linear import Linear
from .inputs import Saved, outline
from .products import products
from .recipe import Recipe
from .swiglu import Gated


class FP8Linear(Linear):
    """`[..., d_in] -> [..., d_out]`; the parameter is the master weight, in the dtype in which it is stored."""

    def __init__(self, d_in: int, d_out: int, recipe: Recipe, *, bias: bool = False, saved: Saved | None = None) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.recipe = recipe
        self.saved: Saved | None = saved

    def forward(self, x: Tensor | Gated) -> Tensor:
        """`[..., d_in]`, or what SwiGLU makes of its inputs, to `[..., d_out]`."""
        if (shape := outline(x, self.weight.shape[0])) is not None:
            return shape
        y = products(x, self.weight, self.recipe, saved=self.saved)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """SwiGLU's result becomes codes at once; codes of its inputs are kept."""
        return self(Gated((gate, up)))
