"""The dense feed-forward layer."""

from __future__ import annotations

from torch import Tensor

from ...core.contracts import Context
from ...core.layers.swiglu import SwiGLU
from ...core.site import Site
from .options import DenseOptions


class Dense(SwiGLU):
    """SwiGLU in the ffn slot: `[B, S, D] -> [B, S, D]`"""

    def __init__(self, options: DenseOptions, site: Site) -> None:
        super().__init__(site, options.intermediate_size)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return super().forward(x)
