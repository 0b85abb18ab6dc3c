"""Triton: FP8 GEMM `a @ b.T` with a factor per tile, dense, grouped by expert, or with masked rows of experts.

Every 128 columns a sum begins at zero in the tensor cores and is added to an fp32 register with both factors, which is the
promotion that Hopper needs (technical report, section 3.3.2). One dot of 128 columns per step; neither more nor `acc=` may be used.
Where a block of `b` has one factor, promoting costs one fused multiply-add for each result; on Hopper the tensor memory accelerator
fetches the codes, which spares registers.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..quantize import Quantised
from .configurations import configuration
from .tiles import TILE, described, descriptors_fit, program_of

DENSE, GROUPED, MASKED = 0, 1, 2
"""How rows lie: one matrix; sorted by expert, by a table of blocks of rows; or with room for equally many of each expert."""


@triton.jit
def place_of(block, where, rows, LAYOUT: tl.constexpr, BLOCK_M: tl.constexpr):
    """Expert, first row and end of rows of a block of rows; `product_kernel` says what the layouts are."""
    if LAYOUT == 1:
        entry = where + 3 * block
        return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    elif LAYOUT == 2:
        each = tl.cdiv(rows, BLOCK_M)
        expert = block // each
        return expert, expert * rows + block % each * BLOCK_M, expert * rows + tl.load(where + expert)
    else:
        return block * 0, block * BLOCK_M, rows


@triton.jit
def product_kernel(
    a,
    a_scale,
    b,
    b_scale,
    out,
    where,
    count,
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
    LAYOUT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program: `BLOCK_M x BLOCK_N` results, of `count` blocks of rows.

    `a` `[M, K]` and `b` `[E, N, K]` are contiguous codes, or descriptors of `[M, K]` and `[E * N, K]`. `where` is int32; if grouped
    `[count, 3]`: expert, first row and end of rows of each block of rows; if masked `[E]`: how many of the `rows` rows of each expert
    there are. Factors are found by strides, those of one row of factors covering `A_ROWS` (`B_ROWS`) rows.
    """
    block, column = program_of(count, tl.cdiv(n, BLOCK_N), GROUP)
    expert, first, end = place_of(block, where, rows, LAYOUT, BLOCK_M)
    r = first.to(tl.int64) + tl.arange(0, BLOCK_M)
    c = column.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, STEP)
    left_factor = a_scale + (r // A_ROWS) * a_scale_row
    right_factor = b_scale + expert.to(tl.int64) * b_scale_expert
    if B_ROWS % BLOCK_N == 0:
        right_factor += (column * BLOCK_N // B_ROWS) * b_scale_row
    else:
        right_factor += (c // B_ROWS) * b_scale_row
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, tl.where(first < end, tl.cdiv(k, STEP), 0)):
        if DESCRIPTORS:
            x = a.load([first, step * STEP])
            y = b.load([expert * n + column * BLOCK_N, step * STEP]).T
        else:
            inside = place < k - step * STEP
            left, right = r[:, None] * k + place[None, :], (expert.to(tl.int64) * n + c[None, :]) * k + place[:, None]
            x = tl.load(a + left + step * STEP, mask=(r[:, None] < end) & inside[None, :], other=0.0)
            y = tl.load(b + right + step * STEP, mask=(c[None, :] < n) & inside[:, None], other=0.0)
        factor = tl.load(left_factor + step * a_scale_column, mask=r < end, other=0.0)[:, None]
        if B_ROWS % BLOCK_N == 0:
            total += tl.dot(x, y) * (factor * tl.load(right_factor + step * b_scale_column))
        else:
            total += tl.dot(x, y) * factor * tl.load(right_factor + step * b_scale_column, mask=c < n, other=0.0)[None, :]
    at = out + r[:, None] * n + c[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(r[:, None] < end) & (c[None, :] < n))


def kind(b_rows: int, layout: int = DENSE) -> str:
    """Which rows of the table of configurations are for matrices with a factor per `b_rows` rows."""
    return "product_rows" if b_rows == 1 else "masked" if layout == MASKED else "product"


def product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """`[M, K]` and `[N, K]` to `[M, N]`."""
    how = configuration(kind(b.tile[0]), len(a.codes))
    single = Quantised(b.codes[None], b.scale[None], b.tile)
    return _launch(a, single, a.codes, triton.cdiv(len(a.codes), how["BLOCK_M"]), DENSE, how, dtype)


def grouped(a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
    """Rows `[M, K]` sorted by expert, `sizes` of each, and `[E, N, K]`, to `[M, N]`."""
    how = configuration(kind(b.tile[0]), len(a.codes))
    table, start = [], 0
    for expert, size in enumerate(sizes):
        table += [(expert, first, start + size) for first in range(start, start + size, how["BLOCK_M"])]
        start += size
    blocks = torch.tensor(table, dtype=torch.int32).to(a.codes.device, non_blocking=True)
    return _launch(a, b, blocks, len(table), GROUPED, how, dtype)


def masked(a: Quantised, b: Quantised, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`[E, M, K]` and `[E, N, K]` to `[E, M, N]`, of which expert e has the first `rows[e]` rows; `rows` stays on the device."""
    experts, room, k = a.codes.shape
    how = configuration(kind(b.tile[0], MASKED), room)
    flat = Quantised(a.codes.reshape(-1, k), a.scale.reshape(experts * room, -1), a.tile)
    out = _launch(flat, b, rows.to(torch.int32), experts * triton.cdiv(room, how["BLOCK_M"]), MASKED, how, dtype)
    return out.view(experts, room, -1)


def _launch(a: Quantised, b: Quantised, where: Tensor, count: int, layout: int, how: dict[str, int], dtype: torch.dtype) -> Tensor:
    (rows, k), (experts, n, _) = a.codes.shape, b.codes.shape
    out = torch.empty(rows, n, dtype=dtype, device=a.codes.device)
    if not (count and n and k):
        return out.zero_()
    for side in (a, b):
        if side.tile[1] != TILE and side.scale.shape[-1] != 1:
            raise AssertionError(f"factors cover {side.tile[1]} columns: neither {TILE} nor all")
    left, right = a.codes.contiguous(), b.codes.contiguous()
    if how.pop("DESCRIPTORS") and descriptors_fit(left, right):
        left, right = described(left, how["BLOCK_M"]), described(right.view(-1, k), how["BLOCK_N"])
    product_kernel[(count * triton.cdiv(n, how["BLOCK_N"]),)](
        left,
        a.scale,
        right,
        b.scale,
        out,
        where,
        count,
        rows // experts if layout == MASKED else rows,
        n,
        k,
        a.scale.stride(0),
        a.scale.stride(1) if a.scale.shape[1] > 1 else 0,
        b.scale.stride(0),
        b.scale.stride(1),
        b.scale.stride(2) if b.scale.shape[2] > 1 else 0,
        A_ROWS=a.tile[0],
        B_ROWS=b.tile[0],
        LAYOUT=layout,
        DESCRIPTORS=isinstance(left, TensorDescriptor),
        STEP=TILE,
        enable_fp_fusion=True,
        **how,
    )
    return out
