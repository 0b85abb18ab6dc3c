"""What multiplies FP8 codes. Each backend computes what `emulation` defines, up to the order of fp32 sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..e5m6 import Packed
from ..quantize import Quantised, Rule, Tile
from ..swiglu import Gated, Kept


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


@dataclass(frozen=True)
class Made:
    """What SwiGLU made for a layer."""

    rows: Quantised
    """`[M, I]`"""
    before: Kept
    """What its gradients are computed from."""
    numbers: Tensor | None = None
    """The rows before they became codes, if asked for."""


class Backend(Protocol):
    """Quantises and multiplies; all products are `a @ b.T`, summed in fp32 and rounded once to `dtype`.

    Methods with a body are the definition of what a backend may do better; a backend inherits them.
    """

    name: str
    reason: str
    """Why it was chosen, for people."""

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        ...

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        """As `Quantised.values`, bit by bit."""
        return q.values(dtype)

    def weight(self, weight: Tensor, tile: Tile, rule: Rule, *, turned: bool) -> Quantised:
        """As `quantise`, of parameters `[..., N, K]`; with the transposed codes beside them, if `turned` and that makes products faster."""
        return self.quantise(weight, tile, rule)

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        ...

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, `sizes` of each, and `[E, N, K]` to `[M, N]`."""
        ...

    def masked(self, a: Quantised, b: Quantised, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """`[E, M, K]` and `[E, N, K]` to `[E, M, N]`, of which expert e has only the first `rows[e]` rows; the rest is undefined.

        Args:
            a: room for M rows of each expert.
            b: the experts' matrices.
            rows: `[E]` int32 on the device of `a`; a kernel reads it there, so that nothing waits for it.
            dtype: of the result.
        """
        out = torch.zeros(*a.codes.shape[:2], b.codes.shape[1], dtype=dtype, device=a.codes.device)
        for expert, size in enumerate(rows.tolist()):
            left = Quantised(a.codes[expert, :size], a.scale[expert, :size], a.tile)
            out[expert, :size] = self.product(left, Quantised(b.codes[expert], b.scale[expert], b.tile), dtype)
        return out

    def weight_gradient(self, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
        """`dy[e].T @ x[e]` of each expert's rows, `[M, N]` and `[M, K]` to `[E, N, K]` fp32. Tiles begin anew at each expert."""
        outputs, inputs = dy.numbers(self), x.numbers(self)
        out = torch.zeros(len(sizes), outputs.shape[1], inputs.shape[1], dtype=torch.float32, device=outputs.device)
        for to, left, right in zip(out, outputs.split(sizes), inputs.split(sizes), strict=True):
            if len(left):
                a, b = self.quantise(left, dy.tile, dy.rule), self.quantise(right, x.tile, x.rule)
                to.copy_(self.product(a.T, b.T, torch.float32))
        return out

    def gated(self, x: Gated, tile: Tile, rule: Rule, *, numbers: bool, codes: bool) -> Made:
        """SwiGLU, and its result as codes.

        Args:
            x: matrices `[M, ...]`.
            tile: of the result, and of kept codes.
            rule: of both.
            numbers: return the result before it became codes, too.
            codes: keep codes of what SwiGLU reads, and not the numbers.
        """
        hidden = x.hidden()
        before = tuple(self.quantise(t, tile, rule) if codes else t for t in x.inputs)
        return Made(self.quantise(hidden, tile, rule), Kept(before, x.weights), hidden if numbers else None)

    def gated_gradients(self, before: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of routing weights (or None) and of each input of SwiGLU, from that of its result `[M, I]`."""
        return before.numbers(self.values).gradients(grad)

    def norm(self, x: Tensor, weight: Tensor, eps: float, tile: Tile, rule: Rule) -> tuple[Tensor, Quantised] | None:
        """RMSNorm of `[..., K]`, differentiable, with the codes of its rows `[M, K]`; None where a backend does not do both at once."""
        return None
