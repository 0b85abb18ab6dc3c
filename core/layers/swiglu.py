"""SwiGLU (Shazeer, 2020), the feed-forward layer of dense blocks and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from ..site import Site


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)`: `[..., D] -> [..., D]`"""

    def __init__(self, site: Site, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = site.linear(site.hidden_size, intermediate_size)
        self.up_proj = site.linear(site.hidden_size, intermediate_size)
        self.down_proj = site.linear(intermediate_size, site.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
