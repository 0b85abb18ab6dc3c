"""Linear layers that compute in the dtype of their input, whatever the dtype of their parameters.

With fp32 parameters and bf16 activations this is mixed-precision training with fp32 master weights: the matrix is cast
for the product, and autograd's cast brings its gradient back to fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import weight_gradients
from ..contracts import LinearLayer
from ..native import linear as native
from ..weight_gradients import SplitLinear


class Linear(LinearLayer):
    """`[..., d_in] -> [..., d_out]`, parameters `weight` `[d_out, d_in]` and, if asked for, `bias` `[d_out]`."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None and (few := native.linear(x, self.weight)) is not None:
            return few
        bias = None if self.bias is None else self.bias.to(x.dtype)
        store = weight_gradients.active()
        if store is not None and torch.is_grad_enabled():
            y = SplitLinear.apply(x, self.weight, store)
            return y if bias is None else y + bias
        return F.linear(x, self.weight.to(x.dtype), bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix `[d_out, d_in]` in `dtype`, for code that multiplies with parts of it."""
        return self.weight.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}" + (", bias" if self.bias is not None else "")
