"""What a library's backend leaves to another one: everything but products."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize import Quantised, Rule, Tile
from ..swiglu import Gated, Kept
from . import Backend, Made


class Beside(Backend):
    """A backend whose `beside` quantises, decodes, and makes codes of SwiGLU and RMSNorm."""

    beside: Backend

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        return self.beside.quantise(x, tile, rule)

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        return self.beside.values(q, dtype)

    def weight(self, weight: Tensor, tile: Tile, rule: Rule, *, turned: bool) -> Quantised:
        return self.beside.weight(weight, tile, rule, turned=turned)

    def gated(self, x: Gated, tile: Tile, rule: Rule, *, numbers: bool, codes: bool) -> Made:
        return self.beside.gated(x, tile, rule, numbers=numbers, codes=codes)

    def gated_gradients(self, before: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        return self.beside.gated_gradients(before, grad)

    def norm(self, x: Tensor, weight: Tensor, eps: float, tile: Tile, rule: Rule) -> tuple[Tensor, Quantised] | None:
        return self.beside.norm(x, weight, eps, tile, rule)
