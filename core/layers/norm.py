"""RMSNorm (Zhang and Sennrich, 2019): `y = x / sqrt(mean(x^2) + eps) * weight`, computed in fp32 whatever `x` is.

On a GPU torch's own kernel is used. On a CPU its backward pass in low precision is several passes over memory too many,
so the two formulas stand here: with `u = x / rms`, `dx = (g w - u mean(g w u)) / rms` and `dw = sum(g u)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributed.tensor_ranks import ALONE
from ..native.linear import rms_norm


class RMSNorm(nn.Module):
    """`[..., size] -> [..., size]` in the dtype of the input."""

    tensor_ranks = ALONE
    """Of which each has other heads that the same gain is for."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        if (few := rms_norm(x, self.weight, self.eps)) is not None:
            return few
        (weight,) = self.tensor_ranks.enter(self.weight)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            return _RMSNorm.apply(x, weight, self.eps)  # type: ignore[return-value]
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        unit, grad = x.to(scale.dtype) * scale, grads[0].to(scale.dtype)
        product = grad * unit
        weight_grad = product.flatten(0, -2).sum(0)
        mean = torch.mv(product.flatten(0, -2), weight.to(scale.dtype)).div_(x.shape[-1]).view_as(scale)
        x_grad = (grad * weight).sub_(unit.mul_(mean)).mul_(scale)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None
