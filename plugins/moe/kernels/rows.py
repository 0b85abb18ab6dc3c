"""Triton: rows of tokens to the places of their copies, and the sums of each token's K rows; what `dispatch._Copy` and `dispatch._Sum` do.

A token's row is read once, whatever K is, which is the least that memory allows. Sums are fp32. Neither looks at numbers: what is
not a number travels with its row, and FP8 codes with the factors of their tiles.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .tiles import padded


@triton.jit
def copy_row(x, out, place, padding, tokens, column, inside, width, K: tl.constexpr):
    """Columns of one row: program `i` copies token `i` to its K places, and beyond the last token, token 0 to one row of padding."""
    token = tl.program_id(0).to(tl.int64)
    if token < tokens:
        values = tl.load(x + token * width + column, mask=inside)
        for k in tl.static_range(K):
            tl.store(out + tl.load(place + token * K + k) * width + column, values, mask=inside)
    else:
        tl.store(out + tl.load(padding + token - tokens) * width + column, tl.load(x + column, mask=inside), mask=inside)


@triton.jit
def copy_kernel(x, factors, out, out_factors, place, padding, tokens, width, K: tl.constexpr, FACTORS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: `BLOCK` columns of one token, of `x` `[T, D]`, to all rows `place` `[T, K]` of `out` `[R, D]`.

    `padding` `[P]` are the rows that hold no copy. With `FACTORS` columns of factors `[T, F]`, they travel along.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    copy_row(x, out, place, padding, tokens, column, column < width, width, K)
    if FACTORS:  # noqa: SIM102 - the kernel is compiled without what follows, or with it
        if tl.program_id(1) == 0:
            few = tl.arange(0, padded(FACTORS))
            copy_row(factors, out_factors, place, padding, tokens, few, few < FACTORS, FACTORS, K)


@triton.jit
def sum_kernel(rows, place, weights, out, width, K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """One program: `BLOCK` columns of one token's sum over its rows `place` `[T, K]`, weighted by fp32 `weights` `[T, K]` on request."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        at = tl.load(place + token * K + k) * width
        values = tl.load(rows + at + column, mask=column < width, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights + token * K + k)
        total += values
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def sum_gradient_kernel(grad, rows, place, weights, rows_grad, weights_grad, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the gradients of a weighted sum for one of a token's K copies, of its row and of its weight."""
    token, at = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0).to(tl.int64)
    weight, start = tl.load(weights + at), tl.load(place + at) * width
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        slope = tl.load(grad + token * width + column, mask=column < width, other=0.0).to(tl.float32)
        values = tl.load(rows + start + column, mask=column < width, other=0.0).to(tl.float32)
        total += slope * values
        tl.store(rows_grad + start + column, (slope * weight).to(rows_grad.dtype.element_ty), mask=column < width)
    tl.store(weights_grad + at, tl.sum(total, axis=0))
