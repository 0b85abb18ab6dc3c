"""What multiplies FP8 codes. Each backend computes what `emulation` defines, up to the order of fp32 sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..e5m6 import Packed
from ..quantize import Quantised, Rule, Tile


@dataclass(frozen=True)
class AlongTokens:
    """One side of a weight gradient: numbers or codes `[M, C]`, and how they become codes whose tiles lie along tokens."""

    source: Tensor | Quantised | Packed
    tile: Tile
    rule: Rule
    dtype: torch.dtype
    """Of the numbers; codes are decoded to it first."""

    def numbers(self, backend: Backend) -> Tensor:
        """`[M, C]`, codes decoded by a backend."""
        if isinstance(self.source, Packed):
            return self.source.values(self.dtype)
        return self.source if isinstance(self.source, Tensor) else backend.values(self.source, self.dtype)


class Backend(Protocol):
    """Quantises and multiplies; all products are `a @ b.T`, summed in fp32 and rounded once to `dtype`."""

    name: str
    reason: str
    """Why it was chosen, for people."""

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        ...

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        """As `Quantised.values`, bit by bit."""
        ...

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        ...

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, `sizes` of each, and `[E, N, K]` to `[M, N]`."""
        ...

    def weight_gradient(self, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
        """`dy[e].T @ x[e]` of each expert's rows, `[M, N]` and `[M, K]` to `[E, N, K]` fp32. Tiles begin anew at each expert."""
        ...


def one_by_one(backend: Backend, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
    """`weight_gradient` of a backend that has no grouped one: one product for each expert that has rows."""
    outputs, inputs = dy.numbers(backend), x.numbers(backend)
    out = torch.zeros(len(sizes), outputs.shape[1], inputs.shape[1], dtype=torch.float32, device=outputs.device)
    for to, left, right in zip(out, outputs.split(sizes), inputs.split(sizes), strict=True):
        if len(left):
            a, b = backend.quantise(left, dy.tile, dy.rule), backend.quantise(right, x.tile, x.rule)
            to.copy_(backend.product(a.T, b.T, torch.float32))
    return out
