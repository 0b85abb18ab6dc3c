"""FP8 products on any device, defined by plain torch.

With power-of-two factors a code times its factor is a bf16 number, and products of bf16 numbers are exact in fp32, so that one
bf16 GEMM with fp32 sums is the FP8 GEMM. With fp32 factors it takes one fp32 GEMM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import codes
from ..quantize import Quantised, Rule, Tile, quantise, sizes
from . import Backend

MMA = 32
"""Products that Hopper's tensor cores add before they cut the sum."""
PROMOTE = 128
"""Products between two promotions to fp32."""
CUT = 23 - 13
"""Bits of an fp32 number that its sums lack."""


class Emulation(Backend):
    """Decodes both operands and multiplies once."""

    name = "emulation"

    def __init__(self, accumulation: str = "fp32", reason: str = "") -> None:
        self.accumulation, self.reason = accumulation, reason

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        quick = codes.quantise(x, sizes(x, tile), rule)
        return quantise(x, tile, rule) if quick is None else quick

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        """`q.values(dtype)`."""
        quick = codes.values(q, dtype)
        return q.values(dtype) if quick is None else quick

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        exact = dtype == torch.bfloat16 and self.accumulation == "fp32" and _powers(a) and _powers(b)
        between = torch.bfloat16 if exact else torch.float32
        return self._multiply(self.values(a, between), self.values(b, between)).to(dtype)

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        exact = dtype == torch.bfloat16 and self.accumulation == "fp32" and _powers(a) and _powers(b)
        between = torch.bfloat16 if exact else torch.float32
        left, right = self.values(a, between), self.values(b, between)
        out = torch.empty(left.shape[0], right.shape[1], dtype=dtype, device=left.device)
        for rows, to, matrix in zip(left.split(sizes), out.split(sizes), right.unbind(), strict=True):
            to.copy_(self._multiply(rows, matrix))
        return out

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        if self.accumulation == "fp32":
            return a @ b.T
        return hopper(a, b, promote=self.accumulation == "hopper")


def hopper(a: Tensor, b: Tensor, *, promote: bool) -> Tensor:
    """`a @ b.T` with the sums of Hopper's FP8 tensor cores: cut to 13 bits after every 32 products, towards zero.

    Args:
        a: `[M, K]` fp32.
        b: `[N, K]` fp32.
        promote: add the cut sums to fp32 numbers after every 128 products, and begin again (technical report, section 3.3.2).
    """
    quick = codes.hopper(a, b, CUT, promote=promote)
    if quick is not None:
        return quick
    total = a.new_zeros(a.shape[0], b.shape[0])
    partial = torch.zeros_like(total)
    for start in range(0, a.shape[1], MMA):
        partial = partial.addmm(a[:, start : start + MMA], b[:, start : start + MMA].T)
        partial = (partial.view(torch.int32) & -(1 << CUT)).view(torch.float32)
        if promote and (start + MMA) % PROMOTE == 0:
            total, partial = total + partial, torch.zeros_like(total)
    return total + partial


def _powers(q: Quantised) -> bool:
    """Whether all factors are powers of two (or NaN), and codes times factors therefore bf16 numbers."""
    mantissa = q.scale.contiguous().view(torch.int32) & 0x7FFFFF
    return not bool(((mantissa != 0) & q.scale.isfinite()).any())
