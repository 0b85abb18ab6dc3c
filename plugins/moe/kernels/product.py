"""Triton: the products of all experts in one launch, of rows that are sorted by expert.

How many rows each expert has is read on the GPU, by every program for itself, so that nobody waits for it: as many programs start as any
counts could need, and those without rows stop at once. Sums are fp32. Products of a row see its own expert's matrix and of that
all, a weight gradient the rows of its own expert alone: what is not a number stays where it belongs.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .tiles import padded


@triton.jit
def position(program, rows, columns, GROUP: tl.constexpr):
    """Block of rows and block of columns of a program: `GROUP` blocks of rows take all columns before the next ones follow."""
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = program % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def rows_of(counts, block, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Expert, first row and end of rows of the `block`-th of all experts' blocks of rows; beyond the last block there are none."""
    expert = tl.arange(0, padded(EXPERTS))
    size = tl.load(counts + expert, mask=expert < EXPERTS, other=0)
    blocks = tl.cdiv(size, BLOCK)
    own = tl.sum((tl.cumsum(blocks, axis=0) <= block).to(tl.int32), axis=0)
    before = tl.sum(tl.where(expert < own, blocks, 0), axis=0)
    start = tl.sum(tl.where(expert < own, size, 0), axis=0)
    return own, start + (block - before) * BLOCK, start + tl.sum(tl.where(expert == own, size, 0), axis=0)


@triton.jit
def product_kernel(
    x,
    weight,
    out,
    counts,
    blocks,
    n,
    k,
    EXPERTS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program: `BLOCK_M x BLOCK_N` of `out` `[R, N]`, from `x` `[R, K]` and its expert's matrix.

    `weight` is `[E, N, K]`, or `[E, K, N]` if `TRANSPOSED`; `counts` `[E]` int64. `blocks` is at least the number of blocks of rows.
    """
    block, side = position(tl.program_id(0), blocks, tl.cdiv(n, BLOCK_N), GROUP)
    expert, first, end = rows_of(counts, block, EXPERTS, BLOCK_M)
    if first >= end:
        return
    row, column, step = first + tl.arange(0, BLOCK_M), side * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    left = x + row[:, None] * k + step[None, :]
    right = weight + expert.to(tl.int64) * n * k
    if TRANSPOSED:
        right += step[:, None] * n + column[None, :]
    else:
        right += column[None, :].to(tl.int64) * k + step[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        a = tl.load(left, mask=(row[:, None] < end) & (step[None, :] < k - start), other=0.0)
        b = tl.load(right, mask=(column[None, :] < n) & (step[:, None] < k - start), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += BLOCK_K
        right += BLOCK_K * n if TRANSPOSED else BLOCK_K
    at = out + row[:, None] * n + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row[:, None] < end) & (column[None, :] < n))


@triton.jit
def weight_gradient_kernel(
    grad,
    x,
    out,
    counts,
    n,
    k,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program: `BLOCK_M x BLOCK_N` of one expert's `grad^T x`, of `out` `[E, N, K]`, from `grad` `[R, N]` and `x` `[R, K]`.

    An expert without rows gets zeros.
    """
    tiles = tl.cdiv(n, BLOCK_M) * tl.cdiv(k, BLOCK_N)
    own = tl.program_id(0) // tiles
    block, side = position(tl.program_id(0) % tiles, tl.cdiv(n, BLOCK_M), tl.cdiv(k, BLOCK_N), GROUP)
    expert = tl.arange(0, padded(EXPERTS))
    size = tl.load(counts + expert, mask=expert < EXPERTS, other=0)
    first, end = tl.sum(tl.where(expert < own, size, 0), axis=0), tl.sum(tl.where(expert <= own, size, 0), axis=0)
    row, column, step = block * BLOCK_M + tl.arange(0, BLOCK_M), side * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    left, right = grad + (first + step[None, :]) * n + row[:, None], x + (first + step[:, None]) * k + column[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, end, BLOCK_K):
        a = tl.load(left, mask=(row[:, None] < n) & (step[None, :] < end - start), other=0.0)
        b = tl.load(right, mask=(column[None, :] < k) & (step[:, None] < end - start), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += BLOCK_K * n
        right += BLOCK_K * k
    at = out + own.to(tl.int64) * n * k + row[:, None].to(tl.int64) * k + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row[:, None] < n) & (column[None, :] < k))
