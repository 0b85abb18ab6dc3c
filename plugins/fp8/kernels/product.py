"""Triton: FP8 GEMM `a @ b.T` with a factor per tile, dense or grouped by expert.

Every 128 columns a sum begins at zero in the tensor cores and is added to an fp32 register with both factors, which is the
promotion that Hopper needs (technical report, section 3.3.2). One dot of 128 columns per step; neither more nor `acc=` may be used.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false
from __future__ import annotations

import triton
import triton.language as tl

STEP = 128
"""Columns between promotions."""


@triton.jit
def product_kernel(
    a,
    a_scale,
    b,
    b_scale,
    out,
    blocks,
    rows,
    n,
    k,
    a_scale_row,
    a_scale_column,
    b_scale_expert,
    b_scale_row,
    b_scale_column,
    A_ROWS: tl.constexpr,
    B_ROWS: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program: `BLOCK_M x BLOCK_N` results.

    `a` `[M, K]` and `b` `[E, N, K]` are contiguous codes. `blocks` `[P, 3]` int32, when grouped: expert, first row and end of rows of
    each block of rows. Factors are found by strides, those of one row of factors covering `A_ROWS` (`B_ROWS`) rows.
    """
    block = tl.program_id(0)
    expert, first, end = block * 0, block * BLOCK_M, rows
    if GROUPED:
        expert = tl.load(blocks + 3 * block)
        first = tl.load(blocks + 3 * block + 1)
        end = tl.load(blocks + 3 * block + 2)
    expert = expert.to(tl.int64)
    r = first.to(tl.int64) + tl.arange(0, BLOCK_M)
    c = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, STEP)
    left = a + r[:, None] * k + column[None, :]
    right = b + expert * n * k + c[None, :] * k + column[:, None]
    left_factor = a_scale + (r // A_ROWS) * a_scale_row
    right_factor = b_scale + expert * b_scale_expert + (c // B_ROWS) * b_scale_row
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, tl.cdiv(k, STEP)):
        rest = k - step * STEP
        x = tl.load(left + step * STEP, mask=(r[:, None] < end) & (column[None, :] < rest), other=0.0)
        y = tl.load(right + step * STEP, mask=(c[None, :] < n) & (column[:, None] < rest), other=0.0)
        x_factor = tl.load(left_factor + step * a_scale_column, mask=r < end, other=0.0)
        y_factor = tl.load(right_factor + step * b_scale_column, mask=c < n, other=0.0)
        total += tl.dot(x, y) * x_factor[:, None] * y_factor[None, :]
    at = out + r[:, None] * n + c[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(r[:, None] < end) & (c[None, :] < n))


def configuration(rows: int, b_rows: int = 128) -> dict[str, int]:
    """Tile, warps and stages for so many rows of `a` and tiles of `b_rows` rows: sizes that compile for sm_90 without spilling
    registers. A factor for each row of both operands takes more of them."""
    if rows <= 64 or b_rows == 1:
        return {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 3}
