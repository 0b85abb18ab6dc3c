"""RMSNorm (Zhang and Sennrich, 2019): `y = x / sqrt(mean(x^2) + eps) * weight`.

The mean square is taken in fp32 whatever the dtype of `x`; the gain is applied in the dtype of `x`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """`[..., size] -> [..., size]`"""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
