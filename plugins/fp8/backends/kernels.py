"""FP8 by our own Triton kernels, on an NVIDIA GPU of compute capability 8.9 or above.

What no kernel knows (a tile, a convention) is computed by torch, as the definition says.
"""

from __future__ import annotations

import os
from typing import TypeGuard

import torch
from torch import Tensor

from ....core.errors import BestiaryError
from ..e5m6 import Packed
from ..kernels import dequantize as dequantisers
from ..kernels import norm as norms
from ..kernels import product as products
from ..kernels import quantize as quantisers
from ..kernels import swiglu as gates
from ..kernels import tokens, weight_gradient
from ..kernels.tiles import TILE, knows
from ..quantize import Quantised, Rule, Tile, quantise
from ..swiglu import Gated, Kept
from . import AlongTokens, Backend, Made

TILES = {(1, TILE), (TILE, 1), (TILE, TILE)}
TOKENS: Tile = (TILE, 1)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Kernels(Backend):
    """Quantises and multiplies by kernels."""

    name = "triton"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        return self._quantise(x, tile, rule, turned=False)

    def weight(self, weight: Tensor, tile: Tile, rule: Rule, *, turned: bool) -> Quantised:
        """As `quantise`; blocks also transposed, if asked for."""
        return self._quantise(weight, tile, rule, turned=turned and tile == (TILE, TILE))

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        """As `Quantised.values`, bit by bit."""
        check_device(q.codes)
        return dequantisers.dequantise(q, dtype) if q.codes.is_contiguous() else q.values(dtype)

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        check_device(a.codes)
        return products.product(a, b, dtype)

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, and `[E, N, K]`, to `[M, N]`."""
        check_device(a.codes)
        return products.grouped(a, b, sizes, dtype)

    def masked(self, a: Quantised, b: Quantised, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """`[E, M, K]` and `[E, N, K]` to `[E, M, N]`, the first `rows[e]` rows of each; nothing waits for the device."""
        check_device(a.codes)
        return products.masked(a, b, rows, dtype)

    def weight_gradient(self, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
        """`dy[e].T @ x[e]` of each expert, in one launch, after one that quantises each side."""
        if not all(side.tile == TOKENS and knows(side.rule) for side in (dy, x)):
            return super().weight_gradient(dy, x, sizes)
        left, right = (side.source if _by_token(side.source) else side.numbers(self) for side in (dy, x))
        first = left if isinstance(left, Tensor) else left.codes
        check_device(first)
        tiles = tokens.tiles_of(sizes, first.device)
        a, b = tokens.along_tokens(left, tiles, dy.rule, dy.dtype), tokens.along_tokens(right, tiles, x.rule, x.dtype)
        return weight_gradient.weight_gradient(a, b, tiles)

    def gated(self, x: Gated, tile: Tile, rule: Rule, *, numbers: bool, codes: bool) -> Made:
        """SwiGLU, codes of its result and of its inputs, in one launch."""
        if tile != (1, TILE) or not knows(rule) or not x.inputs[0].numel():
            return super().gated(x, tile, rule, numbers=numbers, codes=codes)
        check_device(x.inputs[0])
        whole = len(x.inputs) == 2 or x.width % TILE == 0
        rows, hidden, before = gates.swiglu(x, rule, numbers=numbers, codes=codes and whole)
        if codes and not whole:
            before = tuple(self.quantise(t, tile, rule) for t in x.inputs)
        return Made(rows, Kept(before or x.inputs, x.weights), hidden)

    def gated_gradients(self, before: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of routing weights (or None) and of each input of SwiGLU, decoded on the way."""
        if not grad.numel() or not all(_by_token(t) for t in before.inputs):
            return super().gated_gradients(before, grad)
        check_device(grad)
        return gates.gradients(before, grad)

    def norm(self, x: Tensor, weight: Tensor, eps: float, tile: Tile, rule: Rule) -> tuple[Tensor, Quantised] | None:
        """Normed rows and their codes, in one launch; None for rows that are too wide for one program."""
        if tile != (1, TILE) or not knows(rule) or not 0 < x.shape[-1] <= norms.WIDEST or not x.numel():
            return None
        check_device(x)
        return norms.norm(x, weight, eps, rule)

    def _quantise(self, x: Tensor, tile: Tile, rule: Rule, *, turned: bool) -> Quantised:
        check_device(x)
        if tile not in TILES or not knows(rule) or x.numel() == 0:
            return quantise(x, tile, rule)
        return quantisers.quantise(x.contiguous(), (tile[0] or 1, tile[1] or 1), rule, turned=turned)


def check_device(x: Tensor) -> None:
    """Refuses what the kernels cannot run on.

    Raises:
        BestiaryError: a CPU tensor, or a GPU without FP8; names the fallback.
    """
    fallback = "Set precision.backend = 'emulation'."
    if INTERPRETED:
        return
    if x.device.type != "cuda":
        raise BestiaryError(f"precision.backend = 'triton': the kernels run on a GPU, and this tensor is on {x.device}. {fallback}")
    if torch.cuda.get_device_capability(x.device) < (8, 9):
        name = torch.cuda.get_device_name(x.device)
        raise BestiaryError(f"precision.backend = 'triton': {name} has no FP8, which begins at compute capability 8.9. {fallback}")


def _by_token(source: Tensor | Quantised | Packed) -> TypeGuard[Tensor | Quantised]:
    """Whether codes have factors of single tokens, which kernels decode; numbers need none."""
    return isinstance(source, Tensor) or (isinstance(source, Quantised) and source.tile[0] == 1)
