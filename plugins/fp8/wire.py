"""Rows on their way to another rank as FP8 codes: one byte a number, and an fp32 factor for every 128 of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .options import TILE
from .quantize import Quantised


@dataclass(frozen=True)
class Codes:
    """A codec of `core.exchange`. With factors that are powers of two it leaves bf16 numbers of which it makes the same numbers again."""

    quantise: Callable[[Tensor], Quantised]
    """In 1x128 tiles."""
    dtype: torch.dtype
    """Of the codes."""

    def encode(self, rows: Tensor) -> Tensor:
        """`[N, C]` to `[N, C + 4 ceil(C / 128)]` uint8: the codes of a row, then its factors."""
        found = self.quantise(rows)
        return torch.cat((found.codes.view(torch.uint8), _dense(found.scale).view(torch.uint8)), dim=1)

    def decode(self, codes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """`[N, bytes]` to `[N, width]`."""
        numbers, factors = _dense(codes[:, :width]), _dense(codes[:, width:])
        return Quantised(numbers.view(self.dtype), factors.view(torch.float32), (1, TILE)).values(dtype)


def _dense(x: Tensor) -> Tensor:
    """A copy whose memory may be viewed as another dtype; `contiguous` leaves tensors without rows as they lie."""
    return x.clone(memory_format=torch.contiguous_format)
