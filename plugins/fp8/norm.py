"""RMSNorm before FP8 layers: its rows become codes where they are made, if the backend has a kernel for both."""

from __future__ import annotations

from torch import Tensor

from ...core.layers.norm import RMSNorm
from .recipe import Recipe


class FP8Norm(RMSNorm):
    """`[..., size] -> [..., size]`; layers of the same recipe that read the result find its codes."""

    def __init__(self, size: int, recipe: Recipe, *, eps: float) -> None:
        super().__init__(size, eps=eps)
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        normed = None if x.is_meta else self.recipe.normed(x, self.weight, self.eps)
        return super().forward(x) if normed is None else normed
