"""What multiplies FP8 codes. Each backend computes what `emulation` defines, up to the order of fp32 sums."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..options import FP8Options
from ..quantize import Quantised, Rule, Tile


class Backend(Protocol):
    """Quantises and multiplies; all products are `a @ b.T`, summed in fp32 and rounded once to `dtype`."""

    name: str
    reason: str
    """Why it was chosen, for people."""

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        ...

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        ...

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, `sizes` of each, and `[E, N, K]` to `[M, N]`."""
        ...


def choose(options: FP8Options) -> Backend:
    """The backend of these options, chosen once, when a model is built."""
    from .emulation import Emulation

    reason = "asked for" if options.backend != "auto" else "no accelerator with FP8 products is used; bf16 products emulate them exactly"
    return Emulation(options.accumulation, reason)
