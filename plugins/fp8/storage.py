"""Layers for inference that may keep their matrices as a published checkpoint has them: e4m3 codes with a factor per block.

A byte a number stays in memory. Each product decodes what it needs, to the dtype of its input, and is then the product of a plain layer
with the decoded matrix, bit by bit; of experts, those that have rows are decoded. Activations are not quantised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.blocks import Blocks
from ...core.errors import BestiaryError
from ...core.layers.grouped import GroupedLinear
from ...core.layers.linear import Linear
from .codes import values
from .quantize import Quantised


class Held(nn.Module):
    """What both layers share: codes `weight` `[..., R, C]` and factors `weight_scale_inv`, once `hold` was called."""

    weight: nn.Parameter
    weight_scale_inv: nn.Parameter
    blocks: Blocks | None = None

    def hold(self, blocks: Blocks) -> None:
        """Room for codes and factors in the place of the weight; they are not trained."""
        shape, device = tuple(self.weight.shape), self.weight.device
        factors = torch.empty(blocks.scale_shape(shape), dtype=torch.float32, device=device)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float8_e4m3fn, device=device), requires_grad=False)
        self.weight_scale_inv, self.blocks = nn.Parameter(factors, requires_grad=False), blocks

    def decoded(self, dtype: torch.dtype, expert: int | None = None) -> Tensor:
        """The matrix in `dtype`, or that of one expert.

        Raises:
            BestiaryError: the codes were cast, which makes other numbers of them.
        """
        assert self.blocks is not None
        if self.weight.dtype != torch.float8_e4m3fn:
            fact = f"FP8 codes were cast to {self.weight.dtype}, and without their factors they say nothing."
            raise BestiaryError(f"{fact} Load with set={{'precision.use': 'bf16'}}, or with dtype=, to compute in another dtype.")
        at = () if expert is None else expert
        matrix, factors = self.weight.detach()[at], self.weight_scale_inv.detach()[at].float()
        parts = [values(Quantised(matrix[rows], factors[of], self.blocks.block), dtype) for rows, of in self.blocks.strips()]
        quick = [part for part in parts if part is not None]
        if len(quick) < len(parts):
            return self.blocks.numbers(matrix, factors, dtype)
        return quick[0] if len(quick) == 1 else torch.cat(quick)


class HeldLinear(Held, Linear):
    """`[..., d_in] -> [..., d_out]`"""

    def forward(self, x: Tensor) -> Tensor:
        if self.blocks is None or x.is_meta:
            return super().forward(x)
        return F.linear(x, self.decoded(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix `[d_out, d_in]` in `dtype`."""
        return super().dense(dtype) if self.blocks is None else self.decoded(dtype)


class HeldGrouped(Held, GroupedLinear):
    """Row n of expert e: `x[n] @ matrix[e].T`."""

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """`[N, d_in]` rows and `[E]` int64 counts, `counts.sum() == N`, to `[N, d_out]`."""
        if self.blocks is None or x.is_meta:
            return super().forward(x, counts)
        parts = [rows @ self.decoded(x.dtype, e).T for e, rows in enumerate(x.split(counts.tolist())) if len(rows)]
        return torch.cat(parts) if parts else x.new_empty(0, self.weight.shape[1])
