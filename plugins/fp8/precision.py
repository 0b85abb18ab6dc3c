"""The precision component: FP8 products where the recipe has them, bf16 elsewhere, fp32 master weights."""

from __future__ import annotations

from functools import cached_property

import torch

from ...core.layers.grouped import GroupedLinear
from ...core.layers.linear import Linear
from ...core.layers.norm import RMSNorm
from ...core.weights import After, Role
from .grouped import FP8GroupedLinear
from .linear import FP8Linear
from .norm import FP8Norm
from .options import FP8Options
from .recipe import Recipe
from .storage import HeldGrouped, HeldLinear


class FP8:
    """Matrices of attention, dense layers and experts multiply in FP8; everything else is as in `bf16`."""

    def __init__(self, options: FP8Options) -> None:
        self.compute_dtype, self.options = torch.bfloat16, options

    @cached_property
    def recipe(self) -> Recipe:
        """Of all layers; the backend is chosen when the first one is made."""
        return Recipe(self.options)

    def linear(self, d_in: int, d_out: int, *, role: Role, bias: bool = False, after: After = "") -> Linear:
        """An FP8 layer for the role `linear`; projections, gates and heads stay high."""
        if role != "linear":
            return Linear(d_in, d_out, bias=bias)
        saved = self.options.saved_attention if after == "attention" else None
        return FP8Linear(d_in, d_out, self.recipe, bias=bias, saved=saved)

    def grouped(self, experts: int, d_in: int, d_out: int, *, role: Role) -> GroupedLinear:
        """FP8 experts."""
        return FP8GroupedLinear(experts, d_in, d_out, self.recipe)

    def norm(self, size: int, *, eps: float, before: Role) -> RMSNorm:
        """A norm that makes the codes of FP8 layers."""
        return FP8Norm(size, self.recipe, eps=eps) if before == "linear" else RMSNorm(size, eps=eps)

    def storage_dtype(self, role: Role) -> torch.dtype:
        """Master weights."""
        return torch.float32

    def cast(self, dtype: torch.dtype) -> Plain:
        """Without FP8: parameters and products in `dtype`, for inference and for tests."""
        return Plain(dtype)


class Plain:
    """Layers that store and compute in one dtype, or hold a checkpoint's FP8 blocks; selection biases keep fp32."""

    holds_blocks = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.compute_dtype = dtype

    def linear(self, d_in: int, d_out: int, *, role: Role, bias: bool = False, after: After = "") -> Linear:
        """A layer that computes in the dtype of its input."""
        return HeldLinear(d_in, d_out, bias=bias) if role == "linear" else Linear(d_in, d_out, bias=bias)

    def grouped(self, experts: int, d_in: int, d_out: int, *, role: Role) -> GroupedLinear:
        """Stacked layers that compute in the dtype of their input."""
        return HeldGrouped(experts, d_in, d_out)

    def storage_dtype(self, role: Role) -> torch.dtype:
        """The dtype, and at least fp32 for selection biases."""
        return torch.promote_types(self.compute_dtype, torch.float32) if role == "state" else self.compute_dtype

    def cast(self, dtype: torch.dtype) -> Plain:
        """The same in another dtype."""
        return Plain(dtype)
