"""Stacked FP8 linear layers, one per expert, over rows that are sorted by expert.

The products of `linear`, for each expert; tiles along tokens, for weight gradients, begin anew at each expert.
"""

from __future__ import annotations

from torch import Tensor

from ...core.layers.grouped import GroupedLinear
from .inputs import outline
from .products import products
from .recipe import Recipe
from .swiglu import Gated


class FP8GroupedLinear(GroupedLinear):
    """Row n of expert e: `x[n] @ weight[e].T`. Parameter `weight` `[E, d_out, d_in]`, the master weights."""

    def __init__(self, experts: int, d_in: int, d_out: int, recipe: Recipe) -> None:
        super().__init__(experts, d_in, d_out)
        self.recipe, self.wire = recipe, recipe.wire

    def forward(self, x: Tensor | Gated, counts: Tensor) -> Tensor:
        """`[N, d_in]` rows, or what SwiGLU makes them of, and `[E]` int64 counts, `counts.sum() == N`, to `[N, d_out]`."""
        if (shape := outline(x, self.weight.shape[1])) is not None:
            return shape
        return products(x, self.weight, self.recipe, counts.tolist())

    def gated(self, gate_up: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        """SwiGLU's result becomes codes at once; codes of its inputs are kept."""
        return self(Gated((gate_up,), weights), counts)
