"""Triton: RMSNorm and the codes of its rows in 1x128 tiles, in one pass over them; and RMSNorm's gradients.

The formulas are those of `core.layers.norm`: sums in fp32, rows rounded once; the codes are those of the rounded rows.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize import Quantised, Rule
from .configurations import configuration
from .tiles import TILE, to_codes

WIDEST = 8192
"""Numbers of a row that the registers of one program hold."""
PROGRAMS = 256
"""Programs that share the rows of the backward pass; each leaves one partial sum of the gain's gradient."""


@triton.jit
def norm_kernel(
    x,
    weight,
    y,
    codes,
    scale,
    inverse,
    size,
    stride,
    factors,
    eps,
    floor,
    LARGEST: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: a row of `size` numbers, as `TILES` tiles; rows of `x` lie `stride` apart.

    `inverse` `[M]` fp32 receives one over the root of the mean square.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    c = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    inside = c < size
    values = tl.load(x + row * stride + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(tl.sum(values * values, axis=1), axis=0)
    over = tl.rsqrt(tl.div_rn(total, total * 0.0 + size) + eps)
    gain = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    normed = (values * over * gain).to(y.dtype.element_ty)
    tl.store(y + row * size + c, normed, mask=inside)
    scaled, factor = to_codes(normed.to(tl.float32), floor, LARGEST, POWER_OF_TWO, 1)
    tl.store(codes + row * size + c, scaled.to(codes.dtype.element_ty), mask=inside)
    tl.store(scale + row * factors + tile[:, None], factor, mask=tile[:, None] < factors)
    tl.store(inverse + row, over)


@triton.jit
def gradient_kernel(grad, x, weight, inverse, to_x, partial, rows, size, stride, WIDTH: tl.constexpr):
    """One program: every so many rows. `partial` `[programs, size]` fp32 receives its sum of the gain's gradient."""
    program = tl.program_id(0)
    c = tl.arange(0, WIDTH)
    inside = c < size
    gain = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    step = tl.num_programs(0).to(tl.int64)
    at, x_at = program.to(tl.int64) * size + c, program.to(tl.int64) * stride + c
    for row in range(program, rows, tl.num_programs(0)):
        over = tl.load(inverse + row)
        unit = tl.load(x + x_at, mask=inside, other=0.0).to(tl.float32) * over
        d = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        total += d * unit
        product = tl.sum(d * unit * gain, axis=0)
        mean = tl.div_rn(product, product * 0.0 + size)
        tl.store(to_x + at, ((d * gain - unit * mean) * over).to(to_x.dtype.element_ty), mask=inside)
        at, x_at = at + step * size, x_at + step * stride
    tl.store(partial + program.to(tl.int64) * size + c, total, mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float, rule: Rule) -> tuple[Tensor, Quantised]:
    """`[..., size]` to normed rows, differentiable, and their codes as a matrix."""
    y, codes, scale = _Norm.apply(x, weight, eps, rule)  # type: ignore[misc]
    return y, Quantised(codes, scale, (1, TILE))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        size, shape = x.shape[-1], x.shape
        x, weight = _rows(x), weight.contiguous()
        rows, factors = len(x), triton.cdiv(size, TILE)
        y, inverse = x.new_empty(rows, size), x.new_empty(rows, dtype=torch.float32)
        codes, scale = x.new_empty(rows, size, dtype=rule.dtype), x.new_empty(rows, factors, dtype=torch.float32)
        norm_kernel[(rows,)](
            x,
            weight,
            y,
            codes,
            scale,
            inverse,
            size,
            x.stride(0),
            factors,
            eps,
            rule.floor,
            LARGEST=torch.finfo(rule.dtype).max,
            POWER_OF_TWO=rule.power_of_two,
            TILES=triton.next_power_of_2(factors),
            TILE=TILE,
            **configuration("norm", size),
        )
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(codes, scale)
        ctx.shape = shape
        return y.view(shape), codes, scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        rows, size = x.shape
        to_x, partial = x.new_empty(rows, size), x.new_empty(min(PROGRAMS, rows), size, dtype=torch.float32)
        how = configuration("norm", size) | {"WIDTH": triton.next_power_of_2(size)}
        grad = grads[0].contiguous()
        gradient_kernel[(len(partial),)](grad, x, weight, inverse, to_x, partial, rows, size, x.stride(0), **how)
        return to_x.view(ctx.shape), partial.sum(0).to(weight.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """`[M, size]`, whose numbers lie beside one another; rows may lie apart, as those of a part of a matrix do."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
